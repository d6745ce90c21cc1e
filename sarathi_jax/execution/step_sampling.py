"""The end of a step: from logits to a token a row, remembered in the row's batch slot, and laid out for the host."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sarathi_jax.execution import logit_controls
from sarathi_jax.execution.buckets import Variant
from sarathi_jax.execution.device_state import SlotState
from sarathi_jax.execution.sampling import Sampled, greedy, sample, unpack_sampling_rows
from sarathi_jax.execution.sampling_filters import FilterThresholds
from sarathi_jax.execution.step_inputs import Inputs
from sarathi_jax.execution.step_output import LOGPROB_WORDS
from sarathi_jax.execution.token_logprobs import top_logprobs
from sarathi_jax.models import CausalLM
from sarathi_jax.sharding.model_state import ModelState
from sarathi_jax.sharding.rules import spec_of


def sample_rows(
    model: CausalLM,
    model_state: ModelState,
    hidden: jax.Array,
    last_hidden: jax.Array,
    inputs: Inputs,
    slots: SlotState,
    variant: Variant,
    filter_thresholds: FilterThresholds,
) -> tuple[SlotState, jax.Array]:
    """Draw a token a row.

    Args:
      hidden: [T, E], of all tokens; only the `full` variant looks at it.
      last_hidden: [S, E], of each row's last token.
    Returns: the slots, and the words for the host: see `step_program`.
    """
    logits = model.logits(last_hidden)  # [S, V]
    # Said outright, since the partitioner would rather gather the head's weight: logits are cut as it is, and drawing gathers them, once.
    if model_state.mesh.size > 1:
        logits = jax.lax.with_sharding_constraint(logits, spec_of([(), model_state.vocab_axes]))
        if variant >= Variant.SAMPLE:
            logits = jax.lax.with_sharding_constraint(logits, PartitionSpec())
        filter_thresholds = _on_every_device(filter_thresholds)
    return _sample(model, logits, hidden, inputs, slots, variant, filter_thresholds)


def _on_every_device(kernel: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A kernel that each device runs on the whole arrays, all alike."""
    return jax.shard_map(kernel, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)


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
