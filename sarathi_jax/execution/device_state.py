"""What lives on the devices between steps, all of it donated to each step and rebound to what comes back: KV pages, and the state of batch slots.

A batch slot belongs to one request while it runs. Its last sampled token feeds the next step without a detour through the host; what else it holds is read only
by the `full` variant (penalties and masks), and set up by `set_slot` when such a request is admitted. Masks that are others at each token come by `set_masks`.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from sarathi_jax.execution.packing import Geometry, PackedField
from sarathi_jax.kernels.layer_kv import LayerKV
from sarathi_jax.models import ModelConfig
from sarathi_jax.sampling_params import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS, SamplingParams
from sarathi_jax.sharding.model_state import ModelState
from sarathi_jax.sharding.rules import spec_of

# Masks are set for so many slots at a time, or for all.
FEW_MASKS = 8
MAX_STOP_IDS = 2 * MAX_STOP_TOKEN_IDS  # the request's own and the model's end-of-sequence ids


class SlotState(NamedTuple):
    """One row a batch slot, n = max_num_seqs.

    last_tokens: i32[n], sampled last. history: i32[n, max_model_len + 1], tokens by position; kept by `full` steps alone.
    bias_ids: i32[n, MAX_LOGIT_BIAS] (V: none), bias_values: f32, alike. allowed_bits: u32[n, ceil(V / 32)]. stop_ids: i32[n, MAX_STOP_IDS] (V: none).
    """

    last_tokens: jax.Array
    history: jax.Array
    bias_ids: jax.Array
    bias_values: jax.Array
    allowed_bits: jax.Array
    stop_ids: jax.Array


class DeviceState(NamedTuple):
    """layers: the KV pages of each layer; with stages, of each layer of a stage, the stages' pages in a first axis.

    activations: [stages, token budget, E], what each stage takes at the next tick; None without stages.
    """

    layers: tuple[LayerKV, ...]
    slots: SlotState
    activations: jax.Array | None = None


def is_quantized(dtype: DTypeLike) -> bool:
    """Whether KV of this dtype needs scales."""
    return jnp.dtype(dtype) == jnp.int8


def abstract_state(model_state: ModelState, geometry: Geometry, dtype: jnp.dtype) -> DeviceState:
    """Shapes and shardings of the state: KV cut over KV heads and stages, slots on every device. dtype: of KV; int8 brings its scales with it."""
    config, mesh, num_stages = model_state.config, model_state.mesh, model_state.num_stages
    stages, stage_axes = ((num_stages,), [("stage",)]) if num_stages > 1 else ((), [])
    heads = NamedSharding(mesh, spec_of([*stage_axes, (), model_state.axes("kv_heads")]))

    def kv_array(*shape: int, dtype: DTypeLike) -> Any:
        return jax.ShapeDtypeStruct((*stages, geometry.num_slots, config.num_kv_heads, *shape), dtype, sharding=heads)

    pages = [kv_array(config.head_dim, dtype=dtype)] * 2
    scales = [kv_array(dtype=jnp.float32)] * 2 if is_quantized(dtype) else []
    everywhere = NamedSharding(mesh, PartitionSpec())

    def slot_array(*shape: int, dtype: type = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((geometry.max_num_seqs, *shape), dtype, sharding=everywhere)

    slots = SlotState(
        last_tokens=slot_array(),
        history=slot_array(geometry.max_model_len + 1),
        bias_ids=slot_array(MAX_LOGIT_BIAS),
        bias_values=slot_array(MAX_LOGIT_BIAS, dtype=jnp.float32),
        allowed_bits=slot_array(_num_words(geometry.vocab_size), dtype=jnp.uint32),
        stop_ids=slot_array(MAX_STOP_IDS),
    )
    activations: Any = None
    if num_stages > 1:
        activations = jax.ShapeDtypeStruct(
            (num_stages, geometry.token_budget, config.hidden_size),
            model_state.dtype,
            sharding=NamedSharding(mesh, spec_of(stage_axes)),
        )
    return DeviceState((LayerKV(*pages, *scales),) * model_state.num_stage_layers, slots, activations)


def make_state(abstract: DeviceState) -> DeviceState:
    """Empty pages and idle slots, as a function to compile ahead of time. Zeros, not garbage: what attention skips must be finite."""
    return jax.tree.map(lambda struct: jnp.zeros(struct.shape, struct.dtype), abstract)


def kv_bytes_per_page(config: ModelConfig, page_size: int, dtype: DTypeLike, num_parts: int = 1) -> int:
    """Bytes of a page over all layers, keys and values and their scales, on one of the `num_parts` devices that it is spread over."""
    head_bytes = config.head_dim * jnp.dtype(dtype).itemsize + (4 if is_quantized(dtype) else 0)
    return 2 * config.num_layers * page_size * config.num_kv_heads * head_bytes // num_parts


def set_slot(slots: SlotState, packed: jax.Array) -> SlotState:
    """Set up the slot of a request that `full` steps serve. packed: i32, as `pack_slot` lays it out."""
    num_history, num_words = slots.history.shape[1], slots.allowed_bits.shape[1]
    parts = {
        name: packed[field.offset : field.offset + field.size]
        for name, field in slot_fields(num_history, num_words).items()
    }
    slot = parts["slot"][0]
    return SlotState(
        slots.last_tokens,
        slots.history.at[slot].set(parts["history"]),
        slots.bias_ids.at[slot].set(parts["bias_ids"]),
        slots.bias_values.at[slot].set(jax.lax.bitcast_convert_type(parts["bias_values"], jnp.float32)),
        slots.allowed_bits.at[slot].set(jax.lax.bitcast_convert_type(parts["allowed_bits"], jnp.uint32)),
        slots.stop_ids.at[slot].set(parts["stop_ids"]),
    )


def slot_fields(num_history: int, num_words: int) -> Mapping[str, PackedField]:
    """Name -> place in `pack_slot`'s array."""
    shapes = {
        "slot": (1,),
        "history": (num_history,),
        "bias_ids": (MAX_LOGIT_BIAS,),
        "bias_values": (MAX_LOGIT_BIAS,),
        "allowed_bits": (num_words,),
        "stop_ids": (MAX_STOP_IDS,),
    }
    offsets = accumulate((prod(shape) for shape in shapes.values()), initial=0)
    return {name: PackedField(offset, shape) for (name, shape), offset in zip(shapes.items(), offsets, strict=False)}


def slot_size(geometry: Geometry) -> int:
    """int32 words of `pack_slot`'s array."""
    fields = slot_fields(geometry.max_model_len + 1, _num_words(geometry.vocab_size))
    return sum(field.size for field in fields.values())


def pack_slot(
    slot: int, context: np.ndarray, sampling: SamplingParams, eos_token_ids: tuple[int, ...], geometry: Geometry
) -> np.ndarray:
    """One request's slot state for `set_slot`.

    Args:
      slot: its batch slot.
      context: i32, tokens before the first chunk (a prefix hit), which no step will write into the history.
    """
    fields = slot_fields(geometry.max_model_len + 1, _num_words(geometry.vocab_size))
    packed = np.zeros(slot_size(geometry), np.int32)
    views = {name: packed[field.offset : field.offset + field.size] for name, field in fields.items()}
    views["slot"][0] = slot
    views["history"][: len(context)] = context
    views["bias_ids"][:] = geometry.vocab_size
    if sampling.logit_bias:
        views["bias_ids"][: len(sampling.logit_bias)] = list(sampling.logit_bias)
        views["bias_values"].view(np.float32)[: len(sampling.logit_bias)] = list(sampling.logit_bias.values())
    allowed = views["allowed_bits"].view(np.uint32)
    if sampling.allowed_token_ids is None:
        allowed[:] = 0xFFFFFFFF
    else:
        ids = np.array(sampling.allowed_token_ids, np.uint32)
        np.bitwise_or.at(allowed, ids // 32, np.uint32(1) << (ids % 32))
    stop_ids = [*dict.fromkeys((*eos_token_ids, *sampling.stop_token_ids))][:MAX_STOP_IDS]
    views["stop_ids"][:] = geometry.vocab_size
    views["stop_ids"][: len(stop_ids)] = stop_ids
    return packed


def set_masks(slots: SlotState, packed: jax.Array) -> SlotState:
    """Give some slots other allowed ids. packed: i32, as `pack_masks` lays it out."""
    rows = packed.reshape(-1, 1 + slots.allowed_bits.shape[1])  # [k, 1 + words]
    bits = jax.lax.bitcast_convert_type(rows[:, 1:], jnp.uint32)
    return slots._replace(allowed_bits=slots.allowed_bits.at[rows[:, 0]].set(bits, mode="drop"))


def masks_sizes(geometry: Geometry) -> dict[int, int]:
    """The lengths that `pack_masks` gives -> how many slots each is for."""
    row_size = 1 + _num_words(geometry.vocab_size)
    return {count * row_size: count for count in sorted({min(FEW_MASKS, geometry.max_num_seqs), geometry.max_num_seqs})}


def pack_masks(masks: Sequence[tuple[int, np.ndarray]], geometry: Geometry) -> np.ndarray:
    """What `set_masks` reads.

    masks: (batch slot, u32[ceil(V / 32)]: token i may be drawn if bit i % 32 of word i // 32 is set), at most one a slot.
    Returns: i32, of one of `masks_sizes`; for each mask its slot, then its words; rows without one have a slot that there is not.
    """
    size = next(size for size, count in masks_sizes(geometry).items() if count >= len(masks))
    packed = np.zeros(size, np.int32)
    rows = packed.reshape(-1, 1 + _num_words(geometry.vocab_size))
    rows[len(masks) :, 0] = geometry.max_num_seqs
    for row, (slot, words) in zip(rows, masks, strict=False):
        row[0] = slot
        row[1:].view(np.uint32)[:] = words
    return packed


def _num_words(vocab_size: int) -> int:
    return -(-vocab_size // 32)
