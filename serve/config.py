"""The server's own options, checked once; the engine's are `EngineConfig`. Command-line flags are generated from these fields."""

from dataclasses import dataclass, field
from typing import Any, Literal

from sarathi_jax.errors import ConfigError


def _field(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """Options of one server.

    Raises: ConfigError, from the constructor, if a value is out of range.
    """

    host: str = _field("127.0.0.1", "address to listen on; 0.0.0.0: all of them")
    port: int = _field(8000, "port to listen on; 0: any that is free")
    allowed_host: tuple[str, ...] = _field(
        (),
        "name that clients may call this server by; repeat it for several; unset: any, or those of this machine if it listens to no other",
    )
    served_model_name: tuple[str, ...] = _field(
        (), "name that clients call the model by; repeat it for several; unset: the model's own"
    )
    api_key: tuple[str, ...] = _field(
        (), "key that clients must send; repeat it for several; SARATHI_JAX_API_KEY and --api-key-file too"
    )
    api_key_file: str | None = _field(None, "file with KEY, or NAME KEY, in each line; # begins a comment")
    max_queued_requests: int = _field(256, "most requests that wait; one more is refused with 503 and Retry-After")
    max_queued_tokens: int | None = _field(None, "most prompt tokens of requests that wait; unset: no limit")
    max_requests_per_key: int | None = _field(
        None,
        "most requests of one key at a time, the next is refused with 429; unset: half of all, if there are several keys",
    )
    max_samples: int = _field(64, "most samples of one request: prompts times n")
    max_body_bytes: int = _field(16 * 2**20, "most bytes of a request's body")
    max_connections: int = _field(4096, "most connections at a time")
    header_timeout_s: float = _field(10.0, "seconds a client may take to send a request's head")
    body_timeout_s: float = _field(30.0, "seconds a client may take to send a request's body")
    request_timeout_s: float = _field(
        600.0, "most seconds a request may take; deadline_ms in a request can only shorten it"
    )
    slow_reader_timeout_s: float = _field(30.0, "seconds that a client may leave a stream unread before it is cut")
    keep_alive_s: float = _field(30.0, "seconds that an idle connection stays open")
    drain_timeout_s: float = _field(60.0, "seconds that requests have to end after SIGTERM")
    step_timeout_s: float = _field(
        30.0, "seconds after which a step counts as hanging, and the engine is started again"
    )
    max_restarts: int = _field(
        5, "most times that the engine is started again within a minute; the server ends with the next one"
    )
    generation_config: Literal["auto", "none"] = _field(
        "auto", "auto: a request's defaults come from the model's generation_config.json"
    )
    tool_call_format: Literal["auto", "json", "llama3_json", "hermes", "mistral"] = _field(
        "auto", "how the model writes calls of tools; auto: by its chat template"
    )
    metrics_prefix: str = _field(
        "sarathi_jax", "what the names of metrics begin with; vllm: vLLM's own names and buckets"
    )
    access_log: bool = _field(True, "log a line for each request, without what was asked or answered")
    log_format: Literal["text", "json"] = _field("text", "of the log")
    log_level: Literal["debug", "info", "warning", "error"] = _field("info", "least that the log has")
    log_stats_s: float = _field(
        10.0, "seconds between two lines on what the engine does, while it does anything; 0: none"
    )
    otlp_endpoint: str | None = _field(
        None,
        "collector that gets OpenTelemetry's spans, as in http://127.0.0.1:4318; unset: as OTEL_EXPORTER_OTLP_ENDPOINT says",
    )

    def __post_init__(self) -> None:
        for name, low, high in (
            ("port", 0, 65535),
            ("max_queued_requests", 0, 10**6),
            ("max_samples", 1, 10**4),
            ("max_body_bytes", 1024, 2**30),
            ("max_connections", 1, 10**6),
            ("max_restarts", 0, 10**6),
        ):
            _check(name, getattr(self, name), low, high, int)
        for name in ("max_queued_tokens", "max_requests_per_key"):
            if (value := getattr(self, name)) is not None:
                _check(name, value, 1, 10**12, int)
        for name in (
            "header_timeout_s",
            "body_timeout_s",
            "request_timeout_s",
            "slow_reader_timeout_s",
            "keep_alive_s",
            "drain_timeout_s",
            "step_timeout_s",
            "log_stats_s",
        ):
            _check(name, getattr(self, name), 0, 10**7, int | float)
        for name, choices in (
            ("generation_config", ("auto", "none")),
            ("log_format", ("text", "json")),
            ("log_level", ("debug", "info", "warning", "error")),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}: choose one of these."
                )
        if not self.metrics_prefix.isidentifier():
            raise ConfigError(
                f"metrics_prefix must be letters, digits and underscores, got {self.metrics_prefix!r}: write sarathi_jax, or vllm."
            )


def _check(name: str, value: Any, low: int, high: int, kind: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        raise ConfigError(f"{name} must be between {low} and {high}, got {value!r}: choose a value in that range.")
