"""Train the demo model: a tiny Mistral that does small tasks well, on a CPU, in about an hour.

    python examples/train_demo.py --seconds 4740 --out sarathi_jax/assets/demo

Text comes from a seeded generator (`demo_training/text.py`), is packed into windows, and only answers count in the loss.
Weights are moved by Muon (embedding and norms: Adam) at a rate that warms up, stays, and falls to zero at the end of the time
given. Tasks that fail are drawn more often; sizes grow as they are mastered. What is drawn is seeded, but the schedule goes by
the clock, so two runs differ. At the end the model is written as a Hugging Face folder, with its accuracy on held-out questions
(ACCURACY.json, README.md).

Exactness of an answer is measured without generating: a greedy answer is right if and only if, given the right answer so far,
the most likely token is the right one at each of its positions, the end token included.
"""

import argparse
import itertools
import json
import queue
import random
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from demo_training.folder import SHOWN, build_tokenizer, write_card, write_folder
from demo_training.model import Mistral, hugging_face_tensors
from demo_training.packing import ARRAY_NAMES, Batch, Document, encode, pack, put_document
from demo_training.text import MAX_PAIRS, MAX_SIZE, NUM_QUERIES, TASKS, Example, Turn, draw, is_held_out, recall
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import save_file

from sarathi_jax.models.config import ModelConfig, RopeConfig

CONFIG = ModelConfig(
    family="mistral",
    vocab_size=512,
    hidden_size=128,
    intermediate_size=384,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_position_embeddings=2048,
    norm_eps=1e-5,
    rope=RopeConfig(theta=10000.0),
    is_head_tied=True,
    bos_token_id=1,
    eos_token_ids=(2, 5),
    pad_token_id=0,
)
SYSTEM_MESSAGES = ("You are a helpful assistant.", "You are the demo model of sarathi-jax.", "Answer briefly.")
PEAK_RATE = 5e-3
WARMUP_STEPS = 100
DECAY_SHARE = 0.45  # of the time, at the end
CHECKPOINT_SECONDS = 240
SHORT_WINDOWS = (24, 64)  # windows, tokens in each
LONG_WINDOWS = (8, 128)
RECALL_WINDOWS = ((8, 256), (4, 512), (2, 1152))
FULL_RECALL = f"recall, {MAX_PAIRS} pairs"
# How often each task is drawn before its errors are looked at: by how much there is to learn, and how short the examples are.
SHARE = {"add": 5, "subtract": 6, "multiply": 0.7, "copy": 4, "sort": 8, "reverse": 2, "count": 0.8, "facts": 0.6, "engine": 0.5, "json": 0.8, "tools": 0.8}  # fmt: skip


class Course:
    """Which examples come next: every task by its share and its recent errors, as large as the level it has reached."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.accuracy = dict.fromkeys(TASKS, 0.0)
        self.level = dict.fromkeys(TASKS, 0.1)

    def documents(self) -> Iterator[Document]:
        while True:
            conversation = [self._draw()]
            if conversation[0].is_chat and self.rng.random() < 0.1:
                conversation[0] = replace(conversation[0], system=self.rng.choice(SYSTEM_MESSAGES))
            while conversation[0].is_chat and self.rng.random() < 0.2:
                following = self._draw()
                if following.is_chat and not following.tools:
                    conversation = [replace(each, turns=each.turns[:1]) for each in (*conversation, following)]
            yield encode(self.tokenizer, conversation)

    def recall_documents(self) -> Iterator[Document]:
        while True:
            yield encode(self.tokenizer, [draw("recall", self.rng, held_out=False, level=self.level["recall"])])

    def _draw(self) -> Example:
        weights = [SHARE[task] * (0.1 + 1 - self.accuracy[task]) for task in SHARE]
        task = self.rng.choices(tuple(SHARE), weights)[0]
        return draw(task, self.rng, held_out=False, level=self.level[task])

    def learn(self, batch: Batch, is_right: np.ndarray) -> None:
        """Take in which targets of a batch were predicted: bool[N, W], true where nothing counts."""
        results: dict[str, list[bool]] = defaultdict(list)
        for n, tasks in enumerate(batch.tasks):
            row = {name: array[n] for name, array in batch.arrays.items()}
            counts = row["targets"] > 0
            for number, branch in np.unique(np.stack([row["document_ids"], row["branches"]])[:, counts], axis=1).T:
                mine = (row["document_ids"] == number) & (row["branches"] == branch)
                results[tasks[number - 1]].append(bool(is_right[n][mine].all()))
        for task, each in results.items():
            kept = 0.99 ** len(each)
            self.accuracy[task] = kept * self.accuracy[task] + (1 - kept) * float(np.mean(each))
            if self.accuracy[task] > 0.75 and self.level[task] < 1:
                self.level[task], self.accuracy[task] = min(1.0, self.level[task] * 1.5), 0.5


def loss_and_hits(model: Mistral, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy of the answers' tokens, and bool[N, W]: whether the likeliest token is the target."""
    document_ids, branches = batch["document_ids"], batch["branches"]
    width = document_ids.shape[1]
    is_same = document_ids[:, :, None] == document_ids[:, None, :]
    is_seen = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    mask = is_same & is_seen & jnp.tril(jnp.ones((width, width), bool))
    logits = model.logits(model(batch["token_ids"], batch["positions"], mask))
    counts = batch["targets"] > 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
    loss = jnp.sum(losses * counts) / jnp.maximum(jnp.sum(counts), 1)
    return loss, (jnp.argmax(logits, axis=-1) == batch["targets"]) | ~counts


type Params = dict[str, jax.Array]


def make_optimizer(params: Params) -> optax.GradientTransformation:
    """Muon at rate 1 (the step multiplies by the rate); the embedding, though a matrix, goes to Adam."""
    numbers = optax.contrib.MuonDimensionNumbers()
    matrices: Any = {
        path: numbers if value.ndim == 2 and "embedding" not in path else None for path, value in params.items()
    }
    muon = optax.contrib.muon(
        1.0,
        mu_dtype=jnp.bfloat16,
        consistent_rms=0.2,
        weight_decay=0.01,
        adam_b2=0.95,
        muon_weight_dimension_numbers=matrices,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


class Trainer:
    """Owns weights and optimizer state; `step` moves them."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        self.graph, state = nnx.split(Mistral(config, nnx.Rngs(seed)))
        paths, self.tree = jax.tree.flatten_with_path(state)
        self.params = {jax.tree_util.keystr(path): value for path, value in paths}
        self.optimizer = make_optimizer(self.params)
        self.state = self.optimizer.init(self.params)
        self._step = jax.jit(self._step_of, donate_argnums=(0, 1))
        self.is_right = jax.jit(lambda params, batch: loss_and_hits(self.model(params, jnp.float32), batch)[1])

    def model(self, params: Params, product_dtype: jax.typing.DTypeLike) -> Mistral:
        model = nnx.merge(self.graph, self.tree.unflatten(params.values()))
        model.set_product_dtype(product_dtype)
        return model

    def step(self, batches: list[Batch], rate: float) -> tuple[jax.Array, list[jax.Array]]:
        """One update by the mean of the batches' gradients. Returns the loss and each batch's hits, not yet computed."""
        arrays = [batch.arrays for batch in batches]
        self.params, self.state, loss, hits = self._step(self.params, self.state, arrays, rate)
        return loss, hits

    def _step_of(
        self, params: Params, state: optax.OptState, batches: list[dict[str, jax.Array]], rate: float
    ) -> tuple[Any, ...]:
        def total(params: Params) -> tuple[jax.Array, list[jax.Array]]:
            losses, hits = zip(
                *[loss_and_hits(self.model(params, jnp.bfloat16), batch) for batch in batches], strict=True
            )
            return jnp.mean(jnp.stack(losses)), list(hits)

        (loss, hits), gradients = jax.value_and_grad(total, has_aux=True)(params)
        updates, state = self.optimizer.update(gradients, state, params)
        return jax.tree.map(lambda p, u: p + rate * u, params, updates), state, loss, hits

    def save(self, path: Path, notes: dict[str, Any]) -> None:
        leaves = jax.tree.leaves((self.params, self.state))
        arrays = {str(n): np.asarray(leaf, np.float32) for n, leaf in enumerate(leaves)}
        save_file(arrays, path.with_suffix(".new"), metadata={"notes": json.dumps(notes)})
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> dict[str, Any]:
        """Take weights and optimizer state from a file that `save` wrote; returns its notes."""
        leaves, tree = jax.tree.flatten((self.params, self.state))
        with safe_open(path, framework="numpy") as file:
            saved = [jnp.asarray(file.get_tensor(str(n)), leaf.dtype) for n, leaf in enumerate(leaves)]
            notes = json.loads((file.metadata() or {}).get("notes", "{}"))
        self.params, self.state = tree.unflatten(saved)
        return notes


def rate_at(share: float, step: int) -> float:
    """The learning rate when this share of the time is gone: up, level, down to zero."""
    return PEAK_RATE * min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (1 - share) / DECAY_SHARE))


# ---- evaluation ----


def evaluations() -> dict[str, tuple[str, Callable[[Example], bool]]]:
    """Name -> (task, which of its held-out examples). Every task as it is drawn, and the largest examples of four."""

    def is_three_digits(example: Example) -> bool:
        return [len(number) for number in re.findall(r"\d+", example.prompt)] == [3, 3]

    every: dict[str, tuple[str, Callable[[Example], bool]]] = {task: (task, lambda _: True) for task in TASKS}
    return every | {
        "add, 3 digits each": ("add", is_three_digits),
        "subtract, 3 digits each": ("subtract", is_three_digits),
        f"sort, {MAX_SIZE} items": ("sort", lambda example: example.answer.count(",") == MAX_SIZE - 1),
        FULL_RECALL: ("recall", lambda _: True),
    }


def held_out_examples(name: str, num: int, rng: random.Random) -> list[Example]:
    """Distinct held-out examples of an evaluation, as many as there are, up to `num`."""
    task, is_wanted = evaluations()[name]
    found: dict[str, Example] = {}
    for _ in range(200 * num):
        if name == FULL_RECALL:
            question, example = recall(rng, True, 1.0, MAX_PAIRS)
            if not is_held_out(task, question):
                continue
        else:
            example = draw(task, rng, held_out=True)
        if is_wanted(example):
            found.setdefault(f"{example.is_chat} {example.prompt} {example.tools}", example)
        if len(found) == num:
            break
    return list(found.values())


def evaluate(
    trainer: Trainer, tokenizer: tokenizers.Tokenizer, num: int, seed: int = 1234
) -> dict[str, tuple[float, int]]:
    """Name -> (share of held-out examples answered exactly, how many there were), in float32."""
    results: dict[str, tuple[float, int]] = {}
    for name in evaluations():
        examples = held_out_examples(name, num, random.Random(f"{seed} {name}"))
        documents = [encode(tokenizer, [example]) for example in examples]
        longest = max(len(document.token_ids) for document in documents)
        width = next(width for width in (64, 128, 1152) if width >= longest)
        right = exact(trainer, documents, (max(2, 4096 // width), width))
        results[name] = (float(np.mean(right)), len(right))
    return results


def exact(trainer: Trainer, documents: list[Document], shape: tuple[int, int]) -> list[bool]:
    """Whether each document's answer would be generated exactly; one document a window."""
    right: list[bool] = []
    for start in range(0, len(documents), shape[0]):
        some = documents[start : start + shape[0]]
        arrays = {name: np.zeros(shape, np.int32) for name in ARRAY_NAMES}
        for n, document in enumerate(some):
            put_document(arrays, n, 0, 1, document)
        right.extend(np.asarray(trainer.is_right(trainer.params, arrays)).all(axis=1)[: len(some)].tolist())
    return right


# ---- the run ----


def prefetched(course: Course) -> Iterator[list[Batch]]:
    """Batches of one step after the other, made in a thread. Every step has short examples; of four steps, one has long
    ones too, and all have recall contexts (one, once mastered), in windows as small as their level allows."""
    ready: queue.Queue[list[Batch]] = queue.Queue(maxsize=3)
    short = (each for each in course.documents() if len(each.token_ids) <= SHORT_WINDOWS[1])
    long = (each for each in course.documents() if len(each.token_ids) > SHORT_WINDOWS[1])
    recalls = course.recall_documents()

    def fill() -> None:
        for step in itertools.count():
            batches = [pack(short, SHORT_WINDOWS)]
            if step % 4 == 0:
                batches.append(pack(long, LONG_WINDOWS))
            if step % 4 == 1 or course.accuracy["recall"] < 0.97:
                longest = course.level["recall"] * MAX_PAIRS * 6 + NUM_QUERIES * 8 + 4
                batches.append(pack(recalls, next(shape for shape in RECALL_WINDOWS if shape[1] >= longest)))
            ready.put(batches)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        yield ready.get()


def report(took: dict[str, float], loss: float, course: Course) -> None:
    tasks = " ".join(f"{task}={accuracy:.2f}/{course.level[task]:.1f}" for task, accuracy in course.accuracy.items())
    counts = f"{took['seconds']:.0f} s, step {took['num_steps']}, {took['num_tokens'] / 1e6:.2f}M tokens"
    print(f"{counts}: loss {loss:.3f} {tasks}", flush=True)


def train(trainer: Trainer, course: Course, args: argparse.Namespace) -> dict[str, float]:
    """Train for `args.seconds`, counted over all the runs that continued one another. Returns what it took."""
    took = {"num_tokens": 0, "num_steps": 0, "seconds": 0.0}
    if args.start_from:
        notes = trainer.load(args.start_from)
        took, course.level, course.accuracy = notes["took"], notes["level"], notes["accuracy"]
        course.rng.seed(f"{args.seed} {took['num_steps']}")  # other examples than the ones before
    start = time.monotonic() - took["seconds"]
    saved = 0.0
    for batches in prefetched(course):
        took["seconds"] = time.monotonic() - start
        share = took["seconds"] / args.seconds
        is_over = share >= 1
        if args.checkpoint and (is_over or took["seconds"] - saved > CHECKPOINT_SECONDS):
            saved = took["seconds"]
            trainer.save(args.checkpoint, {"took": took, "level": course.level, "accuracy": course.accuracy})
        if is_over:
            return took
        loss, hits = trainer.step(batches, rate_at(share, took["num_steps"]))
        for batch, is_right in zip(batches, hits, strict=True):
            course.learn(batch, np.asarray(is_right))
            took["num_tokens"] += int((batch.arrays["document_ids"] > 0).sum())
        if took["num_steps"] % 100 == 0:
            report(took, float(loss), course)
        took["num_steps"] += 1
    raise AssertionError("batches never end")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model.", epilog="See the head of this file.")
    parser.add_argument("--out", type=Path, default=Path("sarathi_jax/assets/demo"), help="folder to write")
    parser.add_argument("--seconds", type=float, default=4200, help="time to train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-eval", type=int, default=400, help="held-out examples of each task")
    parser.add_argument(
        "--checkpoint", type=Path, help="file to save weights and optimizer state in, every four minutes"
    )
    parser.add_argument("--device-name", default="one CPU", help="what the model card says it was trained on")
    parser.add_argument("--note", default="", help="what the model card says about this run beside its numbers")
    parser.add_argument("--start-from", type=Path, help="a file that --checkpoint wrote")
    args = parser.parse_args()
    tokenizer = build_tokenizer(CONFIG.vocab_size)
    trainer, course = Trainer(CONFIG, args.seed), Course(tokenizer, args.seed)
    took = train(trainer, course, args)
    model = trainer.model(trainer.params, jnp.float32)
    write_folder(args.out, CONFIG, tokenizer, hugging_face_tensors(model))
    results = evaluate(trainer, tokenizer, args.num_eval)
    for name, (accuracy, num) in results.items():
        print(f"{name:28} {accuracy:7.2%} of {num}")
    summary = {
        "num_params": sum(value.size for value in trainer.params.values()),
        "seed": args.seed,
        **took,
        "device": args.device_name,
        "held_out": {name: {"accuracy": round(each, 4), "num_examples": num} for name, (each, num) in results.items()},
    }
    shown = {
        task: Example(task, (Turn(ask, reply),), "", chat, tools) for task, (ask, reply, chat, tools) in SHOWN.items()
    }
    is_right = exact(trainer, [encode(tokenizer, [example]) for example in shown.values()], (len(shown), 128))
    write_card(args.out, CONFIG, summary, args.note, dict(zip(shown, is_right, strict=True)))


if __name__ == "__main__":
    main()
