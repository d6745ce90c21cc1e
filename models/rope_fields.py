"""How a configuration file spells rotary position embeddings: `rope_theta` and `rope_scaling` (transformers 4), or
`rope_parameters` (transformers 5).

Each scaling means what transformers 5 takes it to mean; what it would only warn about is refused here."""

import math
from typing import cast, get_args

from sarathi_jax.models.config import RopeConfig, RopeKind
from sarathi_jax.models.config_fields import ConfigFields

KINDS = get_args(RopeKind)
DEFAULT_THETA = 10000.0
DEFAULT_BETAS = (32.0, 1.0)

KNOWN_NAMES: dict[RopeKind, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset({"factor", "beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"}),
}
# `finetuned` is a remark. `original_max_position_embeddings` is read where it counts and means nothing elsewhere.
COMMON_NAMES = frozenset(
    {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "finetuned"}
)


def read_rope(config: ConfigFields, max_position_embeddings: int, absent_theta: float = DEFAULT_THETA) -> RopeConfig:
    """The rotary embedding of a model.

    Args:
      config: all of config.json.
      max_position_embeddings: its field of that name: the length where dynamic scaling sets in, and the trained length
        where no other is given.
      absent_theta: the base, where the file says nothing.
    Raises: ModelError, naming the field, if it is wrong or not implemented."""
    theta = config.number("rope_theta", absent_theta, over=1.0)
    scaling = config.nested("rope_scaling") or config.nested("rope_parameters")
    _refuse_partial(config)
    if scaling is None:
        return RopeConfig(theta=theta)
    theta = scaling.number("rope_theta", theta, over=1.0)
    kind = _read_kind(scaling)
    _refuse_partial(scaling)
    if unknown := sorted(scaling.given_names - KNOWN_NAMES[kind] - COMMON_NAMES):
        scaling.refuse(unknown[0], f"is no field of rope type {kind!r} that is implemented", remedy="use another model")
    trained_length = _trained_length(config, scaling, max_position_embeddings)
    match kind:
        case "default":
            return RopeConfig(theta=theta)
        case "linear":
            return RopeConfig(kind=kind, theta=theta, factor=_factor(scaling))
        case "dynamic":
            return RopeConfig(
                kind=kind, theta=theta, factor=_factor(scaling), original_max_position=max_position_embeddings
            )
        case "llama3":
            return _read_llama3(scaling, theta, trained_length)
        case "yarn":
            return _read_yarn(scaling, theta, trained_length, max_position_embeddings)


def _read_kind(scaling: ConfigFields) -> RopeKind:
    name = "rope_type" if scaling.get("rope_type") is not None else "type"
    kind = scaling.get(name)
    if kind is None:
        kind = "default"
    if kind not in KINDS:
        scaling.refuse(name, f"must be one of {', '.join(KINDS)}", remedy="use a model with one of these")
    return cast("RopeKind", kind)


def _refuse_partial(fields: ConfigFields) -> None:
    if fields.number("partial_rotary_factor", 1.0) != 1.0:
        fields.refuse("partial_rotary_factor", "must be 1: all of a head is rotated", remedy="use another model")


def _factor(scaling: ConfigFields) -> float:
    return scaling.number("factor", least=1.0)


def _trained_length(config: ConfigFields, scaling: ConfigFields, max_position_embeddings: int) -> int:
    name = "original_max_position_embeddings"
    return config.integer_or_none(name) or scaling.integer_or_none(name) or max_position_embeddings


def _read_llama3(scaling: ConfigFields, theta: float, trained_length: int) -> RopeConfig:
    low = scaling.number("low_freq_factor")
    return RopeConfig(
        kind="llama3",
        theta=theta,
        factor=_factor(scaling),
        original_max_position=trained_length,
        low_freq_factor=low,
        high_freq_factor=scaling.number("high_freq_factor", over=low),
    )


def _read_yarn(scaling: ConfigFields, theta: float, trained_length: int, max_position_embeddings: int) -> RopeConfig:
    # null says: by the lengths. A factor that is not there at all is a mistake.
    implied = max_position_embeddings / trained_length if "factor" in scaling else None
    factor = scaling.number("factor", implied, least=1.0)
    beta_fast, beta_slow = (
        scaling.number(name, default) for name, default in zip(("beta_fast", "beta_slow"), DEFAULT_BETAS, strict=True)
    )
    return RopeConfig(
        kind="yarn",
        theta=theta,
        factor=factor,
        original_max_position=trained_length,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        is_truncated=scaling.boolean("truncate", True),
        attention_factor=_attention_factor(scaling, factor),
    )


def _attention_factor(scaling: ConfigFields, factor: float) -> float | None:
    """What cos and sin are multiplied by, where the file doesn't leave it to the factor alone."""
    if scaling.get("attention_factor") is not None:
        return scaling.number("attention_factor")
    mscale, mscale_all_dim = (scaling.number(name, 0.0, least=0.0) for name in ("mscale", "mscale_all_dim"))
    if not mscale or not mscale_all_dim:
        return None
    return (0.1 * mscale * math.log(factor) + 1.0) / (0.1 * mscale_all_dim * math.log(factor) + 1.0)
