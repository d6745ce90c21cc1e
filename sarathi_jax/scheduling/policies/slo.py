"""Stall-free batching whose budget is time: each step holds every decode, and as much of prompts as fits before the first token is due.

Nothing is to be tuned. What a step takes is predicted by `step_times`, which learns while it runs. After FairBatching (arXiv 2510.14392: a time budget and token
deadlines), Niyama (arXiv 2503.22562: classes, relegation) and Medha (arXiv 2409.17264: slack in proportion to length, chunks of a prompt in all stages at a time):

    budget      the largest bucket whose predicted time is within MARGIN of what the tightest decode may still take, or within less where the slowest of a
                hundred steps take longer than said; the largest there is if nobody decodes. No larger than what holds the prompts that end in it, once a token
                costs hardly more than in the largest: the beginning of another one would make their tokens late, and its own no sooner
    order       prompts by priority, and within one by least slack, those that were begun and those that wait alike: a first token is due at the class's TTFT SLO,
                or without one after STRETCH times what the prompt alone would take. The latter is cut off at CUT_OFF typical prompts: so nobody is overtaken by
                those of the same or a higher number who came much later than that, which bounds starvation
    relegation  a prompt that can't keep its TTFT SLO any more lets pass those that can, until it has waited PATIENCE times its SLO
    pipelines   a prompt's next chunk goes in right behind the one before it, so that all stages read the prompt that is due first, each one part of it.
                Microbatches have to be alike, since bubbles cost more than launches: the smallest bucket that is nearly as efficient as the largest, or a larger
                one where prompts fill it in all microbatches, and few slots are taken (long steps make requests stay, and a full house ends prompts)
    pages       decodes that find none take them from the highest priority number, and there from whom it costs least: prompts before outputs, outputs with
                slack before others
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple

from sarathi_jax.config import TOKEN_TILE
from sarathi_jax.errors import ConfigError
from sarathi_jax.scheduling.fairness import ClientShares
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.policies.plan_round import PlanRound
from sarathi_jax.scheduling.policies.victims import cheapest_victims
from sarathi_jax.scheduling.policy import Plan, View
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.service_levels import INTERACTIVE, ServiceLevel, service_levels
from sarathi_jax.scheduling.step_tail import StepTail
from sarathi_jax.scheduling.step_times import LearningStepTimes, StepLoad, StepTimeModel, load_of
from sarathi_jax.scheduling.waiting_lines import WaitingLines

MARGIN = 0.95
STRETCH = 18.0
CUT_OFF = 1.0
PATIENCE = 10.0
# Time a token, over that in the largest bucket, from which on a step may end with a prompt.
WORTHWHILE = 1.2
# Of a pipeline's bucket: likewise; share of the slots up to which a larger one may be taken.
EFFICIENT = 1.08
ROOMY = 0.6
LOOKAHEAD = 128  # of each class: those behind them wait until they are among the oldest
MAX_CARRIED = 4  # TBT SLOs that one step may take of a slack that was earned
LENGTH_RATE = 0.02  # how fast the typical prompt follows those that come

type Key = Callable[[Request], tuple[int, int, float, bool, float, tuple[int, int, int]]]


class StepAhead(NamedTuple):
    """A step in flight, as it was predicted."""

    load: StepLoad
    seconds: float
    scheduled_s: float


class SloPolicy:
    """Args:

    times: predicts steps, and learns from them: this policy's alone. None: a guess, which is for simulations of nothing in particular.
    levels: what each class of requests was promised; a class that is not there counts as `interactive`, which has to be.
    sizes: tokens of the mixed buckets that are compiled, ascending; (): every tile up to the budget.
    is_fair: whether clients that were served less come first.

    Raises: ConfigError from the constructor if `interactive` is missing.
    """

    def __init__(
        self,
        times: LearningStepTimes | None = None,
        levels: Mapping[str, ServiceLevel] | None = None,
        *,
        sizes: Sequence[int] = (),
        is_fair: bool = False,
    ) -> None:
        self.times: LearningStepTimes = StepTimeModel.guess() if times is None else times
        self.levels = service_levels(0.1) if levels is None else dict(levels)
        if INTERACTIVE not in self.levels:
            raise ConfigError(
                f"levels must have {INTERACTIVE!r}, which requests are unless they say otherwise, got {', '.join(self.levels) or 'none'}: add it."
            )
        self.tail = StepTail(self.times)
        self._sizes = tuple(sizes)
        self._shares = ClientShares() if is_fair else None
        self._lines = WaitingLines(_client_of) if is_fair else WaitingLines()
        self._typical_tokens = 0.0
        self._ahead: deque[StepAhead] = deque()
        self._completed_s = float("-inf")

    @property
    def sizes(self) -> Sequence[int]:
        return self._sizes

    @property
    def is_fair(self) -> bool:
        return self._shares is not None

    def check(self, limits: SchedulerLimits) -> None:
        """Any limits will do."""

    def plan(self, view: View) -> Plan:
        plan = PlanRound(view, does_chain_chunks=True, victims=cheapest_victims(view, self._rank))
        prefilling = plan.add_decodes()
        prompts = prefilling + self._waiting(view) if plan.may_admit else prefilling
        if prompts:
            prompts.sort(key=self._key(view))
            plan.limit_tokens(self._budget(view, plan.decodes, prompts))
            plan.add_prompts(prompts)
        return plan.plan()

    # ---- what it learns

    def arrived(self, request: Request) -> None:
        num_tokens = request.num_given_tokens - request.num_expected_hit_tokens
        self._typical_tokens += (num_tokens - self._typical_tokens) * (LENGTH_RATE if self._typical_tokens else 1.0)
        if self._shares is not None:
            self._lines.drop_ended()
            if request.client not in (clients := self._lines.clients):
                self._shares.returned(request.client, clients)
        self._lines.add(request)

    def scheduled(self, schedule: Schedule, requests: Sequence[Request], now_s: float) -> None:
        load = load_of(schedule)
        self._ahead.append(StepAhead(load, self.times.seconds(load), now_s))
        self._lines.admitted(requests[schedule.num_decode_rows :])
        if self._shares is not None:
            self._shares.scheduled(schedule, requests)

    def completed(self, schedule: Schedule, seconds: float | None, now_s: float) -> None:
        load = self._ahead.popleft().load
        self._completed_s = now_s
        if seconds is not None:
            self.times.observe(load, seconds)
            if not load.is_decode_only:
                self.tail.observe(load, seconds)

    def lost(self) -> None:
        self._ahead.clear()

    # ---- order

    def _waiting(self, view: View) -> list[Request]:
        """Those who may be admitted, of each priority until there are enough: who is at the front for having run before, and the first of each line."""
        if view.is_partial:
            return list(view.waiting)
        waiting: list[Request] = []
        for priority, queue in view.waiting.by_priority():
            waiting += takewhile(lambda each: each.first_scheduled_s is not None or each.sample_index > 0, queue)
            clients = self._lines.clients_of(priority)
            for client in clients if self._shares is None else sorted(clients, key=self._shares.served):
                waiting += self._lines.first(priority, client, LOOKAHEAD)
                if len(waiting) >= LOOKAHEAD:
                    break
            if len(waiting) >= LOOKAHEAD:
                break
        return waiting

    def _key(self, view: View) -> Key:
        """What prompts are sorted by: priority, who is in the middle of its output, the client's share, who was relegated, slack, arrival."""
        levels, shares, now_s = self.levels, self._shares, view.now_s
        token_s = self._token_s(view.limits)
        stretch_s, cut_off = STRETCH * token_s, CUT_OFF * self._typical_tokens
        default = levels[INTERACTIVE]

        def key(request: Request) -> tuple[int, int, float, bool, float, tuple[int, int, int]]:
            priority = request.priority
            if request.first_token_s is not None or (request.samples and request.samples[0].first_token_s is not None):
                # Its next token is late already, or little is missing to its first.
                return priority, 0, 0.0, False, request.arrival_s, request.order
            share = 0.0 if shares is None else shares.served(request.client)
            num_left = request.num_tokens - max(request.num_computed_tokens, request.num_expected_hit_tokens)
            ttft_slo_s = levels.get(request.slo_class, default).ttft_slo_s
            if ttft_slo_s is None:
                due_s = request.arrival_s + stretch_s * min(num_left, cut_off)
                return priority, 1, share, False, due_s, request.order
            due_s = request.arrival_s + ttft_slo_s
            is_relegated = due_s - token_s * num_left < now_s < request.arrival_s + PATIENCE * ttft_slo_s
            # By when the whole prompt had to begin: a begun one would gain slack with every chunk, so that equal ones took turns and all came late.
            start_by_s = due_s - token_s * (request.num_tokens - request.num_expected_hit_tokens)
            return priority, 1, share, is_relegated, start_by_s, request.order

        return key

    def _token_s(self, limits: SchedulerLimits) -> float:
        """What a token of a prompt takes in a large step, as many being under way as there are stages."""
        size = limits.token_budget
        return self.times.seconds(StepLoad(size, 1, 0, 0, size * size / 2)) / size / limits.num_microbatches

    # ---- budget

    def _budget(self, view: View, decodes: Sequence[Request], prompts: Sequence[Request]) -> int:
        """Tokens of this step. prompts: in the order in which they are given them."""
        limits = view.limits
        sizes = step_sizes(self._sizes, limits.token_budget)
        if limits.num_microbatches > 1:
            sizes = self._balanced_sizes(view, sizes, prompts)
        chunks = _chunks(view, prompts, sizes[-1] - len(decodes))
        if limits.num_microbatches == 1:
            sizes = self._whole_sizes(sizes, len(decodes), chunks)
        limit_s = self._limit_s(view, decodes)
        context = sum([request.num_computed_tokens for request in decodes]) + len(decodes)
        low = next((place for place, size in enumerate(sizes) if size > len(decodes)), len(sizes) - 1)
        high = len(sizes) - 1
        while low < high:  # the largest that keeps the limit; the smallest with room for a prompt in any case
            middle = (low + high + 1) // 2
            load = _load(sizes[middle], len(decodes), context, chunks)
            if self.times.seconds(load) <= limit_s:
                low = middle
            else:
                high = middle - 1
        return sizes[low]

    def _limit_s(self, view: View, decodes: Sequence[Request]) -> float:
        """What the step may be predicted to take."""
        num_microbatches = view.limits.num_microbatches
        if num_microbatches == 1:
            return min(MARGIN, 1 / self.tail.ratio) * self._allowed_s(decodes, self._start_s(view.now_s))
        # After a short microbatch, a long one waits for another long one: its tokens come (stages + 1) of its stage times after the last ones. And the decodes of
        # other microbatches wait for a stage of this one, which their share of the time has room for.
        running = [request for request in view.running if not request.is_prefilling]
        limit_s = self._allowed_s(decodes, view.now_s) * num_microbatches / (num_microbatches + 1)
        return min(limit_s, self._allowed_s(running, view.now_s))

    def _start_s(self, now_s: float) -> float:
        """When the step that is planned now can begin: those in flight are before it."""
        free_s = self._completed_s
        for step in self._ahead:
            free_s = max(free_s, step.scheduled_s) + step.seconds
        return max(free_s, now_s)

    def _allowed_s(self, decodes: Sequence[Request], start_s: float) -> float:
        """How long the step may take for the decode that is due first."""
        default = self.levels[INTERACTIVE]
        levels = {name: self.levels.get(name, default) for name in {request.slo_class for request in decodes}}
        allowed_s = min((each.tbt_slo_s for each in levels.values() if not each.carries_slack), default=float("inf"))
        if any(each.carries_slack for each in levels.values()):
            for request in decodes:
                level = levels[request.slo_class]
                if level.carries_slack:
                    allowed_s = min(allowed_s, _carried_s(request, level.tbt_slo_s, start_s))
        return allowed_s

    def _balanced_sizes(self, view: View, sizes: Sequence[int], prompts: Sequence[Request]) -> Sequence[int]:
        """Up to the one that costs hardly more a token than the largest, or while slots are left the largest that prompts fill in all microbatches."""
        efficient = self._smallest_within(EFFICIENT, sizes)
        is_roomy = len(view.running) <= ROOMY * view.limits.max_num_seqs
        num_left = sum([request.num_tokens - request.num_computed_tokens for request in prompts])
        num_microbatches = view.limits.num_microbatches
        balanced = [size for size in sizes if size <= efficient or (is_roomy and num_left >= num_microbatches * size)]
        return balanced or sizes[:1]

    def _whole_sizes(self, sizes: Sequence[int], num_decodes: int, chunks: Sequence[tuple[int, int]]) -> Sequence[int]:
        """Up to the smallest in which a prompt ends and a token costs hardly more than in the largest."""
        enough, end = self._smallest_within(WORTHWHILE, sizes), num_decodes
        for _, num_tokens in chunks:
            end += num_tokens
            place = bisect_left(sizes, end)
            if place >= len(sizes) or sizes[place] >= enough:
                return sizes[: place + 1]
        return sizes

    def _smallest_within(self, factor: float, sizes: Sequence[int]) -> int:
        """The smallest size in which a token takes at most so many times as long as in the largest one; 0: times that are no numbers compare with nothing."""
        limit_s = factor * self._token_alone_s(sizes[-1])
        return next((size for size in sizes if self._token_alone_s(size) <= limit_s), 0)

    def _token_alone_s(self, size: int) -> float:
        """What a token takes in a step of this size, apart from what it attends to."""
        return self.times.seconds(StepLoad(size, 1, 0, 0, 0.0)) / size

    # ---- pages

    def _rank(self, request: Request) -> int:
        """Who would be missed if it lost its pages: nobody's reader yet, one who is ahead, or one who waits for every token."""
        if request.first_token_s is None:
            return 0
        return 1 if self.levels.get(request.slo_class, self.levels[INTERACTIVE]).carries_slack else 2


@lru_cache(maxsize=64)
def step_sizes(sizes: tuple[int, ...], token_budget: int) -> Sequence[int]:
    """Tokens that a step with prompts may hold, ascending: the compiled sizes or whole tiles below the budget, and the budget."""
    return *(size for size in sizes or range(TOKEN_TILE, token_budget, TOKEN_TILE) if size < token_budget), token_budget


def _chunks(view: View, prompts: Sequence[Request], num_tokens: int) -> list[tuple[int, int]]:
    """Tokens before and tokens of each chunk that the largest step would hold of prompts, in their order."""
    chunks: list[tuple[int, int]] = []
    for request in prompts:
        start = request.num_computed_tokens
        if not request.block_table.size:  # it waits: what it would find counts as computed
            start = len(view.find_prefix(request)) * view.limits.page_size
        chunks.append((start, request.num_tokens - start))
        num_tokens -= request.num_tokens - start
        if num_tokens <= 0:
            break
    return chunks


def _load(size: int, num_decodes: int, context: int, chunks: Sequence[tuple[int, int]]) -> StepLoad:
    """What a step of this size would hold."""
    num_left, num_rows, num_pairs = size - num_decodes, num_decodes, 0.0
    for start, length in chunks:
        if num_left <= 0:
            break
        num_tokens = length if length < num_left else num_left
        num_pairs += num_tokens * (start + num_tokens / 2)
        num_left -= num_tokens
        num_rows += 1
    return StepLoad(size - num_left, num_rows, num_decodes, context, num_pairs)


def _carried_s(request: Request, tbt_slo_s: float, start_s: float) -> float:
    """Until the token of this step is due, if tokens are due at even times from the first one on; at least one TBT SLO, as nothing is to be stalled for it."""
    if request.first_token_s is None:
        return tbt_slo_s
    due_s = request.first_token_s + tbt_slo_s * (request.num_tokens - request.num_given_tokens)
    return min(max(due_s - start_s, tbt_slo_s), MAX_CARRIED * tbt_slo_s)


def _client_of(request: Request) -> str:
    return request.client
