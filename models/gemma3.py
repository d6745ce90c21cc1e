"""Gemma 3, the text models: Gemma 2 with normalized queries and keys, no soft caps of attention, and a rotary embedding of its own for layers with a window."""

from dataclasses import replace

from sarathi_jax.models import gemma2
from sarathi_jax.models.base_fields import read_windows
from sarathi_jax.models.config import ModelConfig, RopeConfig
from sarathi_jax.models.config_fields import ConfigFields
from sarathi_jax.models.gemma2 import ABSENT_WINDOW, read_gemma
from sarathi_jax.models.rope_fields import read_scaling, refuse_partial

ARCHITECTURE = "Gemma3ForCausalLM"
ABSENT = gemma2.ABSENT._replace(max_position_embeddings=131072)
# The published files leave out what is as transformers has it, these too.
ABSENT_SIZES = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}
ABSENT_PATTERN = 6
ABSENT_THETA, ABSENT_LOCAL_THETA = 1e6, 1e4
GLOBAL, LOCAL = "full_attention", "sliding_attention"

create = gemma2.create
param_sources = gemma2.param_sources


def read_config(fields: ConfigFields) -> ModelConfig:
    """Raises: ModelError, as `read_gemma`, and if attention is to have a soft cap."""
    return read_text_config(fields, "gemma3_text")


def read_text_config(fields: ConfigFields, family: str) -> ModelConfig:
    """What describes the text model, which may be all of a file, or an object in it. Raises: as `read_config`."""
    fields = fields.with_absent(ABSENT_SIZES)
    if fields.get("attn_logit_softcapping") is not None:
        fields.refuse("attn_logit_softcapping", f"must be null in a {family} model")
    global_rope, local_rope = _read_ropes(fields)
    base = read_gemma(fields, family, ABSENT, global_rope)
    pattern = fields.integer_or_none("sliding_window_pattern") or ABSENT_PATTERN
    local_layers = [index for index in range(base.num_layers) if (index + 1) % pattern]
    size = fields.integer_or_none("sliding_window", ABSENT_WINDOW)
    windows = read_windows(fields, base.num_layers, size, local_layers)
    return replace(
        base,
        has_qk_norm=True,
        local_rope=local_rope if windows.size else None,
        sliding_window=windows.size,
        window_layers=windows.layers,
        logit_soft_cap=fields.number_or_none("final_logit_softcapping", None),
    )


def _read_ropes(fields: ConfigFields) -> tuple[RopeConfig, RopeConfig]:
    """Of layers without a window, and with one: in `rope_parameters` by kind of layer, or in the fields of transformers 4, where `rope_scaling` is the former's."""
    max_positions = fields.integer_or_none("max_position_embeddings") or ABSENT.max_position_embeddings
    by_kind, scaling = fields.nested("rope_parameters"), fields.nested("rope_scaling")
    if scaling is not None and "type" in scaling and "rope_type" not in scaling:
        scaling.refuse("type", "must be spelled rope_type: transformers would pass over it")
    local = None
    if by_kind is not None:
        if unknown := sorted(by_kind.given_names - {GLOBAL, LOCAL}):
            by_kind.refuse(unknown[0], f"must be in {GLOBAL} or {LOCAL}: the model has two rotary embeddings")
        if scaling is not None:
            fields.refuse("rope_scaling", "must not be there beside rope_parameters", remedy="remove it")
        scaling, local = by_kind.nested(GLOBAL), by_kind.nested(LOCAL)
    refuse_partial(fields, scaling)
    refuse_partial(fields, local)
    theta = fields.number("rope_theta", ABSENT_THETA, over=1.0)
    local_theta = fields.number("rope_local_base_freq", ABSENT_LOCAL_THETA, over=1.0)
    return (
        read_scaling(fields, scaling, max_positions, theta),
        read_scaling(fields, local, max_positions, local_theta),
    )
