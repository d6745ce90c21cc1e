"""The program of one step: embed, layers over paged KV, the rows that need logits, head, sampling; one jit, one array in, one small array out.

`docs/shapes.md` has the letters. The step knows nothing of requests: it sees tokens, rows and pages. It is traced with its mesh as the context's.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from sarathi_jax.execution.buckets import Bucket
from sarathi_jax.execution.device_state import DeviceState, SlotState
from sarathi_jax.execution.packing import Geometry
from sarathi_jax.execution.paged_attend import paged_attend
from sarathi_jax.execution.step_inputs import Inputs, unpack
from sarathi_jax.execution.step_sampling import sample_rows
from sarathi_jax.kernels.layer_kv import LayerKV
from sarathi_jax.kernels.registry import Kernels
from sarathi_jax.models.decoder import Constrain, unconstrained
from sarathi_jax.sharding.model_state import ModelState
from sarathi_jax.sharding.rules import num_parts, spec_of

Step = Callable[[tuple[jax.Array, ...], DeviceState, jax.Array], tuple[DeviceState, jax.Array]]
# (params, KV pages of the layers, tokens i32[T], inputs) -> (hidden [T, E], the layers' new pages)
Forward = Callable[
    [tuple[jax.Array, ...], tuple[LayerKV, ...], jax.Array, Inputs], tuple[jax.Array, tuple[LayerKV, ...]]
]
FORWARD_INPUTS = ("positions", "slot_mapping", "cu_q_lens", "kv_lens", "block_tables", "num_decode_rows")


def make_forward(model_state: ModelState, bucket: Bucket, geometry: Geometry, kernels: Kernels) -> Forward:
    """The layers of a step, which are the same whatever the bucket's variant: made once for all of them, they are traced once. A step's program is the same as if
    they were written out in it."""

    def forward(
        params: tuple[jax.Array, ...], pages: tuple[LayerKV, ...], tokens: jax.Array, inputs: Inputs
    ) -> tuple[jax.Array, tuple[LayerKV, ...]]:
        layers = list(pages)
        constrain = residual_constraint(model_state, bucket)
        hidden = model_state.merge(params).hidden_states(
            keep_whole(model_state, tokens),
            keep_whole(model_state, inputs["positions"]),
            paged_attend(model_state, inputs, layers, bucket, geometry, kernels),
            max_length=geometry.max_model_len,
            **(
                {} if constrain is unconstrained else {"constrain": constrain}
            ),  # a module of one's own need not know of it
        )
        return hidden, tuple(layers)

    return jax.jit(forward, inline=True)


def make_step(model_state: ModelState, bucket: Bucket, geometry: Geometry, kernels: Kernels, forward: Forward) -> Step:
    """The step of one bucket, to be jitted with the state donated. forward: made for the bucket's tokens and rows.

    Returns: (params, state, packed) -> (state, out). out: i32[S * 2], sampled token ids, then whether each row's logits were finite; in the `full` variant
      followed by LOGPROB_WORDS for each row, and for each of T asked-for prompt tokens, floats as their bits.
    """

    def step(params: tuple[jax.Array, ...], state: DeviceState, packed: jax.Array) -> tuple[DeviceState, jax.Array]:
        inputs = unpack(packed, bucket, geometry.blocks_per_row)
        of_layers = {name: inputs[name] for name in FORWARD_INPUTS}
        hidden, layers = forward(params, state.layers, input_tokens(inputs, state.slots), of_layers)
        last_hidden = keep_whole(model_state, hidden.at[last_tokens(inputs)].get(mode="clip"))
        slots, out = sample_rows(
            model_state.merge(params),
            model_state,
            hidden,
            last_hidden,
            inputs,
            state.slots,
            bucket.variant,
            kernels.filter_thresholds,
        )
        return DeviceState(layers, slots), out

    return step


def input_tokens(inputs: Inputs, slots: SlotState) -> jax.Array:
    """Token ids i32[T]: from the host, or, for pending rows, what the device sampled last. Pending rows are of one token: row s is token s."""
    num_rows = inputs["is_pending"].shape[0]
    sampled = slots.last_tokens.at[inputs["batch_slots"]].get(mode="clip")
    first = jnp.where(inputs["is_pending"] == 1, sampled, inputs["token_ids"][:num_rows])
    return inputs["token_ids"].at[:num_rows].set(first)


def last_tokens(inputs: Inputs) -> jax.Array:
    """i32[S]: where each row's last token is."""
    return jnp.maximum(inputs["cu_q_lens"][1:] - 1, 0)


def residual_constraint(model_state: ModelState, bucket: Bucket) -> Constrain:
    """Where the residual stream is kept: as the rules say of `tokens`, if they divide."""
    axes = model_state.axes("tokens")
    if not axes or bucket.num_tokens % num_parts(model_state.rules, "tokens", model_state.mesh):
        return unconstrained
    return lambda x: jax.lax.with_sharding_constraint(x, spec_of([axes, ()]))


def keep_whole(model_state: ModelState, x: jax.Array) -> jax.Array:
    """What every device has stays there: left alone, the partitioner would cut small arrays as it does the residual stream, and gather them again."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec()) if model_state.axes("tokens") else x
