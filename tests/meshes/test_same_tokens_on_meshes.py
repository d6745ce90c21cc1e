"""Same tokens on every mesh, for every family: what a dense forward on one device gives, by an engine that preempts and has a prefix cache."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from sarathi_jax.checkpoints.loader import load_params
from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.clock import WallClock
from sarathi_jax.config import EngineConfig
from sarathi_jax.engine.engine import Engine
from sarathi_jax.engine.executor import StepHandle
from sarathi_jax.engine.replicas import EngineReplicas
from sarathi_jax.execution.buckets import Bucket, BucketTable, Variant
from sarathi_jax.execution.build import compile_engine
from sarathi_jax.execution.device_runner import Runner, StepWords
from sarathi_jax.generate import load_model
from sarathi_jax.models import causal_lm_logits, param_sources
from sarathi_jax.outputs import RequestOutput
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.sharding.mesh import make_mesh, replica_meshes
from sarathi_jax.sharding.model_state import abstract_model
from sarathi_jax.sharding.rules import MEGATRON, REPLICATED, SEQUENCE, Rules
from sarathi_jax.structured import StructuredOutput

VOCAB, MAX_LEN, NUM_NEW = 64, 64, 10
# Two float32 programs differ by less than a tenth of this in these models.
MIN_GAP = 1e-3
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": MAX_LEN,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**SIZES},
    "mistral": {**SIZES, "sliding_window": 9},
    "qwen2": {**SIZES},
    "qwen3": {**SIZES},
    "falcon": {
        **SIZES,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "ffn_hidden_size": 32,
        "head_dim": None,
        "hidden_size": 64,
        "alibi": False,
    },
    "phi3": {**SIZES, "sliding_window": 9, "partial_rotary_factor": 0.5, "bos_token_id": 1, "pad_token_id": 0},
    # Two layers a stage, since they come in two kinds.
    "gemma2": {**SIZES, "num_hidden_layers": 8, "sliding_window": 9, "tie_word_embeddings": True},
    "gemma3_text": {
        **SIZES,
        "num_hidden_layers": 8,
        "sliding_window": 9,
        "layer_types": ["sliding_attention", "full_attention"] * 4,
        "tie_word_embeddings": True,
    },
    "mixtral": {**SIZES, "num_local_experts": 8, "sliding_window": 9},
    "qwen3_moe": {
        **SIZES,
        "num_hidden_layers": 8,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 16,
        "decoder_sparse_step": 2,
    },
}
ENGINE = EngineConfig(token_budget=16, max_num_seqs=4, max_model_len=MAX_LEN, page_size=4, num_pages=60)


def draw_prompts() -> list[list[int]]:
    """Of 1 to 50 tokens; the last two begin alike."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, VOCAB, length).tolist() for length in (1, 7, 50, 19, 24, 12)]
    return [*prompts[:-2], prompts[2][:21] + prompts[-2], prompts[2][:21] + prompts[-1]]


PROMPTS = draw_prompts()


@dataclass(frozen=True)
class FamilyModel:
    """A folder, and what a dense forward on one device continues each prompt with."""

    folder: Path
    tokens: list[list[int]]


@pytest.fixture(scope="session")
def make_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], FamilyModel]:
    """Family -> its tiny model, made once."""
    made: dict[str, FamilyModel] = {}

    def make(family: str) -> FamilyModel:
        if family not in made:
            made[family] = _write_model(tmp_path_factory.mktemp(family), family)
        return made[family]

    return make


def _write_model(folder: Path, family: str) -> FamilyModel:
    (folder / "config.json").write_text(json.dumps({"model_type": family, **FAMILIES[family]}))
    config = read_model_config(folder)
    specs = {spec.name: spec for source in param_sources(config).values() for spec in source.tensors}
    rng, ones = np.random.default_rng(1), float(config.norm != "rms_plus_one")
    weights = {
        name: rng.normal(ones if "norm" in name or "ln_" in name else 0.0, 0.3, spec.shape).astype(np.float32)
        for name, spec in specs.items()
    }
    save_file(weights, folder / "model.safetensors")
    return FamilyModel(folder, _dense_tokens(folder))


def _dense_tokens(folder: Path) -> list[list[int]]:
    model = load_model(str(folder))
    forward = jax.jit(causal_lm_logits)
    tokens: list[list[int]] = []
    for prompt in PROMPTS:
        known = list(prompt)
        for _ in range(NUM_NEW):
            padded = np.zeros(MAX_LEN, np.int32)
            padded[: len(known)] = known
            logits = np.asarray(forward(model, jnp.asarray(padded)))[len(known) - 1]
            second, best = np.sort(logits)[-2:]
            assert best - second > MIN_GAP, "weights whose best tokens are clear"
            known.append(int(logits.argmax()))
        tokens.append(known[len(prompt) :])
    return tokens


class FailingRunner:
    """A runner whose steps of these numbers fail, and take the state along."""

    def __init__(self, runner: Runner, failing: set[int]) -> None:
        self.runner = runner
        self.failing = failing
        self.num_steps = 0

    def run_step(self, bucket: Bucket, packed: np.ndarray) -> StepWords:
        self.num_steps += 1
        if self.num_steps in self.failing:
            raise jax.errors.JaxRuntimeError("INTERNAL: a fault")
        return self.runner.run_step(bucket, packed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)


@dataclass
class Residues:
    """Allows, at each place, tokens with one remainder by 5."""

    number: int
    num_taken: int = 0
    is_ended: bool = False

    def _is_allowed(self, token_id: int) -> bool:
        return token_id % 5 == (self.number + self.num_taken) % 5

    def mask(self) -> np.ndarray:
        bits = np.array([self._is_allowed(token_id) for token_id in range(VOCAB)])
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def accept(self, token_id: int) -> bool:
        assert self._is_allowed(token_id)
        self.num_taken += 1
        return True

    def copy(self) -> "Residues":
        return Residues(self.number, self.num_taken)


@dataclass(frozen=True)
class MeshRun:
    """What an engine on a mesh gave: tokens of each prompt, and how it went. num_chained: steps of a pipeline that went on with a request of one under way."""

    outputs: list[RequestOutput]
    num_replicas_used: int
    max_in_flight: int
    num_chained: int

    @property
    def tokens(self) -> list[list[int]]:
        return [output.outputs[0].token_ids for output in self.outputs]

    @property
    def num_preemptions(self) -> int:
        return sum(output.metrics.num_preemptions for output in self.outputs)

    @property
    def num_prefix_hit_tokens(self) -> int:
        return sum(output.metrics.num_prefix_hit_tokens for output in self.outputs)


def run_on_mesh(
    folder: Path,
    mesh: dict[str, int],
    rules: Rules = MEGATRON,
    *,
    policy: str = "sarathi",
    variants: Sequence[Variant] = (Variant.GREEDY,),
    failing: set[int] | None = None,
    is_constrained: bool = False,
    **options: Any,
) -> MeshRun:
    """All prompts twice, on an engine with preemptions and a prefix cache. failing: numbers of steps that fail. is_constrained: whether every other request is."""
    meshes = replica_meshes(make_mesh(mesh))
    engines = [_make_engine(folder, each, rules, policy, variants, place) for place, each in enumerate(meshes)]
    is_chained = _watch_chains(engines[0])
    for each in engines if failing else ():
        executor: Any = each.loop.executor
        executor.runner = FailingRunner(executor.runner, failing or set())
    engine = engines[0] if len(engines) == 1 else EngineReplicas(engines)
    params = SamplingParams(max_tokens=NUM_NEW, temperature=0.0, ignore_eos=True, **options)
    bound = replace(params, ignore_eos=False, structured=StructuredOutput(regex="any"))
    request_ids = [
        engine.add_request(prompt, bound, constraint=Residues(place))
        if is_constrained and place % 2
        else engine.add_request(prompt, params)
        for place, prompt in enumerate(PROMPTS * 2)
    ]
    outputs, max_in_flight = dict[str, RequestOutput](), 0
    while engine.has_unfinished:
        outputs |= {event.request_id: event.output for event in engine.step() if event.output is not None}
        max_in_flight = max(max_in_flight, *(each.scheduler.num_in_flight for each in engines))
    for each in engines:
        each.scheduler.check_integrity()
    replicas = {record.replica for record in engine.records}
    engine.close()
    return MeshRun([outputs[request_id] for request_id in request_ids], len(replicas), max_in_flight, sum(is_chained))


def _watch_chains(engine: Engine) -> list[bool]:
    """Of each step, as it is submitted: whether stages are still at a step that has one of its requests, too."""
    executor: Any = engine.loop.executor
    scheduler, submit = engine.scheduler, executor.submit
    submitted, is_chained = list[set[str]](), list[bool]()

    def submit_and_look(schedule: Schedule) -> StepHandle:
        submitted.append({row.request_id for row in schedule.rows})
        *under_way, own = submitted[-min(scheduler.num_in_flight, scheduler.limits.num_microbatches) :]
        is_chained.append(any(own & other for other in under_way))
        return submit(schedule)

    executor.submit = submit_and_look
    return is_chained


def _make_engine(
    folder: Path, mesh: jax.sharding.Mesh, rules: Rules, policy: str, variants: Sequence[Variant], replica: int
) -> Engine:
    config = read_model_config(folder)
    state = abstract_model(config, jnp.dtype("float32"), mesh, rules)
    table = BucketTable(ENGINE.step_tokens, ENGINE.max_num_seqs, variants=tuple(variants), is_sparse=True)
    programs = compile_engine(state, ENGINE, table, progress=False)
    params = state.flat(load_params(folder, config, state.parameters, state.layout))
    scheduler = Scheduler(
        policy,
        num_pages=programs.geometry.num_pages,
        page_size=ENGINE.page_size,
        token_budget=ENGINE.step_tokens,
        max_num_seqs=ENGINE.max_num_seqs,
        max_model_len=MAX_LEN,
        vocab_size=VOCAB,
        preempt_every_steps=7,
        num_microbatches=state.num_stages,
    )
    executor = programs.executor(params)
    return Engine(scheduler, executor, WallClock(), is_overlapped=True, tokenizer=None, replica=replica)


MESHES: dict[str, dict[str, int]] = {
    "tensor 2": {"tensor": 2},
    "tensor 4": {"tensor": 4},
    "tensor 8": {"tensor": 8},
    "stage 2": {"stage": 2},
    "stage 4": {"stage": 4},
    "stage 2 x tensor 4": {"stage": 2, "tensor": 4},
    "data 2 x tensor 4": {"data": 2, "tensor": 4},
}
EXPERT_MESHES: dict[str, dict[str, int]] = {
    "expert 4": {"expert": 4},
    "expert 2 x tensor 4": {"expert": 2, "tensor": 4},
    "stage 2 x expert 2 x tensor 2": {"stage": 2, "expert": 2, "tensor": 2},
}
# Each cut once; the others of a family differ from them in nothing that is the family's.
ALWAYS = ("tensor 8", "stage 2 x tensor 4")
ALWAYS_WITH_EXPERTS = ("expert 4", "stage 2 x expert 2 x tensor 2")
WITH_EXPERTS = ("mixtral", "qwen3_moe")


def cases() -> Iterator[Any]:
    for family in FAMILIES:
        has_experts = family in WITH_EXPERTS
        for name in [*MESHES, *(EXPERT_MESHES if has_experts else ())]:
            is_always = family == "llama" or name in (ALWAYS_WITH_EXPERTS if has_experts else ALWAYS)
            yield pytest.param(family, name, marks=[] if is_always else [pytest.mark.nightly], id=f"{family} {name}")


@pytest.mark.parametrize(("family", "name"), [*cases()])
def test_tokens_are_those_of_one_device(family: str, name: str, make_family: Callable[[str], FamilyModel]) -> None:
    model, mesh = make_family(family), (MESHES | EXPERT_MESHES)[name]
    run = run_on_mesh(model.folder, mesh)
    assert run.tokens == model.tokens * 2
    assert run.num_preemptions > 0
    assert run.num_prefix_hit_tokens > 0
    assert run.num_replicas_used == mesh.get("data", 1)
    assert run.max_in_flight >= mesh.get("stage", 1)


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3, "prompt_logprobs": 1}], ids=["greedy", "full"])
@pytest.mark.parametrize("name", ["stage 2", "stage 4", "stage 2 x tensor 4"])
def test_chunks_of_a_prompt_behind_one_another_give_the_same_tokens(
    name: str, options: dict[str, Any], make_family: Callable[[str], FamilyModel]
) -> None:
    """A stage reads a prompt's next chunk while later ones are still at the chunk before it; penalties remember what each chunk held."""
    model = make_family("mistral")
    variants = (Variant.GREEDY, Variant.FULL) if options else (Variant.GREEDY,)
    run = partial(run_on_mesh, model.folder, MESHES[name], variants=variants, **options)
    chained, plain = run(policy="slo"), run(policy="sarathi")
    assert (chained.num_chained > 0, plain.num_chained > 0) == (True, False)
    assert chained.tokens == plain.tokens
    assert (chained.tokens == model.tokens * 2) is not bool(options)


@pytest.mark.parametrize("rules", [REPLICATED, SEQUENCE], ids=["replicated", "sequence"])
@pytest.mark.parametrize("mesh", [{"tensor": 4}, {"stage": 2, "tensor": 2}], ids=["tensor 4", "stage 2 x tensor 2"])
def test_other_rules_give_the_same_tokens(
    rules: Any, mesh: dict[str, int], make_family: Callable[[str], FamilyModel]
) -> None:
    model = make_family("llama")
    assert run_on_mesh(model.folder, mesh, rules).tokens == model.tokens * 2


@pytest.mark.nightly
@pytest.mark.parametrize("rules", [REPLICATED, SEQUENCE], ids=["replicated", "sequence"])
def test_other_rules_give_experts_the_same_tokens(rules: Any, make_family: Callable[[str], FamilyModel]) -> None:
    model = make_family("mixtral")
    assert run_on_mesh(model.folder, {"expert": 2, "tensor": 2}, rules).tokens == model.tokens * 2


def test_penalties_and_logprobs_go_through_a_pipeline(make_family: Callable[[str], FamilyModel]) -> None:
    """Their state is in batch slots, which a request keeps until its step has left the last stage, preempted or not."""
    model = make_family("llama")
    options: dict[str, Any] = {
        "variants": (Variant.FULL,),
        "repetition_penalty": 1.3,
        "logprobs": 1,
        "prompt_logprobs": 0,
    }
    plain, piped = run_on_mesh(model.folder, {}, **options), run_on_mesh(model.folder, {"stage": 4}, **options)
    assert piped.tokens == plain.tokens != model.tokens * 2
    assert piped.num_preemptions > 0
    for one, other in zip(plain.outputs, piped.outputs, strict=True):
        assert [each and each.logprob for each in other.prompt_logprobs or []] == pytest.approx(
            [each and each.logprob for each in one.prompt_logprobs or []], abs=1e-4
        )


def test_masks_go_through_a_pipeline(make_family: Callable[[str], FamilyModel]) -> None:
    """They are set when a request's step enters, and read when it has come to the last stage; those without one keep a step of each stage under way."""
    model = make_family("llama")
    options: dict[str, Any] = {"variants": (Variant.FULL,), "repetition_penalty": 1.3, "is_constrained": True}
    plain, piped = run_on_mesh(model.folder, {}, **options), run_on_mesh(model.folder, {"stage": 4}, **options)
    assert piped.tokens == plain.tokens
    assert {output.outputs[0].finish_reason for output in piped.outputs} == {"length"}
    assert piped.num_preemptions > 0
    assert piped.max_in_flight >= 3


@pytest.mark.parametrize("mesh", [{"stage": 2}, {"data": 2, "stage": 2}], ids=["stage 2", "data 2 x stage 2"])
def test_a_pipeline_that_loses_its_pages_starts_over(
    mesh: dict[str, int], make_family: Callable[[str], FamilyModel]
) -> None:
    """Whatever is on its way through the stages is lost with them, and nothing that was sampled is; also where a tick that only moves it on fails.

    Between two failures in a row and the next one there is time for the suspects to bring a token: devices that fail at every few steps can't be told from a
    request that steps fail of (`scheduling.suspects`)."""
    model = make_family("llama")
    failing = {3, 9, 10, *range(40, 200, 23)}
    assert run_on_mesh(model.folder, mesh, failing=failing).tokens == model.tokens * 2
