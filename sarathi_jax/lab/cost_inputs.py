"""What the cost model is told of a model and of a sharding table: it stands beside the device code, and can't import either."""

from collections.abc import Mapping
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from flax import nnx

from sarathi_jax.models import ModelConfig, create_model
from sarathi_jax.sharding.rules import Rules
from sarathi_jax.simulation.model_shape import ModelShape
from sarathi_jax.simulation.placement import Axes, Cuts

SCALE_BYTES = 4  # of each quantized head of a token


def model_shape(config: ModelConfig, itemsize: int, kv_dtype: str) -> ModelShape:
    """The sizes of a model. itemsize: bytes of a number in its weights. kv_dtype: as numpy spells it, or "bfloat16"."""
    kv_itemsize = 2 if kv_dtype == "bfloat16" else np.dtype(kv_dtype).itemsize
    moe, layers = config.moe, range(config.num_layers)
    return ModelShape(
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        mlp_size=moe.expert_size if moe else config.intermediate_size,
        vocab_size=config.vocab_size,
        num_mlp_matrices=3 if config.is_mlp_gated else 2,
        num_experts=moe.num_experts if moe else 0,
        experts_per_token=moe.num_experts if moe else 0,  # all work for every token: see sarathi_jax/models/moe.py
        dense_layers=moe.dense_layers if moe else (),
        dense_mlp_size=config.intermediate_size if moe and moe.dense_layers else 0,
        num_all_reduces_per_layer=2 if config.block == "sequential" else 1,
        num_norms_per_layer=_num_norms(config),
        is_head_tied=config.is_head_tied,
        windows=tuple(config.window(layer) for layer in layers) if config.sliding_window else (),
        weight_itemsize=itemsize,
        kv_itemsize=kv_itemsize,
        kv_scale_bytes=SCALE_BYTES if kv_itemsize == 1 else 0,
    )


def _num_norms(config: ModelConfig) -> int:
    """Norms of whole tokens in a layer, counted in the model itself."""
    one_layer = replace(config, num_layers=1)
    model = nnx.eval_shape(lambda: create_model(one_layer, rngs=nnx.Rngs(0), dtype=jnp.dtype(jnp.float32)))
    scales = (
        param for keys, param in nnx.to_flat_state(nnx.split(model)[1]) if keys[0] == "layers" and keys[-1] == "scale"
    )
    return sum(param.shape == (config.hidden_size,) for param in scales)


def cuts_of(rules: Rules) -> Cuts:
    """The table's cuts. What it has for `embed` and `norm` is not priced."""
    return Cuts(**{name: _axes(rules, name) for name in Cuts.__slots__})


def unpriced(rules: Rules) -> Mapping[str, Axes]:
    """Logical axes that the table cuts and the cost model takes for whole: axis -> mesh axes."""
    priced = set(Cuts.__slots__)
    return {name: axes for name in rules if name not in priced and (axes := _axes(rules, name))}


def _axes(rules: Rules, name: str) -> Axes:
    value = rules.get(name)
    return (value,) if isinstance(value, str) else tuple(value or ())
