"""The program of one step: embed, layers over paged KV, the rows that need logits, head, sampling; one jit, one array in, one small array out.

`docs/shapes.md` has the letters. The step knows nothing of requests: it sees tokens, rows and pages. Attention and KV writes run inside `shard_map` over `tensor`,
each device on its own heads: kernels can't be partitioned, and a silent all-gather of the cache would be the price of trying.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from sarathi_jax.execution import logit_controls
from sarathi_jax.execution.buckets import Bucket, Variant
from sarathi_jax.execution.device_state import DeviceState, SlotState
from sarathi_jax.execution.packing import Geometry, packed_fields
from sarathi_jax.execution.sampling import Sampled, greedy, sample, unpack_sampling_rows
from sarathi_jax.execution.sampling_filters import FilterThresholds
from sarathi_jax.execution.step_output import LOGPROB_WORDS
from sarathi_jax.execution.token_logprobs import top_logprobs
from sarathi_jax.kernels.layer_kv import LayerKV
from sarathi_jax.kernels.registry import Kernels
from sarathi_jax.models import CausalLM, ModelConfig
from sarathi_jax.models.attention import Attend
from sarathi_jax.models.rope import RopeAngles
from sarathi_jax.sharding.model_state import ModelState

Inputs = Mapping[str, jax.Array]


def unpack(packed: jax.Array, bucket: Bucket, blocks_per_row: int) -> Inputs:
    """The fields of a packed array, by name, each an array of its own.

    Without the barrier XLA would let kernels read slices of the argument, whose address changes from step to step: each of those calls would be captured
    anew for the CUDA graph, or be left out of it.
    """
    return jax.lax.optimization_barrier(
        {
            name: packed[field.offset : field.offset + field.size].reshape(field.shape)
            for name, field in packed_fields(bucket, blocks_per_row).items()
        }
    )


def make_step(
    model_state: ModelState,
    bucket: Bucket,
    geometry: Geometry,
    mesh: jax.sharding.Mesh,
    kernels: Kernels,
) -> Callable[[tuple[jax.Array, ...], DeviceState, jax.Array], tuple[DeviceState, jax.Array]]:
    """The step of one bucket, to be jitted with the state donated.

    Returns: (params, state, packed) -> (state, out). out: i32[S * 2], sampled token ids, then whether each row's logits were finite; in the `full` variant
      followed by LOGPROB_WORDS for each row, and for each of T asked-for prompt tokens, floats as their bits.
    """

    cut_over_vocab = NamedSharding(mesh, PartitionSpec(None, model_state.vocab_axis))
    whole = NamedSharding(mesh, PartitionSpec())

    def step(params: tuple[jax.Array, ...], state: DeviceState, packed: jax.Array) -> tuple[DeviceState, jax.Array]:
        model = model_state.merge(params)
        inputs = unpack(packed, bucket, geometry.blocks_per_row)
        layers = list(state.layers)
        attend = _paged_attend(model.config, inputs, layers, bucket, geometry, mesh, kernels)
        hidden = model.hidden_states(
            _input_tokens(inputs, state.slots), inputs["positions"], attend, max_length=geometry.max_model_len
        )
        last_rows = jnp.maximum(inputs["cu_q_lens"][1:] - 1, 0)
        logits = model.logits(hidden.at[last_rows].get(mode="clip"))  # [S, V]
        # Said outright, since the partitioner would rather gather the head's weight: logits are cut as it is, and drawing gathers them, once.
        logits = jax.lax.with_sharding_constraint(logits, cut_over_vocab)
        if bucket.variant >= Variant.SAMPLE:
            logits = jax.lax.with_sharding_constraint(logits, whole)
        find = _on_every_device(kernels.filter_thresholds, mesh)
        slots, out = _sample(model, logits, hidden, inputs, state.slots, bucket.variant, find)
        return DeviceState(tuple(layers), slots), out

    return step


def _input_tokens(inputs: Inputs, slots: SlotState) -> jax.Array:
    """Token ids i32[T]: from the host, or, for pending rows, what the device sampled last. Pending rows are of one token: row s is token s."""
    num_rows = inputs["is_pending"].shape[0]
    sampled = slots.last_tokens.at[inputs["batch_slots"]].get(mode="clip")
    first = jnp.where(inputs["is_pending"] == 1, sampled, inputs["token_ids"][:num_rows])
    return inputs["token_ids"].at[:num_rows].set(first)


def _paged_attend(
    config: ModelConfig,
    inputs: Inputs,
    layers: list[LayerKV],
    bucket: Bucket,
    geometry: Geometry,
    mesh: jax.sharding.Mesh,
    kernels: Kernels,
) -> Attend:
    """Attention over pages. `layers` is rebound one by one: after the model ran, it holds the new ones."""
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

    everywhere, heads = PartitionSpec(), PartitionSpec(None, "tensor")
    pages = jax.tree.map(lambda _: heads, layers[0])
    in_specs, out_specs = (heads, pages, *[everywhere] * (3 + len(rows))), (heads, pages)

    def attend(layer_index: int, qkv: jax.Array, angles: RopeAngles) -> jax.Array:
        on_heads = partial(one_device, config.window(layer_index))
        if mesh.size > 1:
            on_heads = jax.shard_map(on_heads, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        out, layers[layer_index] = on_heads(qkv, layers[layer_index], *angles, inputs["slot_mapping"], *rows)
        return out

    return attend


def _on_every_device(kernel: Callable[..., jax.Array], mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
    """A kernel that each device runs on the whole arrays, all alike."""
    if mesh.size == 1:
        return kernel
    return jax.shard_map(kernel, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)


def _sample(
    model: CausalLM,
    logits: jax.Array,
    hidden: jax.Array,
    inputs: Inputs,
    slots: SlotState,
    variant: Variant,
    filter_thresholds: FilterThresholds,
) -> tuple[SlotState, jax.Array]:
    """Draw a token a row, remember it in the row's slot, and lay out what goes back to the host."""
    sampled, raw_logits = greedy(logits) if variant is Variant.GREEDY else None, logits
    if variant >= Variant.FULL:
        slots = _write_history(inputs, slots)
    if sampled is None:
        controls, penalties = unpack_sampling_rows(inputs["sampling"], inputs["kv_lens"])
        if variant >= Variant.FULL:
            logits = logit_controls.apply(logits, _logit_controls(inputs, slots, penalties, logits.shape[1]))
        sampled = sample(logits, controls, filter_thresholds)
    words = [sampled.token_ids, sampled.is_finite.astype(jnp.int32)]
    if variant >= Variant.FULL:
        words += [_logprob_words(raw_logits, sampled.token_ids).reshape(-1)]  # [S * W]
        words += [_prompt_logprob_words(model, hidden, inputs, logits.shape[0]).reshape(-1)]  # [T * W]
    return _write_sampled(inputs, slots, sampled, variant), jnp.concatenate(words)


def _write_sampled(inputs: Inputs, slots: SlotState, sampled: Sampled, variant: Variant) -> SlotState:
    """A row that did not reach its last token writes too: nobody reads it before the step that samples."""
    rows = inputs["batch_slots"]
    slots = slots._replace(last_tokens=slots.last_tokens.at[rows].set(sampled.token_ids, mode="drop"))
    if variant >= Variant.FULL:
        slots = slots._replace(history=slots.history.at[rows, inputs["kv_lens"]].set(sampled.token_ids, mode="drop"))
    return slots


def _write_history(inputs: Inputs, slots: SlotState) -> SlotState:
    """The tokens that came from the host. A pending one is there already: the step that sampled it wrote it."""
    num_rows = inputs["is_pending"].shape[0]
    rows = inputs["token_batch_slots"]
    is_pending = jnp.zeros(rows.shape, bool).at[:num_rows].set(inputs["is_pending"] == 1)
    rows = jnp.where(is_pending, slots.history.shape[0], rows)
    return slots._replace(history=slots.history.at[rows, inputs["positions"]].set(inputs["token_ids"], mode="drop"))


def _logit_controls(
    inputs: Inputs, slots: SlotState, penalties: logit_controls.Penalties, vocab_size: int
) -> logit_controls.LogitControls:
    """What the rows' slots ask for; a row whose request was not set up there asks for nothing."""
    has_options = inputs["has_slot_options"][:, None] == 1

    def of_rows(array: jax.Array) -> jax.Array:
        return array.at[inputs["batch_slots"]].get(mode="clip")

    return logit_controls.LogitControls(
        *penalties,
        history=of_rows(slots.history),
        prompt_lens=inputs["num_prompt_tokens"],
        lens=inputs["kv_lens"],
        bias_ids=jnp.where(has_options, of_rows(slots.bias_ids), vocab_size),
        bias_values=of_rows(slots.bias_values),
        allowed_bits=jnp.where(has_options, of_rows(slots.allowed_bits), jnp.uint32(0xFFFFFFFF)),
        stop_ids=of_rows(slots.stop_ids),
        is_stop_banned=inputs["is_stop_banned"] == 1,
    )


def _logprob_words(logits: jax.Array, token_ids: jax.Array) -> jax.Array:
    """i32[R, LOGPROB_WORDS]."""
    logprob, rank, top_ids, top_values = top_logprobs(logits, token_ids)
    bits = partial(jax.lax.bitcast_convert_type, new_dtype=jnp.int32)
    return jnp.concatenate([bits(logprob)[:, None], rank[:, None], top_ids, bits(top_values)], axis=1)


def _prompt_logprob_words(model: CausalLM, hidden: jax.Array, inputs: Inputs, rows_each: int) -> jax.Array:
    """i32[T, LOGPROB_WORDS], of the first num_prompt_rows; as many rounds of `rows_each` tokens as they need, so that T x V logits never exist."""
    num_tokens = hidden.shape[0]
    num_rounds = -(-num_tokens // rows_each)
    padding = (0, num_rounds * rows_each - num_tokens)
    rows, targets = (jnp.pad(inputs[name], padding) for name in ("prompt_rows", "prompt_targets"))

    def one_round(index: jax.Array, words: jax.Array) -> jax.Array:
        start = index * rows_each
        now = jax.lax.dynamic_slice_in_dim(rows, start, rows_each)
        logits = model.logits(hidden.at[now].get(mode="clip"))
        block = _logprob_words(logits, jax.lax.dynamic_slice_in_dim(targets, start, rows_each))
        return jax.lax.dynamic_update_slice_in_dim(words, block, start, axis=0)

    words = jnp.zeros((num_rounds * rows_each, LOGPROB_WORDS), jnp.int32)
    needed = -(-inputs["num_prompt_rows"][0] // rows_each)
    if num_rounds == 1:  # a conditional can be part of a CUDA graph, a loop can not
        return jax.lax.cond(needed > 0, lambda: one_round(jnp.int32(0), words), lambda: words)[:num_tokens]
    return jax.lax.fori_loop(0, needed, one_round, words)[:num_tokens]
