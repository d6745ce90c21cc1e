"""Attention over pages, as a model's `Attend`: inside `shard_map`, each device on its own heads.

Kernels can't be partitioned, and a silent all-gather of the cache would be the price of trying. The mesh is the context's, so that all of it also works inside
a stage of a pipeline.
"""

from functools import partial
from typing import Any

import jax
from jax.sharding import PartitionSpec

from sarathi_jax.execution.buckets import Bucket
from sarathi_jax.execution.packing import Geometry
from sarathi_jax.execution.step_inputs import Inputs
from sarathi_jax.kernels.layer_kv import LayerKV
from sarathi_jax.kernels.registry import Kernels
from sarathi_jax.models.attention import Attend
from sarathi_jax.models.rope import RopeAngles
from sarathi_jax.sharding.model_state import ModelState
from sarathi_jax.sharding.rules import CUTTING_AXES, spec_of


def paged_attend(
    model_state: ModelState,
    inputs: Inputs,
    layers: list[LayerKV],
    bucket: Bucket,
    geometry: Geometry,
    kernels: Kernels,
) -> Attend:
    """Attention of a step's tokens. `layers` is rebound one by one: after the model ran, it holds the new ones."""
    config, mesh = model_state.config, model_state.mesh
    rows = inputs["kv_lens"], inputs["block_tables"], inputs["cu_q_lens"], inputs["num_decode_rows"][0]

    def one_device(
        window: int | None, qkv: Any, kv: LayerKV, cos: Any, sin: Any, slots: Any, *rows: Any
    ) -> tuple[jax.Array, LayerKV]:
        q, kv = kernels.rope_and_write_kv(qkv, cos, sin, kv, slots)
        out = kernels.attention(
            q,
            kv,
            *rows,
            page_size=geometry.page_size,
            scale=config.attention_scale,
            window=window,
            soft_cap=config.attention_soft_cap,
            is_decode_only=bucket.is_decode_only,
        )
        return out, kv

    everywhere, heads = PartitionSpec(), spec_of([(), model_state.axes("kv_heads")])
    pages = jax.tree.map(lambda _: heads, layers[0])
    in_specs, out_specs = (heads, pages, *[everywhere] * (3 + len(rows))), (heads, pages)
    axes = set(mesh.axis_names) & set(CUTTING_AXES)

    def attend(layer_index: int, qkv: jax.Array, angles: RopeAngles) -> jax.Array:
        on_heads = partial(one_device, config.window(layer_index))
        if mesh.size > 1:
            on_heads = jax.shard_map(on_heads, in_specs=in_specs, out_specs=out_specs, axis_names=axes, check_vma=False)
        out, layers[layer_index] = on_heads(qkv, layers[layer_index], *angles, inputs["slot_mapping"], *rows)
        return out

    return attend
