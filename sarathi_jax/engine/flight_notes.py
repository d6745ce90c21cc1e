"""What the flight recorder keeps: a note of each call into a scheduler, and of each request what decisions about it depend on."""

from array import array
from typing import NamedTuple, Protocol

from sarathi_jax.engine.executor import StepShape
from sarathi_jax.engine.step_notes import StepNote
from sarathi_jax.outputs import FinishReason

NO_DIGESTS = array("Q")


class Compiled(Protocol):
    """A program that was compiled."""

    @property
    def name(self) -> str: ...

    @property
    def seconds(self) -> float: ...


class ArrivedNote(NamedTuple):
    num_bytes: int
    requests: tuple[int, ...]


class ScheduledNote(NamedTuple):
    num_bytes: int
    note: StepNote
    now_s: float
    dispatched_s: float
    num_running: int
    num_waiting: int
    num_free_pages: int


class IdleNote(NamedTuple):
    num_bytes: int
    now_s: float


class CompletedNote(NamedTuple):
    num_bytes: int
    step: int
    asked_s: float
    end_s: float
    bucket: StepShape
    ended: tuple[tuple[int, FinishReason], ...]
    compiled: tuple[tuple[str, float], ...]
    is_lost: bool


class FailedNote(NamedTuple):
    num_bytes: int
    step: int
    now_s: float
    ended: tuple[tuple[int, FinishReason], ...]


class AbortedNote(NamedTuple):
    num_bytes: int
    request: int
    now_s: float


class FinishedNote(NamedTuple):
    num_bytes: int
    request: int
    reason: FinishReason
    now_s: float


type Note = ArrivedNote | ScheduledNote | IdleNote | CompletedNote | FailedNote | AbortedNote | FinishedNote


class RequestNote(NamedTuple):
    """What decisions about a request depend on. digests: the first 8 bytes of its blocks' chained hashes; they never leave the process."""

    number: int
    request_id: str
    arrival_s: float
    num_prompt_tokens: int
    max_tokens: int
    num_resumed_tokens: int
    leader: int | None
    sample_index: int
    num_samples: int
    priority: int
    cache_salt: str
    slo_class: str
    client: str
    has_prompt_logprobs: bool
    digests: "array[int]"


class Snapshot(NamedTuple):
    """All that is in the ring at one moment; nothing in it changes any more."""

    requests: list[RequestNote]
    events: list[Note]
    num_dropped: int
    clock_s: float
