"""The GPU's kernels in a whole step, in Triton's interpreter: an engine over them gives the tokens that one over the plain ones gives."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sarathi_jax.config import EngineConfig
from sarathi_jax.execution.buckets import Bucket, BucketTable, Variant
from sarathi_jax.execution.build import compile_engine
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import abstract_model
from sarathi_jax.sharding.rules import MEGATRON

GREEDY = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
DRAWN = SamplingParams(max_tokens=3, temperature=0.8, top_k=9, top_p=0.9, seed=5, ignore_eos=True)
CALLS = [([3, 14, 15, 9, 2, 6, 5], GREEDY), ([27, 18, 28], DRAWN), ([3, 14, 15, 9, 11, 12, 13, 20, 21], DRAWN)]


@pytest.fixture(scope="module")
def outputs(tiny: Any) -> Callable[..., list[list[int]]]:
    """Kernels, KV and mesh -> the tokens of all calls."""
    pytest.importorskip("triton", reason="triton can't be had here: it has wheels for Linux alone")

    def run(kernels: str, kv_dtype: Any = "auto", tensor: int = 1) -> list[list[int]]:
        config = EngineConfig(
            token_budget=8,
            max_num_seqs=4,
            max_model_len=32,
            page_size=4,
            num_pages=30,
            kernels=kernels,
            kv_dtype=kv_dtype,
        )
        mesh, table = make_mesh({"tensor": tensor}), BucketTable(8, 4)
        table.buckets = (Bucket(4, 4, True, Variant.SAMPLE), Bucket(8, 4, False, Variant.SAMPLE))
        table.choose = lambda num_tokens, num_rows, *, is_decode_only, variant: table.buckets[not is_decode_only]
        model = dataclasses.replace(tiny.programs.model_state.config, vocab_size=40)  # which two devices can share
        state = abstract_model(model, jnp.dtype("float32"), mesh, MEGATRON)
        rng, programs = np.random.default_rng(0), compile_engine(state, config, table, progress=False)
        specs = state.parameters.values()
        weights = [jnp.asarray(rng.normal(0.1, 0.35, spec.shape), spec.dtype) for spec in specs]
        params = (jax.device_put(*each) for each in zip(weights, [spec.sharding for spec in specs], strict=True))
        made = type(tiny)(programs, tuple(params), tiny.dense)
        return [each.outputs[0].token_ids for each in made.run(*CALLS, token_budget=8)]

    return run


@pytest.mark.parametrize(("kv_dtype", "tensor"), [("auto", 1), ("auto", 2), ("int8", 1)])
def test_tokens_are_those_of_the_plain_kernels(outputs: Any, kv_dtype: str, tensor: int) -> None:
    plain = outputs("xla", kv_dtype)
    assert [len(tokens) for tokens in plain] == [3, 3, 3]
    assert outputs("triton-interpreter", kv_dtype, tensor) == plain
