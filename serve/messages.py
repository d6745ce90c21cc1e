"""What the front and the engine process say to each other: fixed fields in msgpack, never anything that could run. Requests are numbered by the front.

front -> engine   Start | Add, Abort, EndSample, Watch ..., Stop
engine -> front   Found, Ready | Tokens, Refused, Explained, Steps ..., Ended
"""

from typing import Any

from msgspec import Struct

from sarathi_jax.outputs import FinishReason, TokenLogprobs
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.limits import SchedulerLimits

EXPLAIN_LIMIT_S = 1.0  # that an answer waits for Explained


class Start(Struct, frozen=True, tag="start"):
    """options: EngineConfig's fields that are not at their defaults. progress: show bars. log_format, log_level: as ServeConfig's."""

    options: dict[str, Any]
    progress: bool
    log_format: str = "text"
    log_level: str = "info"


class Add(Struct, frozen=True, tag="add", kw_only=True):
    """Queue a request, or one sample of it again with the tokens that it brought from an engine before this one.

    params: without stop strings, which are the front's; with a seed. arrival_s: on the machine's monotonic clock, which both processes read.
    sample: None: all samples; else this one alone, which params' seed is of. wants_timing: tell why tokens came late, with Explained.
    """

    number: int
    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival_s: float
    cache_salt: str
    slo_class: str
    client: str
    priority: int = 0
    sample: int | None = None
    output_token_ids: list[int] = []
    wants_timing: bool = False


class Abort(Struct, frozen=True, tag="abort"):
    """End a request; nothing more is said of it."""

    number: int


class EndSample(Struct, frozen=True, tag="end_sample"):
    """A sample's text holds a stop string; nothing more is said of that sample."""

    number: int
    sample: int


class Watch(Struct, frozen=True, tag="watch"):
    """Whether Steps are to say which rows each step had."""

    is_on: bool


class Stop(Struct, frozen=True, tag="stop"):
    """End the process."""


class Found(Struct, frozen=True, tag="found"):
    """The model is found; loading begins. folder: with the tokenizer; None: there is none."""

    folder: str | None


class EngineFacts(Struct, frozen=True, kw_only=True):
    """What an engine is. vocab_size: the logits' width, in limits. compile_s: seconds of all programs, added up."""

    model: str
    limits: SchedulerLimits
    policy: str
    eos_token_ids: list[int]
    devices: list[str]
    mesh: str | None
    dtype: str
    memory: str
    weight_bytes: int
    kv_bytes: int
    tbt_slo_ms: float | None
    num_replicas: int
    num_programs: int
    num_cache_hits: int
    compile_s: float


class Ready(Struct, frozen=True, tag="ready"):
    facts: EngineFacts


class Done(Struct, frozen=True, array_like=True):
    """What is known of a request with its first token, and again with its last. num_prefix_hit_tokens, scheduling_delay_s: of its first sample."""

    num_prefix_hit_tokens: int
    num_preemptions: int
    scheduling_delay_s: float | None


class TokenEvent(Struct, frozen=True, array_like=True):
    """What a sample gained in a step. error: what kind of error ended it, with finish_reason "error"."""

    number: int
    sample: int
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    error: str | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    done: Done | None = None


class Tokens(Struct, frozen=True, tag="tokens"):
    """All that a step brought. end_s: when."""

    end_s: float
    events: list[TokenEvent]


class Refused(Struct, frozen=True, tag="refused"):
    """A request could not be queued."""

    number: int
    message: str
    param: str | None


class CauseShare(Struct, frozen=True, array_like=True):
    """What one kind of cause did to a gap (docs/flight-recorder.md). num_requests: of others, whose doing it was. num_tokens: of theirs, or of padding."""

    kind: str
    seconds: float
    num_tokens: int
    num_requests: int


class LateToken(Struct, frozen=True, array_like=True):
    """token: its number among the output's, from 1. at_s: since the request arrived. causes: the largest first; they add up to gap_s."""

    sample: int
    token: int
    at_s: float
    gap_s: float
    causes: list[CauseShare]


class Explained(Struct, frozen=True, tag="explained"):
    """A request that wanted timing has ended. late: None: nobody knows."""

    number: int
    late: list[LateToken] | None


class StepRow(Struct, frozen=True, array_like=True):
    request_id: str
    start: int
    num_tokens: int
    is_prefill: bool
    does_sample: bool


class Step(Struct, frozen=True, array_like=True):
    """One step, as `engine.records.StepRecord`. rows, preempted: only while they are watched."""

    step: int
    start_s: float
    end_s: float
    bucket: str
    bucket_tokens: int
    num_decode_tokens: int
    num_prefill_tokens: int
    num_rows: int
    num_preemptions: int
    replica: int
    rows: list[StepRow]
    preempted: list[str]


class Steps(Struct, frozen=True, tag="steps", kw_only=True):
    """Steps since the last such message, and how the engine stands. It comes a few times a second while there is work: silence means that a step hangs.

    num_stalls: since the engine's start; None: it has no flight recorder, which sees them.
    """

    now_s: float
    steps: list[Step]
    num_running: int
    num_waiting: int
    num_used_pages: int
    num_cached_pages: int
    num_free_pages: int
    num_compiled_late: int
    num_stalls: int | None


class Ended(Struct, frozen=True, tag="ended"):
    """The engine can't go on."""

    message: str


type ToEngine = Start | Add | Abort | EndSample | Watch | Stop
type ToFront = Found | Ready | Tokens | Refused | Explained | Steps | Ended
