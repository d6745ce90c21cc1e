"""The compiled step of a mesh: the collectives counted by hand, and none of them of the KV cache."""

import re
from typing import Any

import jax.numpy as jnp
import pytest

from sarathi_jax.config import EngineConfig
from sarathi_jax.execution.buckets import BucketTable, Variant
from sarathi_jax.execution.build import compile_engine
from sarathi_jax.models import ModelConfig
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import abstract_model
from sarathi_jax.sharding.rules import MEGATRON

NUM_LAYERS = 3
CONFIG = ModelConfig(
    family="llama",
    vocab_size=24,
    hidden_size=16,
    intermediate_size=20,
    num_layers=NUM_LAYERS,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=32,
)
ENGINE = EngineConfig(token_budget=8, max_num_seqs=4, page_size=4, num_pages=100)
COLLECTIVE = re.compile(
    r"= (\(?[a-z]+\d+\[[^=]*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)\b"
)


@pytest.fixture(scope="module")
def steps() -> dict[str, str]:
    """Optimized HLO of each step, by its name."""
    mesh = make_mesh({"tensor": 2})
    state = abstract_model(CONFIG, jnp.dtype("float32"), mesh, MEGATRON)
    table = BucketTable(8, 4, variants=(Variant.GREEDY,), is_sparse=True)
    programs = compile_engine(state, ENGINE, table, progress=False)
    steps: dict[Any, Any] = dict(programs.programs.steps)
    return {bucket.name: step.as_text() for bucket, step in steps.items()}


def collectives(text: str) -> list[tuple[str, str]]:
    """(kind, shape) of each."""
    return [(kind, re.sub(r"\{.*?\}", "", shape)) for shape, kind in COLLECTIVE.findall(text)]


@pytest.mark.parametrize(("name", "num_tokens"), [("decode 4x4 greedy", 4), ("mixed 8x4 greedy", 8)])
def test_collectives_are_those_counted_by_hand(steps: dict[str, str], name: str, num_tokens: int):
    """Two all-reduces a layer and one for the embedding; for the head's argmax, the largest logit of each row and its id. No pages, no weights."""
    hidden = [("all-reduce", f"f32[{num_tokens},16]")] * (2 * NUM_LAYERS + 1)
    assert sorted(collectives(steps[name])) == sorted([*hidden, ("all-reduce", "f32[4]"), ("all-reduce", "s32[4]")])


def test_another_collective_would_be_seen():
    text = "%x = f32[400,2,8]{2,1,0} all-gather(%k)\n %y = (f32[8,16]{1,0}, f32[8,16]{1,0}) all-reduce-start(%a)"
    assert collectives(text) == [("all-gather", "f32[400,2,8]"), ("all-reduce", "(f32[8,16], f32[8,16])")]
