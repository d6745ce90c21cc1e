"""A profile: what steps of many kinds took on one machine, and what it was measured on. A JSON file, which `sarathi-jax bench profile` writes."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from sarathi_jax.config import MESH_AXES, EngineConfig
from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.step_times import StepLoad

FORMAT = "sarathi-jax step profile"
VERSION = 1  # of the file's fields; a reader takes no other


@dataclass(frozen=True, kw_only=True)
class StepSample:
    """One load, run several times.

    num_tokens .. chunk_pairs: as in `StepLoad`. median_s, p99_s: over the repeats, interpolated between ranks.
    Raises: ConfigError from the constructor if a number can't be.
    """

    num_tokens: int
    num_rows: int
    num_decodes: int
    decode_context: int
    chunk_pairs: float
    median_s: float
    p99_s: float
    num_repeats: int

    def __post_init__(self) -> None:
        is_step = 0 <= self.num_decodes <= self.num_rows <= self.num_tokens and self.num_tokens > 0
        is_attention = self.decode_context >= self.num_decodes and 0 <= self.chunk_pairs < math.inf
        if not is_step or not is_attention:
            raise ConfigError(f"a sample must have num_decodes <= num_rows <= num_tokens, and counts >= 0, got {self}.")
        if not 0 < self.median_s <= self.p99_s < math.inf or self.num_repeats < 1:
            raise ConfigError(f"a sample must have 0 < median_s <= p99_s and num_repeats >= 1, got {self}.")

    @cached_property
    def load(self) -> StepLoad:
        return StepLoad(self.num_tokens, self.num_rows, self.num_decodes, self.decode_context, self.chunk_pairs)


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """Samples, and what they hold for.

    decode_sizes, mixed_sizes: tokens of the compiled buckets, ascending; () where steps are not padded.
    num_kv_tokens: tokens that the KV cache has room for. mesh: as `mesh_name`. dtype, kv_dtype, kernels: as the engine's options.
    num_stages: of the pipeline that the mesh has.
    Raises: ConfigError from the constructor if sizes don't ascend.
    """

    model: str
    device: str
    mesh: str
    dtype: str
    kv_dtype: str
    kernels: str
    jax_version: str
    token_budget: int
    max_num_seqs: int
    max_model_len: int
    num_kv_tokens: int
    num_stages: int = 1
    decode_sizes: tuple[int, ...] = ()
    mixed_sizes: tuple[int, ...] = ()
    samples: tuple[StepSample, ...] = ()

    def __post_init__(self) -> None:
        for name in ("decode_sizes", "mixed_sizes"):
            sizes: Sequence[int] = getattr(self, name)
            if any(one >= other for one, other in pairwise((0, *sizes))):
                raise ConfigError(f"{name} must be positive and ascend, got {sizes}.")


def mesh_name(config: EngineConfig) -> str:
    """The mesh, spelled in one way: axes in their order, without those of one device; "" for one device."""
    sizes = config.mesh_shape
    return ",".join(f"{axis}={sizes[axis]}" for axis in MESH_AXES if sizes.get(axis, 1) > 1)


def write_profile(profile: StepProfile, path: Path) -> None:
    """Raises: ConfigError if the file can't be written."""
    text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(profile)}, indent=1)
    try:
        path.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the profile must be written to {path}, got {error}: name a file that can be written."
        ) from error


def read_profile(path: Path) -> StepProfile:
    """Raises: ConfigError if the file is not there, or is not a profile of this version."""
    import msgspec  # here: an engine without a profile does without it

    try:
        fields: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise ConfigError(f"its format must be {FORMAT!r}")
        if fields.get("version") != VERSION:
            raise ConfigError(f"its version must be {VERSION}, and is {fields.get('version')!r}")
        return msgspec.convert(fields, StepProfile)
    except (OSError, ValueError, msgspec.ValidationError) as error:
        raise ConfigError(
            f"profile {path} must be what `sarathi-jax bench profile` wrote, got a fault: {error} Write it anew."
        ) from error
