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
from sarathi_jax.kernels.registry import Kernels
from sarathi_jax.models.decoder import Constrain, unconstrained
from sarathi_jax.sharding.model_state import ModelState
from sarathi_jax.sharding.rules import num_parts, spec_of

Step = Callable[[tuple[jax.Array, ...], DeviceState, jax.Array], tuple[DeviceState, jax.Array]]


def make_step(model_state: ModelState, bucket: Bucket, geometry: Geometry, kernels: Kernels) -> Step:
    """The step of one bucket, to be jitted with the state donated.

    Returns: (params, state, packed) -> (state, out). out: i32[S * 2], sampled token ids, then whether each row's logits were finite; in the `full` variant
      followed by LOGPROB_WORDS for each row, and for each of T asked-for prompt tokens, floats as their bits.
    """

    def step(params: tuple[jax.Array, ...], state: DeviceState, packed: jax.Array) -> tuple[DeviceState, jax.Array]:
        model = model_state.merge(params)
        inputs = unpack(packed, bucket, geometry.blocks_per_row)
        layers = list(state.layers)
        constrain = residual_constraint(model_state, bucket)
        hidden = model.hidden_states(
            keep_whole(model_state, input_tokens(inputs, state.slots)),
            keep_whole(model_state, inputs["positions"]),
            paged_attend(model_state, inputs, layers, bucket, geometry, kernels),
            max_length=geometry.max_model_len,
            **(
                {} if constrain is unconstrained else {"constrain": constrain}
            ),  # a module of one's own need not know of it
        )
        last_hidden = keep_whole(model_state, hidden.at[last_tokens(inputs)].get(mode="clip"))
        slots, out = sample_rows(
            model, model_state, hidden, last_hidden, inputs, state.slots, bucket.variant, kernels.filter_thresholds
        )
        return DeviceState(tuple(layers), slots), out

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
