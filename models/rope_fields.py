"""How a configuration file spells rotary position embeddings: `rope_theta` and `rope_scaling` (transformers 4), or
`rope_parameters` (transformers 5).

Each scaling means what transformers 5 takes it to mean; what it would only warn about is refused here."""

import math
from collections.abc import Mapping

from sarathi_jax.models.config import RopeConfig, RopeKind
from sarathi_jax.models.config_fields import ConfigFields

# What files may call them, where a family has no names of its own.
KINDS: Mapping[str, RopeKind] = {
    "default": "default",
    "linear": "linear",
    "dynamic": "dynamic",
    "llama3": "llama3",
    "yarn": "yarn",
}
DEFAULT_THETA = 10000.0
DEFAULT_BETAS = (32.0, 1.0)

KNOWN_NAMES: dict[RopeKind, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset({"factor", "beta_fast", "beta_slow", "truncate", "attention_factor", "mscale", "mscale_all_dim"}),
    "longrope": frozenset({"factor", "attention_factor", "short_factor", "long_factor"}),
}
# `finetuned` is a remark. `original_max_position_embeddings` is read where it counts and means nothing elsewhere.
COMMON_NAMES = frozenset(
    {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "finetuned"}
)


def read_rope(config: ConfigFields, max_position_embeddings: int, absent_theta: float = DEFAULT_THETA) -> RopeConfig:
    """The rotary embedding of a model that rotates all of a head.

    Args:
      config: all of config.json.
      max_position_embeddings: its field of that name: the length where dynamic scaling sets in, and the trained length
        where no other is given.
      absent_theta: the base, where the file says nothing.
    Raises: ModelError, naming the field, if it is wrong or not implemented."""
    scaling = given_scaling(config)
    refuse_partial(config, scaling)
    return read_scaling(config, scaling, max_position_embeddings, config.number("rope_theta", absent_theta, over=1.0))


def given_scaling(config: ConfigFields) -> ConfigFields | None:
    """The object that describes the rotary embedding, if there is one."""
    return config.nested("rope_scaling") or config.nested("rope_parameters")


def refuse_partial(config: ConfigFields, scaling: ConfigFields | None) -> None:
    """Raises: ModelError if only a part of a head is to be rotated."""
    for fields in (config, scaling):
        if fields is not None and fields.number("partial_rotary_factor", 1.0) != 1.0:
            fields.refuse("partial_rotary_factor", "must be 1: all of a head is rotated", remedy="use another model")


def read_scaling(
    config: ConfigFields,
    scaling: ConfigFields | None,
    max_position_embeddings: int,
    absent_theta: float,
    kinds: Mapping[str, RopeKind] = KINDS,
) -> RopeConfig:
    """The rotary embedding that one object of a file describes.

    Args:
      scaling: that object; None: the embedding as it was first published.
      absent_theta: the base, where the object has none.
      kinds: what the family has, by the names that its files use.
    Raises: ModelError, as `read_rope`."""
    if scaling is None:
        return RopeConfig(theta=absent_theta)
    theta = scaling.number("rope_theta", absent_theta, over=1.0)
    kind = _read_kind(scaling, kinds)
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
        case "longrope":
            return _read_longrope(scaling, theta, trained_length, max_position_embeddings)


def _read_kind(scaling: ConfigFields, kinds: Mapping[str, RopeKind]) -> RopeKind:
    name = "rope_type" if scaling.get("rope_type") is not None else "type"
    kind = scaling.get(name)
    if kind is None:
        kind = "default"
    if not isinstance(kind, str) or kind not in kinds:
        scaling.refuse(name, f"must be one of {', '.join(kinds)}", remedy="use a model with one of these")
    return kinds[kind]


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


def _read_longrope(
    scaling: ConfigFields, theta: float, trained_length: int, max_position_embeddings: int
) -> RopeConfig:
    factor = scaling.number("factor", max_position_embeddings / trained_length)
    implied = math.sqrt(1 + math.log(factor) / math.log(trained_length)) if factor > 1 and trained_length > 1 else 1.0
    return RopeConfig(
        kind="longrope",
        theta=theta,
        original_max_position=trained_length,
        attention_factor=scaling.number("attention_factor", implied),
        short_factors=scaling.numbers("short_factor"),
        long_factors=scaling.numbers("long_factor"),
    )


def _attention_factor(scaling: ConfigFields, factor: float) -> float | None:
    """What cos and sin are multiplied by, where the file doesn't leave it to the factor alone."""
    if scaling.get("attention_factor") is not None:
        return scaling.number("attention_factor")
    mscale, mscale_all_dim = (scaling.number(name, 0.0, least=0.0) for name in ("mscale", "mscale_all_dim"))
    if not mscale or not mscale_all_dim:
        return None
    return (0.1 * mscale * math.log(factor) + 1.0) / (0.1 * mscale_all_dim * math.log(factor) + 1.0)
