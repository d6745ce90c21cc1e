"""The program of one tick of a pipeline: every stage runs its layers on the microbatch that it has, and hands it on; the last one's is sampled.

One SPMD program: `shard_map`, manual over `stage` alone, holds the layers; the other axes are the partitioner's as in a plain step. Microbatches in flight
are as many as stages. Each tick takes all of their packed arrays, in the shape of one bucket: the newest first, for the first stage, and the oldest last.
Embedding, head and sampling are everywhere the same: all stages would wait for the last one's.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sarathi_jax.execution.buckets import Bucket, Variant
from sarathi_jax.execution.device_state import DeviceState
from sarathi_jax.execution.packing import Geometry, packed_size
from sarathi_jax.execution.paged_attend import paged_attend
from sarathi_jax.execution.step_inputs import unpack
from sarathi_jax.execution.step_program import Step, input_tokens, keep_whole, last_tokens, residual_constraint
from sarathi_jax.execution.step_sampling import sample_rows
from sarathi_jax.kernels.layer_kv import LayerKV
from sarathi_jax.kernels.registry import Kernels
from sarathi_jax.sharding.model_state import ModelState

STAGES, ALL = PartitionSpec("stage"), PartitionSpec()


def make_pipeline_step(model_state: ModelState, bucket: Bucket, geometry: Geometry, kernels: Kernels) -> Step:
    """A tick of one bucket, to be jitted with the state donated. packed: i32[stages * packed_size]. Returns: as `make_step`, of the oldest microbatch."""
    run_stages = _make_run_stages(model_state, bucket, geometry, kernels)

    def step(params: tuple[jax.Array, ...], state: DeviceState, packed: jax.Array) -> tuple[DeviceState, jax.Array]:
        model = model_state.merge(params)  # of it, only what no stage owns is used out here
        size = packed_size(bucket, geometry.blocks_per_row)
        # Each taken from the argument, which is everywhere: what stages take would have to be sent back from them.
        newest, oldest = (unpack(each, bucket, geometry.blocks_per_row) for each in (packed[:size], packed[-size:]))
        entering = model.embed(keep_whole(model_state, input_tokens(newest, state.slots)))
        entering = residual_constraint(model_state, bucket)(entering)
        layers, activations, leaving = run_stages(
            params, state.layers, state.activations, entering, packed.reshape(model_state.num_stages, size)
        )
        hidden = model.finish(leaving)  # of all tokens in the `full` variant, and else of each row's last one
        last_hidden = hidden.at[last_tokens(oldest)].get(mode="clip") if bucket.variant >= Variant.FULL else hidden
        slots, out = sample_rows(
            model, model_state, hidden, last_hidden, oldest, state.slots, bucket.variant, kernels.filter_thresholds
        )
        return DeviceState(layers, slots, activations), out

    return step


def _make_run_stages(model_state: ModelState, bucket: Bucket, geometry: Geometry, kernels: Kernels) -> Any:
    """(params, layers, activations, entering [T, E], packed [stages, packed_size]) -> (layers, activations, what leaves the last stage, the same everywhere)."""
    num_stages, specs = model_state.num_stages, model_state.stage_specs()
    # XLA's CPU compiler aborts on sums of 16 bits over an axis that `shard_map` is manual over. One of the summands is not zero: the sum is exact in either.
    is_on_cpu = model_state.mesh.devices.flat[0].platform == "cpu"
    sum_dtype = jnp.dtype(jnp.float32) if is_on_cpu else model_state.dtype

    def stage(
        index: jax.Array,
        params: tuple[jax.Array, ...],
        layers: tuple[LayerKV, ...],
        activations: jax.Array,
        entering: jax.Array,
        packed: jax.Array,
    ) -> tuple[tuple[LayerKV, ...], jax.Array, jax.Array]:
        own = [leaf[0] if spec == STAGES else leaf for leaf, spec in zip(params, specs, strict=True)]
        model, inputs = model_state.merge(own), unpack(packed[0], bucket, geometry.blocks_per_row)
        pages: list[LayerKV] = [_first(layer) for layer in layers]
        x = jnp.where(index[0] == 0, entering, activations[0, : bucket.num_tokens])
        attend = paged_attend(model_state, inputs, pages, bucket, geometry, kernels)
        constrain = residual_constraint(model_state, bucket)
        positions = keep_whole(model_state, inputs["positions"])
        x = model.run_layers(x, positions, attend, constrain, max_length=geometry.max_model_len)
        leaving = x if bucket.variant >= Variant.FULL else x.at[last_tokens(inputs)].get(mode="clip")
        leaving = keep_whole(model_state, leaving)
        leaving = jnp.where(index[0] == num_stages - 1, leaving, jnp.zeros_like(leaving))
        leaving = jax.lax.psum(leaving.astype(sum_dtype), "stage").astype(leaving.dtype)
        handed_on = jax.lax.ppermute(x, "stage", [(place, place + 1) for place in range(num_stages - 1)])
        return _stacked(tuple(pages)), activations.at[0, : bucket.num_tokens].set(handed_on), leaving

    in_specs = (STAGES, specs, STAGES, STAGES, ALL, STAGES)
    run = jax.shard_map(
        stage, in_specs=in_specs, out_specs=(STAGES, STAGES, ALL), axis_names={"stage"}, check_vma=False
    )
    return lambda *arguments: run(jnp.arange(num_stages), *arguments)


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda array: array[0], tree)


def _stacked(tree: Any) -> Any:
    return jax.tree.map(lambda array: array[None], tree)
