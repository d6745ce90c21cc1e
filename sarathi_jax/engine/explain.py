"""Why a request's tokens came late: from a flight record, the causes of each gap between two tokens, in seconds that add up to the gap.

A gap is cut at the ends of the steps in it. Each piece of time is one step's, and is divided among causes:

    host      the device had nothing to do: from the end of the step before until this one was dispatched; or, where tokens were there before the
              loop asked for them, all but the rest of the wait
    compile, slow
              what the step took beyond the median of its bucket, where a program was compiled meanwhile, or it was over twice that median
    the rest  by where the request was. In the step: up to what steps of its decodes alone take (the median of their bucket) is `decode`; what is on top goes to
              the prompts read beside it (`prefill`, each by its tokens) and to `padding`, the bucket's tokens that were none. A chunk of its own is `prompt`, or
              `recompute` after a preemption or a failure. Not in it: `stall`, the requests whose prompts ran instead; `pipeline`; `preempted`; `failed`; and
              before its first step `before`, a step that was under way when it was admitted.

The time from the plan that admits a request to its first token is divided in the same way.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import median

from sarathi_jax.engine.flight_record import Completed, FlightRecord
from sarathi_jax.engine.queue_wait import QueueReason, queue_reasons
from sarathi_jax.engine.record_steps import Run, Step, read_run, steps_between
from sarathi_jax.engine.request_story import Place, Story, find_request, tell_story

LATE_FACTOR = 2.0  # times the median gap: late, where no SLO is given
SLOW_FACTOR = 2.0
NEVER = 2**62  # a step's number that none has
WAS_THERE = 0.1  # of a step's time: who waits for less than that asked for tokens that were there


@dataclass(frozen=True, slots=True)
class Cause:
    """A share of a gap. requests: whose doing it was. num_tokens: of theirs, or of padding, in these steps."""

    kind: str
    seconds: float
    requests: tuple[str, ...]
    num_tokens: int
    steps: tuple[int, ...]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LateToken:
    """A token whose gap is over the limit. number: of the output's tokens, from 1. causes: the largest first; they add up to gap_s."""

    number: int
    at_s: float
    gap_s: float
    causes: list[Cause]


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """A step's share in reading the prompt, or in computing again. start_s: when it was planned."""

    step: int
    start_s: float
    end_s: float | None
    start: int
    num_tokens: int
    bucket: str
    num_beside: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """What happened to a request; times are the engine clock's.

    is_whole: whether the record has its arrival. first_token: from the plan that admitted it, if the record has both. limit_s: gaps over this are late.
    is_limit_given: whether the caller said so. num_tokens: of the output, in the record.
    """

    request: str
    is_whole: bool
    arrival_s: float
    num_prompt_tokens: int
    max_tokens: int
    first_planned_s: float | None
    queue: list[QueueReason]
    chunks: list[ChunkRun]
    num_prefix_hit_tokens: int
    num_tokens: int
    median_gap_s: float | None
    max_gap_s: float | None
    limit_s: float
    is_limit_given: bool
    first_token: LateToken | None
    late: list[LateToken]
    num_preemptions: int
    end: str | None
    end_s: float | None


def explain(record: FlightRecord, name: str, slo_s: float | None = None) -> Explanation:
    """The story of a request.

    name: its id, the last one's if several had it, or "#" and its number in the record.
    slo_s: gaps beyond this are late; None: beyond twice the median of all gaps in the record.
    Raises: ConfigError if there is no such request, or the record does not hold together.
    """
    facts = find_request(record, name)
    run = read_run(record)
    story = tell_story(run, facts)
    gaps = [later.at_s - earlier.at_s for earlier, later in pairwise(story.tokens)]
    limit_s = usual_limit_s(run) if slo_s is None else slo_s
    shares = _Shares(run, story)
    first = story.admitted_to
    first_row = first.rows.of(facts.request) if first is not None else None
    return Explanation(
        request=facts.id,
        is_whole=story.is_whole,
        arrival_s=facts.arrival_s,
        num_prompt_tokens=facts.num_prompt_tokens,
        max_tokens=facts.max_tokens,
        first_planned_s=first.plan.now_s if first else None,
        queue=queue_reasons(run, story),
        chunks=_chunks(story),
        num_prefix_hit_tokens=first_row.start if first_row else 0,
        num_tokens=len(story.tokens),
        median_gap_s=median(gaps) if gaps else None,
        max_gap_s=max(gaps, default=None),
        limit_s=limit_s,
        is_limit_given=slo_s is not None,
        first_token=shares.first_token(first),
        late=shares.late(limit_s),
        num_preemptions=len(story.preempted_in),
        end=story.end,
        end_s=story.end_s,
    )


def usual_limit_s(run: Run, num_gaps: int | None = None) -> float:
    """Gaps over this are late where nobody says what is. num_gaps: look at no more, the first ones."""
    return LATE_FACTOR * median(list(islice(run.token_gaps(), num_gaps)) or [0.0])


def late_tokens(run: Run, story: Story, limit_s: float, at_most: int) -> list[LateToken]:
    """Those with the longest gaps, in their order."""
    return _Shares(run, story).late(limit_s, at_most)


def _chunks(story: Story) -> list[ChunkRun]:
    return [
        ChunkRun(
            step.number, step.plan.now_s, step.end_s, row.start, row.num_tokens, step.bucket, step.rows.num_rows - 1
        )
        for step, row in story.chunks
    ]


class UsualTimes:
    """What steps usually take: medians over a record's steps that ended well."""

    def __init__(self, run: Run) -> None:
        by_shape: dict[tuple[str, int, int], list[float]] = {}
        decodes: dict[int, list[float]] = {}
        for step in run.ended:
            if step.done is None or step.is_failed or step.done.compiled:
                continue
            by_shape.setdefault(_shape(step.done), []).append(step.ran_s)
            if not run.num_prefill_tokens(step):
                decodes.setdefault(step.done.bucket_rows, []).append(step.ran_s)
        self._by_shape = {shape: median(seconds) for shape, seconds in by_shape.items()}
        self._decodes = {num_rows: median(seconds) for num_rows, seconds in sorted(decodes.items())}

    def of(self, step: Step) -> float | None:
        """Steps of this one's bucket."""
        return None if step.done is None else self._by_shape.get(_shape(step.done))

    def of_decodes(self, num_decodes: int) -> float | None:
        """Steps of so many decodes and nothing else; None: there were none."""
        larger = [seconds for num_rows, seconds in self._decodes.items() if num_rows >= num_decodes]
        return larger[0] if larger else next(reversed(self._decodes.values()), None)


def _shape(done: Completed) -> tuple[str, int, int]:
    """What a step was padded to. A simulator's steps have one name and are as large as they are."""
    return done.bucket, done.bucket_tokens, done.bucket_rows


class _Shares:
    """Divides time among causes, for one request."""

    def __init__(self, run: Run, story: Story) -> None:
        self._run = run
        self._story = story
        self._usual = UsualTimes(run)
        self._ids = {number: facts.id for number, facts in run.record.requests.items()}
        self._restarted = next(
            (step.number for step, place in story.places.items() if place in (Place.PREEMPTED, Place.FAILED)), NEVER
        )

    def late(self, limit_s: float, at_most: int | None = None) -> list[LateToken]:
        """Tokens whose gaps are over the limit, in their order; if there are more than at_most, those with the longest."""
        pairs = list(pairwise(self._story.tokens))
        gaps = sorted((later.at_s - earlier.at_s for earlier, later in pairs), reverse=True)
        if at_most is not None and at_most < len(gaps):
            limit_s = max(limit_s, gaps[at_most])
        return [
            LateToken(later.number, later.at_s, later.at_s - earlier.at_s, self.causes(earlier.at_s, later.at_s))
            for earlier, later in pairs
            if later.at_s - earlier.at_s > limit_s
        ]

    def first_token(self, first: Step | None) -> LateToken | None:
        """As a late one. first: the step that the request was admitted to."""
        tokens = self._story.tokens
        if first is None or not tokens or tokens[0].number != 1:
            return None
        start_s, end_s = first.plan.now_s, tokens[0].at_s
        return LateToken(1, end_s, end_s - start_s, self.causes(start_s, end_s))

    def causes(self, start_s: float, end_s: float) -> list[Cause]:
        """Of all the time between two ends of steps, the largest share first."""
        found: list[Cause] = []
        for step in steps_between(self._run.ended, start_s, end_s):
            assert step.end_s is not None, "the step has ended"
            found += self._of_step(step, step.end_s - max(step.before_s, start_s))
        return _merged(found)

    def _of_step(self, step: Step, seconds: float) -> list[Cause]:
        """The causes of one step's time, which add up to it."""
        number = (step.number,)
        if step.is_failed:
            return [Cause("failed", seconds, (), step.rows.num_tokens, number)]
        causes: list[Cause] = []
        host_s = self._host_s(step, seconds)
        causes.append(Cause("host", host_s, (), 0, number))
        rest_s = seconds - host_s
        usual_s = self._usual.of(step)
        beyond_s = rest_s - usual_s if usual_s is not None else 0.0
        compiled = step.done.compiled if step.done else []
        if beyond_s > 0 and (compiled or (usual_s is not None and rest_s > SLOW_FACTOR * usual_s)):
            names = ", ".join(name for name, _ in compiled)
            causes.append(Cause("compile" if compiled else "slow", beyond_s, (), 0, number, names or step.bucket))
            rest_s -= beyond_s
        match self._story.places.get(step, Place.QUEUED):
            case Place.ROW:
                causes += self._beside(step, rest_s)
            case Place.LEFT_OUT:
                causes += self._instead(step, rest_s)
            case Place.UNDER_WAY:
                causes.append(Cause("pipeline", rest_s, (), step.rows.num_tokens, number))
            case Place.QUEUED:
                causes.append(Cause("before", rest_s, (), step.rows.num_tokens, number))
            case Place.PREEMPTED:
                causes.append(Cause("preempted", rest_s, self._takers(step), step.rows.num_tokens, number))
            case Place.FAILED:
                causes.append(Cause("failed", rest_s, (), step.rows.num_tokens, number))
        return causes

    def _host_s(self, step: Step, seconds: float) -> float:
        """How long the device waited for the host."""
        if step.plan.dispatched_s > step.before_s:
            return min(max(step.plan.dispatched_s - step.before_s, 0.0), seconds)
        waited_s = seconds if step.done is None or step.end_s is None else step.end_s - step.done.asked_s
        return seconds - waited_s if waited_s < WAS_THERE * seconds else 0.0

    def _beside(self, step: Step, seconds: float) -> list[Cause]:
        """Of a step that holds the request: what its decodes alone would take, and who made it longer."""
        request, number = self._story.facts.request, (step.number,)
        prefill = self._run.num_prefill_tokens(step)
        num_decodes = step.rows.num_rows - len(prefill)
        if not prefill:
            return [Cause("decode", seconds, (), num_decodes, number, step.bucket)]
        num_bucket_tokens = max(step.done.bucket_tokens if step.done else 0, step.rows.num_tokens)
        base_s = self._usual.of_decodes(num_decodes) if num_decodes else 0.0
        if base_s is None:  # the record has no step to compare with
            base_s = seconds * num_decodes / num_bucket_tokens
        base_s = min(base_s, seconds)
        num_padding = num_bucket_tokens - step.rows.num_tokens
        per_token_s = (seconds - base_s) / (num_bucket_tokens - num_decodes)
        causes = [Cause("decode", base_s, (), num_decodes, number, step.bucket)]
        own = "recompute" if step.number >= self._restarted else "prompt"
        for other, num_tokens in prefill.items():
            kind, requests = (own, ()) if other == request else ("prefill", (self._ids[other],))
            causes.append(Cause(kind, per_token_s * num_tokens, requests, num_tokens, number))
        causes.append(Cause("padding", per_token_s * num_padding, (), num_padding, number, step.bucket))
        return causes

    def _instead(self, step: Step, seconds: float) -> list[Cause]:
        """Of a step that left the request out: whose prompts ran."""
        number, prefill = (step.number,), self._run.num_prefill_tokens(step)
        if not prefill:
            return [Cause("stall", seconds, (), 0, number)]
        num_tokens = sum(prefill.values())
        return [
            Cause("stall", seconds * count / num_tokens, (self._ids[other],), count, number)
            for other, count in prefill.items()
        ]

    def _takers(self, step: Step) -> tuple[str, ...]:
        """Who got pages in the step whose plan took the request's."""
        last = next((each for each in reversed(self._story.preempted_in) if each.number <= step.number), None)
        if last is None:
            return ()
        got = [request for request, _ in last.plan.grown] + [request for request, _, _ in last.plan.admitted]
        return tuple(dict.fromkeys(self._ids[request] for request in got))


def _merged(causes: Iterable[Cause]) -> list[Cause]:
    """Of each kind and requests one, the largest first; those under a nanosecond are rounding, and left out."""
    groups: dict[tuple[str, tuple[str, ...], str], list[Cause]] = {}
    for cause in causes:
        if cause.seconds > 0:
            detail = cause.detail if cause.kind != "padding" else ""
            groups.setdefault((cause.kind, cause.requests, detail), []).append(cause)
    merged = [_sum(each) for each in groups.values()]
    long = [cause for cause in merged if cause.seconds > 1e-9]
    return sorted(long, key=lambda cause: (-round(cause.seconds, 9), cause.kind, cause.requests))


def _sum(causes: Sequence[Cause]) -> Cause:
    first = causes[0]
    steps = tuple(dict.fromkeys(step for cause in causes for step in cause.steps))
    return Cause(
        first.kind,
        sum(cause.seconds for cause in causes),
        first.requests,
        sum(cause.num_tokens for cause in causes),
        steps,
        first.detail,
    )
