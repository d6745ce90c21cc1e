"""A small scheduler, requests for it, a loop that runs it with given tokens, one with a clock, and what each policy claims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.policies.slo import SloPolicy
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule, StepResult
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.scheduling.service_levels import service_levels
from sarathi_jax.scheduling.step_times import StepLoad, StepTimes, load_of
from sarathi_jax.scheduling.token_output import TokenOutput

SMALL: dict[str, Any] = {
    "num_pages": 64,
    "page_size": 4,
    "token_budget": 16,
    "max_num_seqs": 8,
    "max_model_len": 128,
    "vocab_size": 100,
}


@dataclass(frozen=True)
class Claims:
    """What a policy does with decodes and prompts, and what it needs for that. Who is not in CLAIMS has to be as good as `sarathi`.

    is_hybrid: a step holds a token of every decode, whatever else; else it reads prompts or decodes, never both. has_turns: prompts only get every other
    step. is_whole: prompts are never split. is_reserving: a request takes the pages of the longest at its admission, and nobody is preempted.
    is_closed: nobody joins those who run once they decode. is_by_arrival: who came first is let in first, and who came last loses its pages first; else the policy
    has an order of its own, in which nobody is overtaken for ever by those who come later. does_chain: in a pipeline a prompt may be in several microbatches, one
    behind the other.
    """

    is_hybrid: bool = True
    has_turns: bool = False
    is_whole: bool = False
    is_reserving: bool = False
    is_closed: bool = False
    is_by_arrival: bool = True
    does_chain: bool = False

    def sizes(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """These sizes, with what the policy needs on top, so that they stay as scarce as they were."""
        max_model_len, max_num_seqs = sizes["max_model_len"], sizes["max_num_seqs"]
        num_tokens = (max_model_len + max_num_seqs * self.is_hybrid) * self.is_whole
        num_pages = -(-max_model_len // sizes["page_size"]) * self.is_reserving
        return {
            **sizes,
            "token_budget": sizes["token_budget"] + num_tokens,
            "num_pages": sizes["num_pages"] + num_pages,
        }


CLAIMS = {
    "vllm": Claims(is_hybrid=False, is_whole=True),
    "orca": Claims(is_whole=True, is_reserving=True),
    "request_level": Claims(is_hybrid=False, is_whole=True, is_reserving=True, is_closed=True),
    "alternating": Claims(is_hybrid=False, has_turns=True),
    "slo": Claims(is_by_arrival=False, does_chain=True),
}


@pytest.fixture(scope="session")
def claims_of() -> Callable[[str], Claims]:
    return lambda policy: CLAIMS.get(policy, Claims())


def small_scheduler(policy: str = "sarathi", **options: Any) -> Scheduler:
    return Scheduler(policy, **{**SMALL, **options})


OWN_OPTIONS = ("eos_token_ids", "constraint", "cache_salt", "arrival_s", "slo_class", "client", "priority")


def small_request(request_id: str, prompt: int | list[int], max_tokens: int = 8, **options: Any) -> Request:
    """A prompt given by its length holds 1, 2, 3, ...; other options go to SamplingParams unless Request has them."""
    prompt = list(range(1, prompt + 1)) if isinstance(prompt, int) else prompt
    own = {name: options.pop(name) for name in OWN_OPTIONS if name in options}
    sampling = SamplingParams(max_tokens=max_tokens, **options)
    return Request(request_id, prompt, sampling, seed=0, max_tokens=max_tokens, **{"arrival_s": 0.0, **own})


class Stepper:
    """Runs a scheduler one step at a time, sampling the same token everywhere unless told otherwise."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def step(self, token_id: int = 7, **result: Any) -> tuple[Schedule, list[TokenOutput]]:
        """Schedule, run and complete one step."""
        schedule = self.scheduler.schedule(0.0)
        assert schedule is not None
        return schedule, self.complete(schedule, token_id, **result)

    def complete(self, schedule: Schedule, token_id: int = 7, **result: Any) -> list[TokenOutput]:
        done = StepResult([token_id] * len(schedule.rows))._replace(**result)
        outputs = list(self.scheduler.complete(schedule, done, 0.0))
        self.scheduler.check_integrity()
        return outputs

    def drain(self) -> list[Schedule]:
        """Step until nothing is left. Returns: the schedules."""
        schedules: list[Schedule] = []
        while self.scheduler.has_unfinished:
            schedules.append(self.step()[0])
            assert len(schedules) < 10_000, "the scheduler makes no progress"
        return schedules


@pytest.fixture
def make_scheduler() -> Callable[..., Scheduler]:
    return small_scheduler


@pytest.fixture(scope="session")
def make_request() -> Callable[..., Request]:
    return small_request


@pytest.fixture
def make_stepper() -> Callable[..., Stepper]:
    """A stepper of a new small scheduler with these requests: `make_stepper(request, ..., token_budget=8)`."""

    def make(*requests: Request, **options: Any) -> Stepper:
        stepper = Stepper(small_scheduler(**options))
        for request in requests:
            stepper.scheduler.add(request)
        return stepper

    return make


class LineTimes:
    """Step times on a straight line, which learn nothing: 1 ms, and 0.1 ms a token."""

    def __init__(self, base_s: float = 1e-3, token_s: float = 1e-4) -> None:
        self.base_s, self.token_s = base_s, token_s

    def seconds(self, load: StepLoad) -> float:
        return self.base_s + self.token_s * load.num_tokens

    def observe(self, load: StepLoad, seconds: float) -> None:
        """Nothing is learned."""


@dataclass
class Ran:
    """A step that was run: its schedule, what it began and ended at, and the requests that were decodes when it was planned."""

    schedule: Schedule
    start_s: float
    end_s: float
    decodes: set[str]


class Machine:
    """Runs a scheduler with a policy on a clock of its own: a step takes what `times` say, and the next one is planned when it is done.

    late: requests to come, by arrival.
    """

    def __init__(
        self, policy: SloPolicy, late: Sequence[Request] = (), times: StepTimes | None = None, **options: Any
    ) -> None:
        sizes = {"num_pages": 2000, "page_size": 16, "token_budget": 2048, "max_num_seqs": 64, "max_model_len": 8192}
        self.scheduler = Scheduler(policy, **{"vocab_size": 10_000, "is_prefix_caching": False, **sizes, **options})
        self.policy = policy
        self.late = sorted(late, key=lambda request: request.arrival_s)
        self.times = times or LineTimes()
        self.now_s = 0.0
        self.ran: list[Ran] = []

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.add(request)

    def step(self) -> Ran:
        """Let in who has arrived, or wait for the next one; plan a step, and run it."""
        if not self.scheduler.has_unfinished:
            self.now_s = max(self.now_s, self.late[0].arrival_s)
        while self.late and self.late[0].arrival_s <= self.now_s:
            self.scheduler.add(self.late.pop(0))
        running = self.scheduler.view(self.now_s).running
        decodes = {each.request_id for each in running if not each.is_prefilling and each.num_remaining_tokens}
        schedule = self.scheduler.schedule(self.now_s)
        assert schedule is not None, "nothing is in flight, and nothing runs"
        ran = Ran(schedule, self.now_s, self.now_s + self.times.seconds(load_of(schedule)), decodes)
        self.now_s = ran.end_s
        self.scheduler.complete(schedule, StepResult([1] * len(schedule.rows)), ran.end_s)
        self.scheduler.check_integrity()
        self.ran.append(ran)
        return ran

    def drain(self) -> list[Ran]:
        """Until everybody has come and gone. Returns: all steps that were ever run."""
        while self.late or self.scheduler.has_unfinished:
            self.step()
            assert len(self.ran) < 20_000, "the scheduler makes no progress"
        return self.ran


@pytest.fixture(scope="session")
def line_times() -> type[LineTimes]:
    return LineTimes


@pytest.fixture(scope="session")
def make_machine() -> type[Machine]:
    return Machine


@pytest.fixture(scope="session")
def make_policy(line_times: type[LineTimes]) -> Callable[..., SloPolicy]:
    """A policy for so many milliseconds between tokens: `make_policy(50, times=..., sizes=..., is_fair=..., ttft_slo_s=...)`."""

    def make(tbt_slo_ms: float, *, times: Any = None, **options: Any) -> SloPolicy:
        own = {name: options.pop(name) for name in ("sizes", "is_fair") if name in options}
        return SloPolicy(times or line_times(), service_levels(tbt_slo_ms / 1e3, **options), **own)

    return make
