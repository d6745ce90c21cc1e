"""Same tokens, whatever the scheduling: greedy and seeded sampling, over chunk sizes, batches, budgets, prefix cache, preemption, and both loops.

What the tokens must be comes from no engine: `Reference` runs the dense forward over whole sequences, without a cache or batching, applies penalties in
numpy, and draws with the key fold_in(seed, position). Two float32 programs differ in the last bits, so a token counts only up to the first position of its
request where shifting every logit by up to LOGIT_ERROR could change it (for greedy: where the gap between the two best logits is below twice that bound).
LOGIT_ERROR is four times the largest difference from transformers that was seen over all golden models.

Each model has one executor, whose programs are compiled once; every example makes a scheduler and an engine of its own over it.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from sarathi_jax import SamplingParams
from sarathi_jax.checkpoints.loader import load_params
from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.clock import VirtualClock
from sarathi_jax.engine.engine import Engine
from sarathi_jax.engine.records import StepRecord
from sarathi_jax.execution.buckets import Bucket, BucketTable, Variant
from sarathi_jax.execution.compile_ledger import CompileLedger
from sarathi_jax.execution.device_runner import LocalRunner
from sarathi_jax.execution.executor import JaxExecutor
from sarathi_jax.execution.packing import Geometry
from sarathi_jax.execution.programs import ProgramBuilder
from sarathi_jax.execution.sampling import sample, unpack_sampling_rows
from sarathi_jax.execution.sampling_row import pack_sampling_row
from sarathi_jax.kernels import registry
from sarathi_jax.models import CausalLM, causal_lm_logits, param_sources
from sarathi_jax.outputs import RequestOutput
from sarathi_jax.scheduling.policies import POLICIES
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import abstract_model
from sarathi_jax.sharding.rules import MEGATRON

LOGIT_ERROR = 5e-5
NUM_SHIFTS = 16
MAX_PROMPT, MAX_OUTPUT = 150, 20
SHARED_PREFIX = 48

WIDE = {
    "model_type": "llama",
    "vocab_size": 131,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 176,
    "eos_token_id": [3, 50, 77, 128],
}
NARROW = {
    "model_type": "mistral",
    "vocab_size": 13,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "sliding_window": 19,
    "max_position_embeddings": 176,
    "eos_token_id": 12,
}


SHARED_LIMITS = ("num_pages", "page_size", "max_num_seqs", "max_model_len", "vocab_size")


@dataclass(frozen=True)
class Call:
    """A request."""

    prompt: list[int]
    params: SamplingParams


def write_folder(folder: Path, config: Mapping[str, Any], std: float) -> Path:
    """A model folder with random weights whose logits are far apart."""
    (folder / "config.json").write_text(json.dumps({"rms_norm_eps": 1e-6, "tie_word_embeddings": False, **config}))
    rng = np.random.default_rng(0)
    specs = [spec for source in param_sources(read_model_config(folder)).values() for spec in source.tensors]
    weights = {spec.name: rng.normal(float("norm" in spec.name), std, spec.shape).astype(np.float32) for spec in specs}
    save_file(weights, folder / "model.safetensors")
    return folder


def draw_calls(vocab_size: int, count: int) -> list[Call]:
    """Requests of all lengths: every third is greedy, a third begins with the same prefix, some have penalties, biases or a minimum length."""
    rng = random.Random(1)
    prefix = [rng.randrange(vocab_size) for _ in range(SHARED_PREFIX)]
    calls = []
    for index in range(count):
        length = round(MAX_PROMPT ** rng.random())
        prompt = [rng.randrange(vocab_size) for _ in range(length)]
        if index % 3 == 1:
            prompt = (prefix + prompt)[:MAX_PROMPT]
        options: dict[str, Any] = {"max_tokens": rng.randint(1, MAX_OUTPUT), "seed": rng.getrandbits(62)}
        options["temperature"] = 0.0 if index % 3 == 0 else rng.uniform(0.3, 1.5)
        options |= rng.choice([{}, {}, {"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}])
        options |= {1: {"repetition_penalty": 1.3, "frequency_penalty": 0.5}, 4: {"min_tokens": 1}}.get(index % 8, {})
        options |= {6: {"logit_bias": {2: 1.5, 9: -4.0}, "presence_penalty": 0.7}}.get(index % 8, {})
        calls.append(Call(prompt, SamplingParams(ignore_eos=index % 5 == 0, **options)))
    return calls


def adjusted(logits: np.ndarray, call: Call, output: Sequence[int], eos: Sequence[int]) -> np.ndarray:
    """A row's logits after bias, minimum length and penalties, by their definitions."""
    row, params = logits.astype(np.float32).copy(), call.params
    for token, bias in (params.logit_bias or {}).items():
        row[token] += np.float32(bias)
    if len(output) < params.min_tokens and not params.ignore_eos:
        row[list(eos)] = -np.inf
    for token in {*call.prompt, *output}:
        penalty = np.float32(params.repetition_penalty)
        row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    for token in set(output):
        row[token] -= np.float32(params.frequency_penalty) * output.count(token) + np.float32(params.presence_penalty)
    return row


class Reference:
    """What every call must give: its tokens up to the first that rounding could change, or to its end."""

    def __init__(self, model: CausalLM, calls: Sequence[Call]) -> None:
        self.calls, self.model = calls, model
        self.eos = model.config.eos_token_ids
        self.tokens: list[list[int]] = [[] for _ in calls]
        self.is_whole = [False] * len(calls)
        self._rng = np.random.default_rng(0)
        self._controls = np.stack([pack_sampling_row(call.params, call.params.seed or 0) for call in calls])
        going = list(range(len(calls)))
        while going:
            going = [index for index, draws in zip(going, self._draws(going), strict=True) if self._take(index, draws)]

    def _draws(self, going: Sequence[int]) -> np.ndarray:
        """i32[len(going), 1 + NUM_SHIFTS]: the next token of each, from its logits as they are and from shifted ones."""
        ids = np.zeros((len(self.calls), MAX_PROMPT + MAX_OUTPUT), np.int32)
        sequences = [[*call.prompt, *tokens] for call, tokens in zip(self.calls, self.tokens, strict=True)]
        for index, sequence in enumerate(sequences):
            ids[index, : len(sequence)] = sequence
        lens = np.array(list(map(len, sequences)), np.int32)
        logits = np.asarray(_next_logits(self.model, jnp.asarray(ids), jnp.asarray(lens)))
        rows = np.stack([adjusted(logits[i], self.calls[i], self.tokens[i], self.eos) for i in range(len(self.calls))])
        shifts = self._rng.choice(np.array([-LOGIT_ERROR, LOGIT_ERROR], np.float32), (NUM_SHIFTS, *rows.shape))
        shifted = np.stack([rows, *(rows[None] + shifts)])
        drawn = _sample_all(jnp.asarray(shifted), jnp.asarray(self._controls), jnp.asarray(lens))
        return np.asarray(drawn).T[list(going)]

    def _take(self, index: int, draws: np.ndarray) -> bool:
        """Append a token if it is sure. Returns: whether the call goes on."""
        params, tokens = self.calls[index].params, self.tokens[index]
        if (draws != draws[0]).any():
            return False
        tokens.append(int(draws[0]))
        is_stop = tokens[-1] in self.eos and not params.ignore_eos and len(tokens) > params.min_tokens
        self.is_whole[index] = is_stop or len(tokens) == params.max_tokens
        return not self.is_whole[index]


@jax.jit
def _next_logits(model: CausalLM, ids: jax.Array, lens: jax.Array) -> jax.Array:
    """f32[R, V]: after the first lens tokens of each row; what follows them is padding that causal attention never sees."""
    logits = jax.vmap(causal_lm_logits, in_axes=(None, 0))(model, ids)
    return jnp.take_along_axis(logits, lens[:, None, None] - 1, axis=1)[:, 0]


@jax.jit
def _sample_all(logits: jax.Array, rows: jax.Array, lens: jax.Array) -> jax.Array:
    """i32[N, R]: a draw from each of f32[N, R, V]."""
    controls, _ = unpack_sampling_rows(rows, lens)
    return jax.lax.map(lambda each: sample(each, controls).token_ids, logits)


class Checked(NamedTuple):
    """A run whose tokens were right."""

    records: list[StepRecord]
    outputs: list[RequestOutput]

    @property
    def num_preemptions(self) -> int:
        return sum(record.num_preemptions for record in self.records)


class Rig:
    """One executor, and what its requests must give.

    buckets: a few of those that `LLM` would compile, since each costs seconds.
    """

    def __init__(
        self, folder: Path, num_calls: int, num_pages: int, max_num_seqs: int, buckets: Sequence[Bucket]
    ) -> None:
        config, mesh, ledger = read_model_config(folder), make_mesh({}), CompileLedger()
        state = abstract_model(config, jnp.dtype("float32"), mesh, MEGATRON)
        params = state.flat(load_params(folder, config, state.parameters))
        table = BucketTable(buckets[-1].num_tokens, max_num_seqs)
        table.buckets = tuple(buckets)
        kernels = registry.choose_kernels(registry.use_on(mesh.devices.flat[0], "float32", config.head_dim))
        max_model_len = config.max_position_embeddings
        geometry = Geometry(num_pages, 4, max_model_len // 4, max_num_seqs, max_model_len, config.vocab_size)
        builder = ProgramBuilder(state, geometry, kernels, jnp.dtype("float32"), ledger)
        programs = builder.compile_all(table.buckets, progress=False)
        self.executor = JaxExecutor(LocalRunner(programs, params), table, geometry, config.eos_token_ids)
        self.limits = {name: getattr(geometry, name) for name in SHARED_LIMITS}
        self.reference = Reference(state.merge(params), draw_calls(config.vocab_size, num_calls))
        self.calls = self.reference.calls

    def engine(self, *, overlap: bool = True, policy: str = "sarathi", **options: Any) -> Engine:
        """A new engine over the executor; options are the scheduler's."""
        budget = self.executor.table.buckets[-1].num_tokens
        scheduler = Scheduler(policy, **{"token_budget": budget, **self.limits, **options})
        eos = self.reference.eos
        return Engine(
            scheduler, self.executor, VirtualClock(), is_overlapped=overlap, tokenizer=None, eos_token_ids=eos
        )

    def check(self, indices: Sequence[int], **options: Any) -> Checked:
        """Run these calls together and compare their tokens."""
        engine = self.engine(**options)
        outputs: dict[str, RequestOutput] = {}
        for number, index in enumerate(indices):
            engine.add_request(self.calls[index].prompt, self.calls[index].params, request_id=f"{number}:{index}")
        while engine.has_unfinished:
            outputs |= {event.request_id: event.output for event in engine.step() if event.output is not None}
        engine.scheduler.check_integrity()
        assert len(outputs) == len(indices)
        for name, output in outputs.items():
            self.compare(int(name.split(":")[1]), output.outputs[0].token_ids)
        return Checked(list(engine.records), list(outputs.values()))

    def compare(self, index: int, token_ids: Sequence[int]) -> None:
        """Tokens of one call with the reference's."""
        expected, is_whole = self.reference.tokens[index], self.reference.is_whole[index]
        compared = list(token_ids) if is_whole else list(token_ids)[: len(expected)]
        assert compared == expected, f"call {index}: {self.calls[index]}"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """The large one: 64 requests at a time, steps of up to 2048 tokens."""
    mixed = [Bucket(2048, 64, False, variant) for variant in Variant]
    decode = [Bucket(1, 1, True, Variant.GREEDY), *(Bucket(64, 64, True, variant) for variant in Variant)]
    buckets = [*decode, Bucket(256, 64, False, Variant.FULL), *mixed]
    return Rig(write_folder(tmp_path_factory.mktemp("wide"), WIDE, 0.25), 64, 64 * 44, 64, buckets)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """The small one: a sliding window, one KV head, 13 tokens to choose from."""
    kinds = [(variant, is_decode_only) for variant in Variant for is_decode_only in (True, False)]
    buckets = [Bucket(8 if is_decode_only else 64, 8, is_decode_only, variant) for variant, is_decode_only in kinds]
    return Rig(write_folder(tmp_path_factory.mktemp("narrow"), NARROW, 0.4), 24, 100, 8, buckets)


def test_the_reference_is_sure_of_nearly_all_tokens(wide: Rig, narrow: Rig):
    for rig in (wide, narrow):
        assert np.mean(rig.reference.is_whole) >= 0.9
        assert len({tuple(tokens) for tokens in rig.reference.tokens}) > 0.7 * len(rig.calls)


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("chunk", [1, 7, 16, 128, None])
def test_chunk_sizes_and_batches(wide: Rig, chunk: int | None, batch: int):
    calls = range(64) if batch == 64 else range(3, 15)
    run = wide.check(calls, max_num_seqs=batch, long_prefill_token_threshold=chunk, is_prefix_caching=False)
    most = max(record.num_prefill_tokens for record in run.records)
    assert most > MAX_PROMPT / 2 if chunk is None else most <= chunk * batch


@pytest.mark.parametrize("budget", [64, 100, 256, 640, 2048])
@pytest.mark.parametrize("overlap", [True, False])
def test_token_budgets_and_loops(wide: Rig, budget: int, overlap: bool):
    wide.check(range(64), token_budget=budget, overlap=overlap)


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("overlap", [True, False])
def test_policies(wide: Rig, overlap: bool, policy: str):
    """With a budget that few prompts fit in, and pages for two of the longest requests: all but the two that reserve preempt."""
    run = wide.check(range(64), policy=policy, overlap=overlap, token_budget=256, num_pages=120)
    assert (run.num_preemptions == 0) == (policy in ("orca", "request_level"))


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_policies_with_forced_preemption(wide: Rig, policy: str):
    assert wide.check(range(64), policy=policy, token_budget=256, preempt_every_steps=3).num_preemptions >= 5


@pytest.mark.parametrize("is_prefix_caching", [True, False])
@pytest.mark.parametrize("overlap", [True, False])
def test_preemption_every_three_steps(wide: Rig, overlap: bool, is_prefix_caching: bool):
    options = {"token_budget": 256, "overlap": overlap, "is_prefix_caching": is_prefix_caching}
    assert wide.check(range(64), preempt_every_steps=3, **options).num_preemptions >= 5


def test_prefix_cache_hits(wide: Rig):
    """Twice the same requests: the second time, and where prompts share a prefix, pages are found."""
    run = wide.check([*range(64), *range(64)], max_num_seqs=8)
    assert sum(output.metrics.num_prefix_hit_tokens for output in run.outputs) > 64 * SHARED_PREFIX / 3


def test_few_pages_preempt_by_themselves(wide: Rig):
    assert wide.check(range(64), num_pages=120).num_preemptions > 0


@st.composite
def mixes(draw: st.DrawFn, num_calls: int, max_num_seqs: int, budgets: tuple[int, int], pages: tuple[int, int]) -> Any:
    """(calls, scheduling options)."""
    plain = [index for index in range(num_calls) if index % 8 not in (1, 4, 6)]
    greedy = [index for index in plain if index % 3 == 0]
    kind = draw(st.sampled_from([range(num_calls), plain, greedy]))
    calls = draw(st.lists(st.sampled_from(kind), min_size=1, max_size=2 * max_num_seqs))
    rows = draw(st.integers(1, max_num_seqs))
    options: dict[str, Any] = {
        "max_num_seqs": rows,
        "token_budget": draw(st.integers(max(budgets[0], rows), budgets[1])),
        "num_pages": draw(st.integers(*pages)),
        "long_prefill_token_threshold": draw(st.sampled_from([None, None, 5, 7, 16, 33, 128])),
        "max_num_partial_prefills": draw(st.sampled_from([None, 1, 2, 5])),
        "preempt_every_steps": draw(st.sampled_from([None, None, 2, 3, 7])),
        "is_prefix_caching": draw(st.booleans()),
        "is_head_of_line_blocking": draw(st.booleans()),
        "watermark": draw(st.sampled_from([0.0, 0.01, 0.2])),
        "overlap": draw(st.booleans()),
    }
    return calls, options


@settings(max_examples=30)
@given(mixes(64, 64, (64, 2048), (50, 2800)))
def test_random_mixes(wide: Rig, mix: tuple[list[int], dict[str, Any]]):
    wide.check(mix[0], **mix[1])


@settings(max_examples=60)
@given(mixes(24, 8, (8, 64), (48, 100)))
def test_random_mixes_with_a_window(narrow: Rig, mix: tuple[list[int], dict[str, Any]]):
    narrow.check(mix[0], **mix[1])


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([None, 3]))
def test_arrivals_and_aborts_change_no_other(narrow: Rig, seed: int, overlap: bool, preempt: int | None):
    rng = random.Random(seed)
    engine = narrow.engine(overlap=overlap, preempt_every_steps=preempt, num_pages=rng.randint(48, 100))
    waiting = rng.sample(range(24), 24)
    while waiting or engine.has_unfinished:
        for index in [waiting.pop() for _ in range(min(len(waiting), rng.choice([0, 0, 1, 3])))]:
            engine.add_request(narrow.calls[index].prompt, narrow.calls[index].params, request_id=str(index))
        if rng.random() < 0.1:
            engine.abort(str(rng.randrange(24)))
        for event in engine.step() if engine.has_unfinished else ():
            if event.output is not None and event.finish_reason != "abort":
                narrow.compare(int(event.request_id), event.output.outputs[0].token_ids)
    engine.scheduler.check_integrity()
