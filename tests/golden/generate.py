"""Writes the golden files: what Hugging Face transformers computes, for `test_golden.py` to compare with.

Runs in an environment of its own, which has PyTorch and not this package (PyTorch is never a dependency here):

    python3.11 -m venv oracle && oracle/bin/pip install torch==2.13.0
    oracle/bin/pip install transformers==5.24.0 safetensors numpy
    oracle/bin/python tests/golden/generate.py            # all tiny configurations (some minutes)
    oracle/bin/python tests/golden/generate.py NAME ...   # some of them
    oracle/bin/python tests/golden/generate.py --demo     # the demo model, after every new training (seconds)

A tiny configuration is `data/NAME/config.json`, the text as transformers wrote it (or, for "old" ones, in the form of
transformers 4), and `data/NAME/golden.npz`. Weights are int8 times 2**-6, so that these models are small files and every
reader gets exactly the same float32 values. Logits come from one forward of the whole prompt without a cache, greedy
tokens from `model.generate` with its cache; eager attention, float32, one thread. Both are checked against a float64
forward here, so a golden file is known to be right to about 1e-5, far inside the 2e-4 which the test allows. The seed of
each configuration is the one of 16 whose smallest top-2 gap over all greedy tokens is over MIN_GAP and whose text
repeats least.

Dynamic NTK in transformers 5 (modeling_rope_utils.dynamic_rope_update): up to max_position_embeddings nothing is
scaled. A forward whose largest position is past it recomputes the frequencies for that length, for the tokens of this
forward only: keys already in a cache keep the rotation of their day, so generation with a cache differs from a forward
of the whole, and what a prompt gives depends on what the module saw before it (frequencies only grow back when a
sequence shorter than the maximum comes along). Serving engines instead fix the frequencies once. Golden logits past the
maximum are therefore of one whole forward by a fresh module, which defines them by the length alone; greedy tokens are
given only where prompt and output together stay within the maximum.

LongRoPE (Phi-3) has two sets of frequencies, and transformers computes a sequence anew with the other set when it grows past
the trained length: greedy tokens are given only where prompt and output together lie on one side of it.
"""

import argparse
import copy
import hashlib
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from cases import CASES
from cases.case import Case
from safetensors.numpy import load_file, save_file
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

DATA = Path(__file__).parent / "data"
DEMO_FOLDER = Path(__file__).parents[2] / "sarathi_jax" / "assets" / "demo"
WEIGHT_SCALE = 2.0**-6
NUM_GREEDY_TOKENS = 64
MIN_GAP = 5e-3
SEEDS = range(16)
NUM_TOP = 20
DEMO_CHAT = [{"role": "user", "content": "What is a chunk?"}]
DEMO_TEXTS = (
    "2+3=",
    "502-38=",
    "sort(7,42,3,19)=",
    "copy(blue 42 moon)=",
    "json(name,age): Ana is 31, lives in Oslo, likes red and has 5 pears.=",
    "stall-free → μ-batch",
    "".join(f"{chr(97 + i % 26)}{i // 26}={(i * 37) % 997};" for i in range(160)) + "?f4=",
)


def config_text(case: Case) -> str:
    """config.json as transformers 5 writes it, or the same in the form of transformers 4."""
    config_class = CONFIG_MAPPING[case.family]
    arguments = copy.deepcopy({**case.config, "rope_parameters": case.rope, "eos_token_id": case.eos})
    if case.vision:
        arguments = {"text_config": arguments, "vision_config": copy.deepcopy(case.vision), "eos_token_id": case.eos}
    config = config_class(**arguments, architectures=[MODEL_FOR_CAUSAL_LM_MAPPING[config_class].__name__])
    config.dtype = "float32"
    text = config.to_json_string(use_diff=True)
    if not case.old_style_config:
        return text
    values = json.loads(text)
    values["torch_dtype"] = values.pop("dtype")
    of_text = values.get("text_config", values)
    of_text.pop("layer_types", None)  # once, other fields implied them
    of_text |= old_style_rope(of_text.pop("rope_parameters")) | case.old_fields
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def old_style_rope(rope: dict) -> dict:
    """`rope_parameters` as the fields of transformers 4; one that is by layer type has its local theta in `Case.old_fields`."""
    flat = rope.get("full_attention", rope)
    theta, kind, rotated = flat.pop("rope_theta"), flat.pop("rope_type"), flat.pop("partial_rotary_factor", None)
    if kind == "longrope":
        flat.pop("original_max_position_embeddings")  # it stands outside
    # "type" is the older spelling of "rope_type": these are from its time, models with two embeddings are not.
    name = "type" if kind in ("linear", "longrope") and flat is rope else "rope_type"
    scaling = None if kind == "default" else {name: kind, **flat}
    partial = {} if rotated in (None, 1.0) else {"partial_rotary_factor": rotated}
    return {"rope_theta": theta, "rope_scaling": scaling} | partial


def blank_checkpoint(text: str) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, by the names and in the shapes that transformers saves them, as it initializes them."""
    config = CONFIG_MAPPING[json.loads(text)["model_type"]].from_dict(json.loads(text))
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def random_weights(case: Case, blank: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """int8 weights of every tensor of the checkpoint: norms around what they start at (1, or 0 where 1 is added), the rest around 0."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name in sorted(blank):
        is_norm = name.endswith(".weight") and blank[name].ndim == 1
        center = float(blank[name][0]) if is_norm else 0.0
        center = case.centers.get(name.split(".")[-2], center)
        draw = rng.normal(center, case.std, blank[name].shape) / WEIGHT_SCALE
        weights[name] = np.clip(np.rint(draw), -127, 127).astype(np.int8)
        if name.endswith(".gate.weight"):
            weights[name][list(case.tied_experts)] = 0
    return weights


def write_folder(folder: Path, text: str, weights: dict[str, np.ndarray]) -> None:
    """A Hugging Face model folder, as the test builds it."""
    (folder / "config.json").write_text(text)
    floats = {name: weight.astype(np.float32) * np.float32(WEIGHT_SCALE) for name, weight in weights.items()}
    save_file(floats, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The oracle, read from the folder alone; a fresh one for every prompt, since dynamic NTK has a memory."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    )
    model.generation_config.eos_token_id = None
    return model.eval()


def two_logits(folder: Path, prompt: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """f32[T, V] and f64[T, V] of one whole forward."""
    ids = torch.tensor([prompt])
    logits = load(folder)(input_ids=ids, use_cache=False).logits[0].numpy()
    return logits, load(folder, torch.float64)(input_ids=ids, use_cache=False).logits[0].numpy()


def prompt_logits(folder: Path, prompt: list[int]) -> np.ndarray:
    """f32[T, V] of one whole forward, checked against float64."""
    logits, exact = two_logits(folder, prompt)
    error = np.abs(logits - exact).max()
    assert error < 5e-5, f"the oracle's own float32 error is {error:.1e}: too large for a bound of 2e-4"
    return logits


def greedy_tokens(folder: Path, prompt: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(i32[64] tokens, f32[64] gaps between the two best logits), eos ignored."""
    model = load(folder)
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=NUM_GREEDY_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    best = torch.stack(out.logits)[:, 0].topk(2).values
    return out.sequences[0, len(prompt) :].numpy().astype(np.int32), (best[:, 0] - best[:, 1]).numpy()


def check_cache(folder: Path, prompt: list[int], tokens: np.ndarray) -> None:
    """The oracle's cached generation must agree with one forward of the whole."""
    whole = torch.tensor([[*prompt, *tokens.tolist()]])
    logits = load(folder)(input_ids=whole, use_cache=False).logits[0]
    assert (logits[len(prompt) - 1 : -1].argmax(-1).numpy() == tokens).all(), "cached and whole forward disagree"


def draw_prompts(case: Case, seed: int) -> list[list[int]]:
    """Random prompts over the whole vocabulary."""
    rng = np.random.default_rng([seed, 1])
    return [rng.integers(0, case.config["vocab_size"], length).tolist() for length, _ in case.prompts]


def best_seed(case: Case, text: str) -> int:
    """The seed whose greedy texts repeat least, among those with clear gaps."""
    blank, scores = blank_checkpoint(text), {}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            write_folder(Path(folder), text, random_weights(case, blank, seed))
            runs = [
                greedy_tokens(Path(folder), prompt)
                for prompt, (_, greedy) in zip(draw_prompts(case, seed), case.prompts, strict=True)
                if greedy
            ]
        if min(gaps.min() for _, gaps in runs) > MIN_GAP:
            scores[seed] = sum(len(set(tokens.tolist())) for tokens, _ in runs)
    assert scores, f"{case.name}: no seed of {SEEDS} has all gaps over {MIN_GAP}"
    return max(scores, key=scores.__getitem__)


def write_case(case: Case) -> None:
    """data/NAME/config.json and data/NAME/golden.npz."""
    text = config_text(case)
    seed = best_seed(case, text)
    weights = random_weights(case, blank_checkpoint(text), seed)
    arrays = {f"weight/{name}": weight for name, weight in weights.items()}
    arrays |= {"weight_scale": np.float32(WEIGHT_SCALE), "seed": np.int32(seed)}
    smallest, distinct = np.inf, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder, text, weights)
        for prompt, (length, greedy) in zip(draw_prompts(case, seed), case.prompts, strict=True):
            arrays[f"prompt/{length}"] = np.array(prompt, np.int32)
            arrays[f"logits/{length}"] = prompt_logits(folder, prompt)
            if greedy:
                tokens, gaps = greedy_tokens(folder, prompt)
                check_cache(folder, prompt, tokens)
                arrays[f"greedy/{length}"], arrays[f"gaps/{length}"] = tokens, gaps
                smallest, distinct = min(smallest, gaps.min()), [*distinct, len(set(tokens.tolist()))]
    spread = float(np.std(arrays[f"logits/{case.prompts[0][0]}"]))
    target = DATA / case.name
    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(text)
    np.savez_compressed(target / "golden.npz", **arrays)
    size = (target / "golden.npz").stat().st_size
    print(
        f"{case.name:26} seed {seed:2}  logits std {spread:.2f}  smallest gap {smallest:.4f}  "
        f"distinct greedy tokens {distinct}  {size / 1024:.0f} kB",
        flush=True,
    )


def write_demo() -> None:
    """data/demo.npz: the committed demo model, by the sum of its weights.

    A trained model's logits are larger, and so is the error of any float32 program: logits are those of transformers in float64, `error` is how far
    transformers in float32 is from them. A prompt's logits at every position would be megabytes: kept are the NUM_TOP largest of each position and
    the logarithm of the sum of all exponentials, which every logit of the vocabulary is part of; and the whole row of the last position.
    """
    tokenizer = AutoTokenizer.from_pretrained(DEMO_FOLDER)
    prompts = [tokenizer.encode(text) for text in DEMO_TEXTS]
    prompts.append(tokenizer.apply_chat_template(DEMO_CHAT, add_generation_prompt=True, return_dict=False))
    weights = (DEMO_FOLDER / "model.safetensors").read_bytes()
    arrays = {"sha256": np.array(hashlib.sha256(weights).hexdigest()), "texts": np.array(DEMO_TEXTS)}
    arrays["chat"] = np.array(json.dumps(DEMO_CHAT))
    for index, prompt in enumerate(prompts):
        rough, logits = two_logits(DEMO_FOLDER, prompt)
        top = np.argsort(-logits, axis=-1)[:, :NUM_TOP]
        tokens, gaps = greedy_tokens(DEMO_FOLDER, prompt)
        error = np.abs(rough - logits).max()
        arrays[f"prompt/{index}"], arrays[f"error/{index}"] = np.array(prompt, np.int32), np.float32(error)
        arrays[f"top_ids/{index}"] = top.astype(np.int32)
        arrays[f"top_logits/{index}"] = np.take_along_axis(logits, top, axis=-1).astype(np.float32)
        arrays[f"logsumexp/{index}"] = np.log(np.exp(logits).sum(-1)).astype(np.float32)
        arrays[f"last_logits/{index}"] = logits[-1].astype(np.float32)
        arrays[f"greedy/{index}"], arrays[f"gaps/{index}"] = tokens, gaps
        print(
            f"{len(prompt):5} tokens  largest logit {np.abs(logits).max():.1f}  float32 error {error:.1e}  "
            f"smallest gap {gaps.min():.4f}  {tokenizer.decode(tokens)[:50]!r}"
        )
    np.savez_compressed(DATA / "demo.npz", **arrays)


def main() -> None:
    """Command line: see the module's text."""
    parser = argparse.ArgumentParser(description="Write golden files with Hugging Face transformers.")
    parser.add_argument("names", nargs="*", help="tiny configurations to write; none given means all")
    parser.add_argument("--demo", action="store_true", help="write the demo model's golden file instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    logging.disable_progress_bar()
    if args.demo:
        write_demo()
        return
    unknown = set(args.names) - {case.name for case in CASES}
    assert not unknown, f"no such configuration: {sorted(unknown)}"
    for case in CASES:
        if not args.names or case.name in args.names:
            write_case(case)


if __name__ == "__main__":
    main()
