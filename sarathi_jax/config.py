"""The engine's options: checked once, here, before anything is loaded. Command-line flags are generated from these fields."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sarathi_jax.errors import ConfigError

TOKEN_TILE = 128  # mixed buckets are multiples of this: GPU matrix products come in tiles of 128 rows
DEFAULT_TOKEN_BUDGET = 512  # Sarathi-Serve's for strict latency goals
SLO_TOKEN_BUDGET = 2048  # the largest step that `slo` may choose; beyond it a token costs no less


def _field(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Options of one engine.

    Raises: ConfigError, from the constructor, if a value is out of range or two values disagree.
    """

    model: str = _field("demo", "demo, a folder in Hugging Face format, or a hub id")
    mesh: str | None = _field(
        None, "devices by axis, of data, stage, expert and tensor, as in stage=2,tensor=4; unset: one device"
    )
    rules: str | Mapping[str, str | Sequence[str] | None] = _field(
        "megatron", "how layers are cut over the mesh: megatron, sequence, replicated, or a .toml file"
    )
    policy: str = _field("sarathi", "how batches are built: sarathi, vllm, orca, request_level, or alternating")
    token_budget: int | None = _field(
        None,
        f"most tokens of one step, decodes included; unset: what tbt_slo_ms and a profile say, else {DEFAULT_TOKEN_BUDGET}",
    )
    tbt_slo_ms: float | None = _field(
        None, "milliseconds between two tokens of a request that 99 of 100 are to keep: chooses the token budget"
    )
    ttft_slo_ms: float | None = _field(
        None, "goal of the policy slo for a first token; unset: in proportion to the prompt's length"
    )
    batch_tbt_slo_ms: float | None = _field(
        None, "goal of the policy slo for requests of the class batch, on average over an output; unset: 5 x tbt_slo_ms"
    )
    batch_ttft_slo_ms: float | None = _field(
        None, "goal of the policy slo for a first token of the class batch; unset: a minute"
    )
    fair_clients: bool = _field(False, "of the policy slo: clients that were served less come first")
    profile: str | None = _field(None, "file that `sarathi-jax bench profile` wrote, which tbt_slo_ms is looked up in")
    max_num_seqs: int = _field(128, "most requests that run at a time")
    max_model_len: int | None = _field(
        None, "most tokens of a request, prompt and output; unset: the model's own limit"
    )
    page_size: int = _field(16, "tokens of a KV page")
    num_pages: int | None = _field(None, "KV pages; unset: what fits into memory")
    memory_fraction: float = _field(0.9, "share of the device's memory to use, when num_pages is unset")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _field(
        "auto", "of weights and KV; auto: the checkpoint's, float32 on CPU"
    )
    kv_dtype: Literal["auto", "int8"] = _field(
        "auto", "of KV alone; int8: half the memory of bfloat16, with a scale per token and head, and an approximation"
    )
    seed: int = _field(0, "of requests that bring none, and of dummy weights")
    load_format: Literal["auto", "dummy"] = _field("auto", "dummy: random weights of the model's real shapes")
    check_weights: bool = _field(True, "refuse a model whose weights hold NaN or infinity")
    prefix_caching: bool = _field(True, "reuse the KV pages of prompts that begin alike")
    overlap: bool = _field(True, "schedule the next step while the device runs this one")
    max_num_partial_prefills: int | None = _field(
        None, "most prompts in flight that are not yet whole; unset: no limit"
    )
    long_prefill_token_threshold: int | None = _field(None, "most tokens of one prompt in a step; unset: the budget")
    head_of_line_blocking: bool = _field(
        True, "a request that does not fit yet holds back those behind it (strict FCFS)"
    )
    preempt_every_steps: int | None = _field(None, "force a preemption every so many steps, to test recompute")
    flight_recorder: int = _field(65536, "events that the flight recorder keeps, two or more a step; 0: none")
    flight_record_folder: str | None = _field(
        None,
        "folder where the flight recorder writes what led to a slow step, a stall, a compile or a failure; unset: nowhere",
    )
    kernels: str = _field(
        "auto", "implementation of the kernels: triton, xla, or triton-interpreter; auto: the best one for the device"
    )
    compile_cache: str | None = _field(
        None, "folder that keeps compiled programs; unset: the user's cache folder; empty: none"
    )
    num_processes: int | None = _field(
        None, "processes that run the model together; without a coordinator, the others are started on this machine"
    )
    process_id: int | None = _field(None, "which of them this is; 0 leads; unset: what Slurm or Kubernetes says")
    coordinator: str | None = _field(
        None,
        "HOST:PORT where process 0 listens for the others (jax takes the next port); auto: from Slurm or Kubernetes",
    )

    def __post_init__(self) -> None:
        _check_texts(self)
        for name in ("max_num_seqs", "page_size"):
            _check_int(name, getattr(self, name), 1)
        for name in (
            "token_budget",
            "max_model_len",
            "num_pages",
            "max_num_partial_prefills",
            "long_prefill_token_threshold",
            "preempt_every_steps",
            "num_processes",
        ):
            if (value := getattr(self, name)) is not None:
                _check_int(name, value, 1)
        _check_int("seed", self.seed, 0)
        _check_int("flight_recorder", self.flight_recorder, 0)
        if self.process_id is not None:
            _check_int("process_id", self.process_id, 0)
        _check_coordinator(self.coordinator)
        if self.page_size & (self.page_size - 1):
            raise ConfigError(
                f"page_size={self.page_size} must be a power of two: kernels split positions by shifts. Use 16."
            )
        _check_goals(self)
        _check_budget(self)
        if (
            isinstance(self.memory_fraction, bool)
            or not isinstance(self.memory_fraction, int | float)
            or not 0 < self.memory_fraction <= 1
        ):
            raise ConfigError(
                f"memory_fraction={self.memory_fraction!r} must be above 0 and at most 1: it is a share of memory. Use 0.9."
            )
        for name, choices in (
            ("dtype", ("auto", "float32", "bfloat16", "float16")),
            ("kv_dtype", ("auto", "int8")),
            ("load_format", ("auto", "dummy")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}: choose one of these."
                )

    @property
    def is_budget_from_slo(self) -> bool:
        """Whether the token budget is to be looked up in a profile, once. The policy `slo` looks at the goal itself, at every step."""
        return self.tbt_slo_ms is not None and self.policy != "slo"

    @property
    def step_tokens(self) -> int:
        """Most tokens of one step: the token budget, where it was given or has been chosen (`scheduling.token_budget`), else the default."""
        default = SLO_TOKEN_BUDGET if self.policy == "slo" else DEFAULT_TOKEN_BUDGET
        return default if self.token_budget is None else self.token_budget

    @property
    def mesh_shape(self) -> dict[str, int]:
        """Axis name -> devices. Raises: ConfigError if `mesh` is not a list of axis=number."""
        return _parse_mesh(self.mesh)


MESH_AXES = ("data", "stage", "expert", "tensor")


GOALS = ("tbt_slo_ms", "ttft_slo_ms", "batch_tbt_slo_ms", "batch_ttft_slo_ms")


def _check_goals(config: EngineConfig) -> None:
    for name in GOALS:
        goal_ms = getattr(config, name)
        is_number = isinstance(goal_ms, int | float) and not isinstance(goal_ms, bool)
        if goal_ms is not None and not (is_number and 0 < goal_ms < math.inf):
            raise ConfigError(f"{name}={goal_ms!r} must be above 0: it is a time in milliseconds. Use 100.")
    for name in (*GOALS[1:], "fair_clients"):
        if config.policy != "slo" and getattr(config, name):
            raise ConfigError(
                f"{name} is for policy='slo', got policy={config.policy!r}: choose that policy, or leave {name} out."
            )


def _check_budget(config: EngineConfig) -> None:
    slo_ms = config.tbt_slo_ms
    if not config.is_budget_from_slo:
        if config.step_tokens < config.max_num_seqs:
            raise ConfigError(
                f"token_budget={config.step_tokens} must be >= max_num_seqs={config.max_num_seqs}: every running request decodes one token"
                " per step. Raise token_budget or lower max_num_seqs."
            )
    elif config.token_budget is not None:
        raise ConfigError(
            f"tbt_slo_ms={slo_ms} chooses the token budget, got token_budget={config.token_budget} besides: leave out one of them."
        )
    elif config.profile is None:
        raise ConfigError(
            f"tbt_slo_ms={slo_ms} needs a profile of this machine, got none: run `sarathi-jax bench profile {config.model} --out profile.json`, and"
            " pass profile=profile.json."
        )


def _check_texts(config: EngineConfig) -> None:
    for name, kinds, example in (
        ("mesh", str | None, "tensor=2"),
        ("coordinator", str | None, "node1:7700"),
        ("profile", str | None, "profile.json"),
        ("flight_record_folder", str | None, "records"),
        ("rules", str | Mapping, "megatron"),
    ):
        if not isinstance(getattr(config, name), kinds):
            raise ConfigError(f"{name} must be a text, got {getattr(config, name)!r}: write {example}.")
    _parse_mesh(config.mesh)


def _parse_mesh(text: str | None) -> dict[str, int]:
    shape: dict[str, int] = {}
    for part in (text or "").split(","):
        axis, _, size = part.strip().partition("=")
        if not part.strip():
            continue
        if axis not in MESH_AXES or not size.isdecimal() or int(size) < 1 or axis in shape:
            raise ConfigError(
                f"mesh must be axis=number, joined by commas, with axes {', '.join(MESH_AXES)}, got {text!r}: write tensor=2."
            )
        shape[axis] = int(size)
    return shape


AUTO_COORDINATOR = "auto"


def _check_coordinator(value: str | None) -> None:
    if value is None or value == AUTO_COORDINATOR:
        return
    host, _, port = value.rpartition(":")
    # jax takes the next port.
    if not host or not port.isdecimal() or not 0 < int(port) < 65535:
        raise ConfigError(
            f"coordinator must be HOST:PORT or {AUTO_COORDINATOR}, with a port below 65535, got {value!r}: write node1:7700."
        )
    if host.strip("[]") in ("0.0.0.0", "::", "*"):
        raise ConfigError(
            f"coordinator must name one address of process 0's host, got {value!r}, which means all of them: name the one that the others reach."
        )


def _check_int(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{name}={value!r} must be a whole number, at least {low}: choose another value.")
