"""Planning by the cost model: meshes side by side, what fits, and whether its sizes are those of the models themselves."""

import math
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import pytest

from sarathi_jax.checkpoints.builtin_models import BUILTIN_MODELS
from sarathi_jax.config import EngineConfig
from sarathi_jax.errors import ConfigError
from sarathi_jax.execution.device_state import kv_bytes_per_page
from sarathi_jax.lab.cost_inputs import cuts_of, model_shape, unpriced
from sarathi_jax.lab.plan import Layout, Load, full_step
from sarathi_jax.lab.plan_task import PlanTask, make_task
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import abstract_model
from sarathi_jax.sharding.rules import MEGATRON, REPLICATED, SEQUENCE
from sarathi_jax.simulation.placement import Cuts
from sarathi_jax.simulation.step_work import ChunkWork, StepWork


def task(
    model: str = "falcon-180b", hosts: int = 2, gpus: int = 4, engine: dict[str, Any] | None = None, **asked: Any
) -> PlanTask:
    options = EngineConfig(model=model, max_num_seqs=1, **(engine or {}))
    return make_task(options, **{"device": "a100-80g", "num_hosts": hosts, "gpus_per_host": gpus, **asked})


def layouts(plans: PlanTask, rank_by: str = "latency") -> dict[str, Layout]:
    """By mesh, in order."""
    found = [each.layout for each in plans.compare(rank_by, does_compile=False)]
    return {layout.placement.describe(): layout for layout in found}


def decode_s(layout: Layout) -> float:
    assert layout.decode is not None
    return layout.decode.latency_s


@pytest.mark.parametrize("batch_size", [8, 32, 128])
def test_f24_in_the_table_tensor_parallel_over_hosts_decodes_twice_as_slowly(batch_size: int) -> None:
    found = layouts(task(batch_size=batch_size))
    assert decode_s(found["tensor=8"]) >= 2 * decode_s(found["stage=2,tensor=4"])


def test_all_meshes_are_there_and_those_that_fit_come_first() -> None:
    """8 = data x stage x tensor in ten ways; of 180 billion parameters a GPU holds an eighth, not a fourth."""
    found = layouts(task())
    assert len(found) == 10
    fitting = [mesh for mesh, layout in found.items() if layout.why_not is None]
    assert sorted(fitting) == ["stage=2,tensor=4", "stage=4,tensor=2", "stage=8", "tensor=8"]
    assert list(found)[:4] == fitting
    assert "weights 83.1 GiB + temporary" in (found["data=2,tensor=4"].why_not or "")


@pytest.mark.parametrize(
    ("rank_by", "key"),
    [
        ("latency", lambda layout: layout.decode.latency_s),
        ("tbt", lambda layout: layout.full.latency_s),
        ("throughput", lambda layout: -layout.full.tokens_per_s),
    ],
)
def test_meshes_are_ranked_by_what_is_asked(rank_by: str, key: Any) -> None:
    found = list(layouts(task("llama3-8b", 1, 8), rank_by).values())
    keys = [key(layout) for layout in found if layout.why_not is None]
    assert len(keys) == 10
    assert keys == sorted(keys)


def test_what_a_shape_does_not_allow_is_listed_with_its_reason() -> None:
    found = layouts(task("yi-34b", 1, 8))
    assert found["stage=8"].why_not == "60 layers do not divide into stage=8"
    assert found["stage=8"].decode is None
    assert list(found)[-1] == "stage=8"


def test_a_batch_that_kv_can_not_hold_does_not_fit() -> None:
    """128 requests of 4,096 tokens a replica take 64 GiB of KV beside 13.5 of weights."""
    found = layouts(task("mistral-7b", 1, 8, batch_size=1024))
    reason = found["data=8"].why_not or ""
    assert reason.endswith("holds 108 of its 128 requests of 4,096 tokens")
    assert (
        found["stage=2,tensor=4"].why_not == "512 decodes of a microbatch leave no token of a budget of 512 for prompts"
    )
    assert found["stage=8"].why_not is None


def test_work_is_shared_by_replicas_and_stages() -> None:
    """96 decodes over 2 replicas of 2 stages are microbatches of 24."""
    plans = task("mistral-7b", 1, 8, batch_size=96, engine={"token_budget": 256})
    layout = plans.plan({"data": 2, "stage": 2, "tensor": 2}, does_compile=False).layout
    assert layout.decode is not None and layout.full is not None
    assert (layout.decode.num_tokens, layout.full.num_tokens) == (24, 256)
    assert layout.full.latency_s == 2 * layout.full.tick_s
    assert layout.full.tokens_per_s == pytest.approx(2 * 256 / layout.full.tick_s)


def test_a_full_step_has_a_chunk_halfway_through_a_prompt() -> None:
    load = Load(batch_size=12, context=1000, token_budget=512)
    assert full_step(12, load) == StepWork((ChunkWork(250, 500),), 12, 12_000)
    short = replace(load, context=100)
    assert full_step(12, short) == StepWork((ChunkWork(0, 500),), 12, 1200)


def test_shares_of_the_peaks_are_work_over_time() -> None:
    """A decode of one row on one GPU: two operations a parameter and little more."""
    layout = task("mistral-7b", 1, 1, batch_size=1, context=1).plan({"tensor": 1}, does_compile=False).layout
    step = layout.decode
    assert step is not None
    num_parameters = 7.24e9 - 32000 * 4096  # the embedding is not multiplied by
    assert step.flop == pytest.approx(2 * num_parameters, rel=0.01)
    assert step.hbm_bytes == pytest.approx(2 * num_parameters, rel=0.01)
    assert step.bandwidth_share == pytest.approx(step.hbm_bytes / step.tick_s / 2.039e12)


# ---- the model's sizes ----

MESHES = [
    ("falcon-180b", {"stage": 2, "tensor": 4}),
    ("llama2-70b", {"tensor": 8}),
    ("qwen3-8b", {"stage": 4, "tensor": 2}),
]


@pytest.mark.parametrize(("name", "mesh"), MESHES)
def test_weights_and_kv_are_those_that_the_engine_allocates(name: str, mesh: dict[str, int]) -> None:
    """All but norms, whose vectors the cost model leaves out."""
    config = BUILTIN_MODELS[name]
    state = abstract_model(config, jnp.dtype(jnp.bfloat16), make_mesh(mesh), MEGATRON)
    plans = task(name)
    model = plans.deployment.cost_model(plans.deployment.place(**mesh))
    matrices = {path: spec for path, spec in state.parameters.items() if path.endswith(("kernel", "embedding"))}
    assert model.weight_bytes == replace(state, parameters=matrices).num_bytes
    assert model.weight_bytes > 0.999 * state.num_bytes
    assert 16 * model.kv_bytes_per_token == kv_bytes_per_page(state.config, 16, jnp.bfloat16, state.num_kv_parts)


def test_quantized_kv_brings_its_scales() -> None:
    shape = model_shape(BUILTIN_MODELS["mistral-7b"], 2, "int8")
    assert 8 * shape.kv_token_bytes * 32 * 16 == kv_bytes_per_page(BUILTIN_MODELS["mistral-7b"], 16, "int8", 1)


def test_what_families_differ_in_is_passed_on() -> None:
    falcon = model_shape(BUILTIN_MODELS["falcon-180b"], 2, "bfloat16")
    assert (falcon.num_mlp_matrices, falcon.num_all_reduces_per_layer, falcon.num_norms_per_layer) == (2, 1, 2)
    assert falcon.is_head_tied
    one_norm = model_shape(replace(BUILTIN_MODELS["falcon-180b"], block="parallel_one_norm"), 2, "bfloat16")
    assert one_norm.num_norms_per_layer == 1
    mistral = replace(BUILTIN_MODELS["mistral-7b"], num_layers=4, sliding_window=64, window_layers=(0, 2))
    assert model_shape(mistral, 2, "bfloat16").windows == (64, None, 64, None)


def test_tables_become_cuts() -> None:
    assert cuts_of(MEGATRON) == Cuts()
    assert cuts_of(SEQUENCE) == Cuts(tokens=("expert", "tensor"))
    whole = cuts_of(REPLICATED)
    assert all(getattr(whole, name) == () for name in Cuts.__slots__)
    assert unpriced(MEGATRON) == {}
    assert unpriced({**MEGATRON, "embed": "tensor"}) == {"embed": ("tensor",)}


def test_a_replicated_model_talks_to_nobody_and_gains_nothing() -> None:
    plans = task("mistral-7b", 1, 4, engine={"rules": "replicated"})
    four = plans.plan({"tensor": 4}, does_compile=False).layout
    one = plans.plan({"tensor": 1}, does_compile=False).layout
    assert four.decode is not None and four.decode.talk_s == 0
    assert four.memory == one.memory
    assert decode_s(four) == decode_s(one)


# ---- what is asked ----


def test_the_best_mesh_is_taken_where_none_is_named() -> None:
    assert task().best(does_compile=False).layout.placement.describe() == "stage=2,tensor=4"
    with pytest.raises(ConfigError, match=r"Some mesh of 1x4 a100-80g must hold the model and the load, got none"):
        task(hosts=1).best(does_compile=False)


def test_hosts_are_those_of_the_system() -> None:
    with pytest.raises(ConfigError, match="pairwise-a100 must have at most 4 of a100-80g, a100-40g, got 8 a100-80g"):
        task(gpus=8, system="pairwise-a100")
    with pytest.raises(ConfigError, match="dgx-h100 must have at most 8 of h100, h200, got 4 a100-80g"):
        task(system="dgx-h100")
    assert task(system="dgx-a100").deployment.system.name == "dgx-a100"


@pytest.mark.parametrize("asked", [{"batch_size": 0}, {"context": 0}])
def test_loads_that_are_none_are_refused(asked: dict[str, Any]) -> None:
    (name,) = asked
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        task(**asked)


def test_the_context_is_what_the_model_takes() -> None:
    assert task().load.context == 2048
    assert task("mistral-7b").load.context == 4096
    assert task("mistral-7b", engine={"max_model_len": 512}).load.context == 512


def test_experts_add_an_axis() -> None:
    """16 = 2 x 2 x 2 x 2 over two hosts of 8: with experts there are as many ways as four factors have."""
    found = layouts(task("mixtral-8x7b", 1, 8))
    assert len(found) == math.comb(3 + 3, 3)
    assert decode_s(found["expert=8"]) > 0


def test_every_expert_works_for_every_token() -> None:
    """As the program has it: one MLP of eight times the width."""
    shape = model_shape(BUILTIN_MODELS["mixtral-8x7b"], 2, "bfloat16")
    assert (shape.num_experts, shape.experts_per_token) == (8, 8)
