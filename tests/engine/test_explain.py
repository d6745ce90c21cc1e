"""Why tokens are late, on records made by hand, where the cause is known: every share is counted in the test."""

from collections.abc import Sequence
from typing import Any

import pytest

from sarathi_jax.engine.explain import Cause, explain
from sarathi_jax.engine.flight_record import (
    Aborted,
    Arrived,
    Completed,
    Event,
    Failed,
    Finished,
    FlightRecord,
    Header,
    Idle,
    RequestFacts,
    Scheduled,
)
from sarathi_jax.errors import ConfigError

LIMITS: dict[str, Any] = {"num_pages": 100, "page_size": 16, "token_budget": 64, "max_num_seqs": 4, "watermark": 0.1}
HEADER = Header(
    format="",
    version=1,
    reason="",
    written_at="",
    clock_s=100.0,
    model="",
    replica=0,
    policy="sarathi",
    is_overlapped=True,
    is_prefix_caching=True,
    limits=LIMITS,
    versions={},
    num_dropped_events=0,
    num_requests=0,
    num_events=0,
)
DECODE, MIXED = ("decode 4x4", 4, 4), ("mixed 64x4", 64, 4)
type RowWords = tuple[str, int, int, bool]


class Script:
    """A record, event by event. Rows are (request, start, tokens, whether it samples)."""

    def __init__(self, **limits: Any) -> None:
        self.requests: dict[str, RequestFacts] = {}
        self.events: list[Event] = []
        self.header = Header(
            **{name: getattr(HEADER, name) for name in HEADER.__struct_fields__ if name != "limits"},
            limits=LIMITS | limits,
        )
        self._step = 0

    def arrive(self, name: str, num_prompt_tokens: int, arrival_s: float = 0.0, **facts: Any) -> None:
        number = len(self.requests)
        self.requests[name] = RequestFacts(
            request=number, id=name, arrival_s=arrival_s, num_prompt_tokens=num_prompt_tokens, max_tokens=99, **facts
        )
        self.events.append(Arrived([number]))

    def plan(
        self,
        now_s: float,
        rows: Sequence[RowWords],
        *,
        dispatched_s: float | None = None,
        admitted: Sequence[str] = (),
        preempted: Sequence[str] = (),
        grown: Sequence[str] = (),
        counts: tuple[int, int, int] = (1, 0, 50),
    ) -> int:
        """A step is planned. Returns: its number. counts: running, waiting, free pages."""
        number = {name: facts.request for name, facts in self.requests.items()}
        self.events.append(
            Scheduled(
                step=self._step,
                now_s=now_s,
                dispatched_s=now_s if dispatched_s is None else dispatched_s,
                decodes=([], []),
                others=[(place, number[row[0]], *row[1:]) for place, row in enumerate(rows)],
                admitted=[(number[name], 0, [0]) for name in admitted],
                grown=[(number[name], [9]) for name in grown],
                preempted=[number[name] for name in preempted],
                num_running=counts[0],
                num_waiting=counts[1],
                num_free_pages=counts[2],
            )
        )
        self._step += 1
        return self._step - 1

    def end(
        self,
        step: int,
        end_s: float,
        bucket: tuple[str, int, int] = DECODE,
        *,
        asked_s: float | None = None,
        **words: Any,
    ) -> None:
        """A step's tokens come. asked_s: None: the loop had waited for it all the time."""
        name, num_tokens, num_rows = bucket
        asked_s = -1.0 if asked_s is None else asked_s
        self.events.append(
            Completed(
                step=step,
                asked_s=asked_s,
                end_s=end_s,
                bucket=name,
                bucket_tokens=num_tokens,
                bucket_rows=num_rows,
                **words,
            )
        )

    def step(
        self, now_s: float, end_s: float, rows: Sequence[RowWords], bucket: tuple[str, int, int] = DECODE, **words: Any
    ) -> None:
        """A step that is planned and ends before the next one is planned."""
        ends = {name: words.pop(name) for name in ("asked_s", "compiled", "ended") if name in words}
        self.end(self.plan(now_s, rows, **words), end_s, bucket, **ends)

    def decodes(self, start_s: float, count: int, seconds: float, rows: dict[str, int]) -> float:
        """Steps of decodes alone, back to back. rows: name -> start; it is moved on. Returns: when the last one ended."""
        for _ in range(count):
            self.step(start_s, start_s + seconds, [(name, start, 1, True) for name, start in rows.items()])
            start_s += seconds
            for name in rows:
                rows[name] += 1
        return start_s

    def causes(self, name: str, slo_s: float = 0.05) -> list[tuple[str, float, tuple[str, ...], int]]:
        """Of the one late token of a request: kind, milliseconds, requests, tokens."""
        (late,) = explain(self.record, name, slo_s).late
        assert sum(cause.seconds for cause in late.causes) == pytest.approx(late.gap_s)
        return [brief(cause) for cause in late.causes]

    @property
    def record(self) -> FlightRecord:
        return FlightRecord(self.header, {facts.request: facts for facts in self.requests.values()}, self.events)


def brief(cause: Cause) -> tuple[str, float, tuple[str, ...], int]:
    return cause.kind, round(cause.seconds * 1e3, 6), cause.requests, cause.num_tokens


@pytest.fixture
def started() -> tuple[Script, dict[str, int]]:
    """A request "a" of 4 prompt tokens that decodes, and decodes alone take 10 ms: until 0.11 s."""
    script = Script()
    script.arrive("a", 4)
    script.step(0.0, 0.01, [("a", 0, 4, True)], ("mixed 8x4", 8, 4), admitted=["a"])
    rows = {"a": 4}
    assert script.decodes(0.01, 10, 0.01, rows) == pytest.approx(0.11)
    return script, rows


type Started = tuple[Script, dict[str, int]]


def test_prompts_beside_a_decode_are_named_by_their_tokens(started: Started):
    """70 ms: 10 as a decode step alone takes; the other 60 over 60 tokens of the bucket's: 40 of b, 10 of c, 10 of padding, and 4 rows are decodes."""
    script, rows = started
    script.arrive("b", 40)
    script.arrive("c", 99)
    for name in ("d", "e", "f"):
        script.arrive(name, 1)
    others = [(name, 5, 1, True) for name in ("d", "e", "f")]
    script.step(0.11, 0.18, [("a", rows["a"], 1, True), *others, ("b", 0, 40, True), ("c", 0, 10, False)], MIXED)
    assert script.causes("a") == [
        ("prefill", 40.0, ("b",), 40),
        ("decode", 10.0, (), 4),
        ("padding", 10.0, (), 10),
        ("prefill", 10.0, ("c",), 10),
    ]


def test_without_a_step_to_compare_with_the_decodes_share_is_by_tokens():
    """64 ms, no step of decodes alone: 1 of 64 tokens is a's own."""
    script = Script()
    script.arrive("a", 4)
    script.arrive("b", 200)
    script.step(0.0, 0.01, [("a", 0, 4, True)], ("mixed 8x4", 8, 4), admitted=["a"])
    script.step(0.01, 0.074, [("a", 4, 1, True), ("b", 0, 63, False)], MIXED)
    assert script.causes("a") == [("prefill", 63.0, ("b",), 63), ("decode", 1.0, (), 1)]


def test_f2_a_stall_names_whose_prompts_ran_instead(started: Started):
    """Two steps of 30 and 60 ms leave a out: 30 of b, and 60 over 50 tokens of b and 10 of c; then a's own 10."""
    script, rows = started
    script.arrive("b", 110)
    script.arrive("c", 10)
    script.step(0.11, 0.14, [("b", 0, 60, False)], ("mixed 60x4", 60, 4), admitted=["b"])
    script.step(0.14, 0.20, [("b", 60, 50, True), ("c", 0, 10, True)], MIXED, admitted=["c"])
    script.decodes(0.20, 1, 0.01, rows)
    assert script.causes("a") == [
        ("stall", 80.0, ("b",), 110),
        ("decode", 10.0, (), 1),
        ("stall", 10.0, ("c",), 10),
    ]


def test_a_preemption_names_who_took_the_pages_and_what_is_computed_again(started: Started):
    """a waits 40 ms in b's decodes, then computes 15 tokens in 20 ms, of which 10 are what b's decode alone takes and 10 go to 15 tokens and 48 of padding."""
    script, rows = started
    script.arrive("b", 4)
    script.step(0.11, 0.12, [("b", 9, 1, True)], preempted=["a"], grown=["b"])
    script.decodes(0.12, 3, 0.01, {"b": 10})
    script.step(0.15, 0.17, [("b", 13, 1, True), ("a", 0, rows["a"] + 1, True)], MIXED, admitted=["a"])
    assert rows["a"] == 14
    assert script.causes("a") == [
        ("preempted", 40.0, ("b",), 4),
        ("decode", 10.0, (), 1),
        ("padding", round(10 * 48 / 63, 6), (), 48),
        ("recompute", round(10 * 15 / 63, 6), (), 15),
    ]
    assert explain(script.record, "a").num_preemptions == 1


def test_time_between_steps_is_the_hosts(started: Started):
    """60 ms after the last tokens the next step is on its way."""
    script, rows = started
    script.step(0.15, 0.18, [("a", rows["a"], 1, True)], dispatched_s=0.17)
    assert script.causes("a") == [("host", 60.0, (), 0), ("decode", 10.0, (), 1)]


def test_a_loop_that_asks_late_is_the_host_too(started: Started):
    """The step was on its way when the one before ended, and its tokens were there when the loop asked, 99 ms later: the rest of the wait is 1 ms."""
    script, rows = started
    step = script.plan(0.10, [("a", rows["a"], 1, True)])
    script.end(step, 0.21, asked_s=0.209)
    assert script.causes("a") == [("host", 99.0, (), 0), ("decode", 1.0, (), 1)]


def test_a_compile_is_what_is_beyond_the_usual(started: Started):
    script, rows = started
    script.step(0.11, 0.21, [("a", rows["a"], 1, True)], compiled=[("decode 4x4 sample", 0.08)])
    assert script.causes("a") == [("compile", 90.0, (), 0), ("decode", 10.0, (), 1)]
    (late,) = explain(script.record, "a").late
    assert late.causes[0].detail == "decode 4x4 sample"


def test_a_slow_step_is_what_is_beyond_the_usual(started: Started):
    script, rows = started
    script.step(0.11, 0.18, [("a", rows["a"], 1, True)])
    assert script.causes("a") == [("slow", 60.0, (), 0), ("decode", 10.0, (), 1)]


def test_a_failed_step_takes_all_until_the_request_runs_again(started: Started):
    """A step fails after 40 ms, one behind it is lost after 5; another request's step of 10; then a computes its 15 tokens in 15 ms."""
    script, rows = started
    script.arrive("b", 4)
    failing = script.plan(0.11, [("a", rows["a"], 1, True)])
    lost = script.plan(0.12, [("a", rows["a"] + 1, 1, True)])
    script.events.append(Failed(failing, 0.15))
    script.end(lost, 0.155, is_lost=True)
    script.step(0.155, 0.165, [("b", 5, 1, True)])
    script.step(0.165, 0.18, [("a", 0, 15, True)], ("mixed 15x4", 15, 4), admitted=["a"])
    assert script.causes("a") == [("failed", 55.0, (), 3), ("recompute", 15.0, (), 15)]


def test_steps_of_other_microbatches_are_no_stall():
    """A pipeline of three stages, 10 ms a tick: a's token, two other steps, a's next token. A third one between them would be a stall."""
    script = Script(num_microbatches=3)
    for name in ("a", "b", "c"):
        script.arrive(name, 1)
    steps = [script.plan(0.0, [(name, 4, 1, True)]) for name in ("a", "b", "c", "a")]
    for place, step in enumerate(steps):
        script.end(step, 0.01 * (place + 1))
    assert script.causes("a", 0.02) == [("pipeline", 20.0, (), 2), ("decode", 10.0, (), 1)]
    steps = [script.plan(0.04, [(name, 5, 1, True)]) for name in ("b", "c", "b", "a")]
    for place, step in enumerate(steps):
        script.end(step, 0.05 + 0.01 * place)
    assert script.causes("a", 0.035) == [("pipeline", 20.0, (), 2), ("decode", 10.0, (), 1), ("stall", 10.0, (), 0)]


def test_the_first_token_is_explained_from_the_admission_on(started: Started):
    """b is admitted while a step is under way, for 5 ms more; 36 tokens in two steps of 30 ms, beside a's decode, with 30 tokens of padding each: 20 ms by 18 + 45."""
    script, rows = started
    script.arrive("b", 36, 0.11)
    under_way = script.plan(0.11, [("a", rows["a"], 1, True)])
    first = script.plan(0.115, [("a", rows["a"] + 1, 1, True), ("b", 0, 18, False)], admitted=["b"])
    script.end(under_way, 0.12)
    script.end(first, 0.15, MIXED)
    script.step(0.15, 0.18, [("a", rows["a"] + 2, 1, True), ("b", 18, 18, True)], MIXED)
    found = explain(script.record, "b")
    assert found.first_token is not None
    assert found.first_token.gap_s == pytest.approx(0.065)
    assert [brief(cause) for cause in found.first_token.causes] == [
        ("padding", round(40 * 45 / 63, 6), (), 90),
        ("decode", 20.0, (), 2),
        ("prompt", round(40 * 18 / 63, 6), (), 36),
        ("before", 5.0, (), 1),
    ]
    chunks = [(chunk.step, chunk.start, chunk.num_tokens, chunk.bucket, chunk.num_beside) for chunk in found.chunks]
    assert chunks == [(12, 0, 18, "mixed 64x4", 1), (13, 18, 18, "mixed 64x4", 1)]


@pytest.mark.parametrize(
    ("rows", "counts", "words", "reason"),
    [
        ([("a", 5, 1, True)], (4, 1, 50), {}, ("slots", ("a",))),
        ([("a", 5, 1, True), ("b", 0, 63, False)], (2, 1, 50), {}, ("budget", ("b",))),
        ([("a", 5, 1, True)], (1, 1, 12), {}, ("pages", ())),
        ([("a", 5, 1, True)], (1, 2, 13), {}, ("policy", ())),
        ([("a", 5, 1, True)], (1, 2, 50), {"preempted": ["b"]}, ("preemption", ("b",))),
    ],
    ids=["slots", "budget", "pages", "policy", "preemption"],
)
def test_the_wait_says_what_had_run_out(
    rows: list[RowWords], counts: tuple[int, int, int], words: dict[str, Any], reason: tuple[str, tuple[str, ...]]
):
    """40 prompt tokens need 3 pages, 10 of 100 are kept free. 20 ms until the next plan, 30 ms in that one, then the request is admitted."""
    script = Script()
    script.arrive("a", 4)
    script.arrive("b", 99)
    script.step(0.0, 0.1, [("a", 4, 1, True)], admitted=["a", "b"])
    script.arrive("w", 40, 0.08)
    script.step(0.1, 0.13, rows, counts=counts, **words)
    script.step(0.13, 0.15, [("w", 0, 40, True)], MIXED, admitted=["w"])
    found = explain(script.record, "w")
    waits = [(each.kind, round(each.seconds * 1e3, 6), each.num_steps, each.requests) for each in found.queue]
    assert waits == [(reason[0], 30.0, 1, reason[1]), ("loop", 20.0, 0, ())]
    assert found.first_planned_s == 0.13


@pytest.mark.parametrize(("priorities", "ahead", "wait_ms"), [((0, 0, 0, 0), "bc", 20.0), ((2, 1, 1, 0), "cd", 25.0)])
def test_who_stands_behind_others_is_told_whom(priorities: tuple[int, ...], ahead: str, wait_ms: float):
    """b and c came first and don't fit; b gets in, then c, then w. An idle look counts too. d came later, but with a lower number than w it is to go first."""
    script = Script()
    script.arrive("a", 4)
    script.step(0.0, 0.1, [("a", 4, 1, True)], admitted=["a"])
    for name, arrival_s, priority in zip("bcwd", (0.07, 0.08, 0.09, 0.095), priorities, strict=True):
        script.arrive(name, 40, arrival_s, priority=priority)
    script.step(0.1, 0.11, [("a", 5, 1, True)], counts=(1, 4, 5))
    script.step(0.11, 0.12, [("a", 6, 1, True), ("b", 0, 40, True)], MIXED, admitted=["b"], counts=(2, 3, 20))
    script.events.append(Idle(0.12))
    script.step(0.125, 0.13, [("a", 7, 1, True), ("c", 0, 40, True)], MIXED, admitted=["c"], counts=(3, 2, 50))
    script.step(0.13, 0.14, [("w", 0, 40, True)], MIXED, admitted=["w"])
    waits = [(each.kind, round(each.seconds * 1e3, 6), each.requests) for each in explain(script.record, "w").queue]
    assert waits == [("behind", wait_ms, tuple(ahead)), ("loop", 10.0, ()), ("policy", 30.0 - wait_ms, ())]


def test_a_sample_waits_for_its_leader():
    script = Script()
    script.arrive("a", 8, num_samples=2)
    script.requests["a-1"] = RequestFacts(
        request=1, id="a-1", arrival_s=0.0, num_prompt_tokens=8, max_tokens=9, leader=0, sample_index=1, num_samples=2
    )
    script.events[0] = Arrived([0, 1])
    script.step(0.01, 0.03, [("a", 0, 8, True)], MIXED, admitted=["a"])
    script.step(0.03, 0.04, [("a", 8, 1, True), ("a-1", 7, 1, True)], admitted=["a-1"])
    found = explain(script.record, "a-1")
    assert [(each.kind, round(each.seconds * 1e3, 6)) for each in found.queue] == [("leader", 20.0), ("loop", 10.0)]
    assert (found.num_prefix_hit_tokens, found.num_tokens) == (7, 1)


def test_ends_of_every_kind_are_told(started: Started):
    script, rows = started
    script.arrive("b", 4)
    script.step(0.11, 0.12, [("a", rows["a"], 1, True), ("b", 4, 1, True)], ended=[(0, "length")])
    script.step(0.12, 0.13, [("a", rows["a"] + 1, 1, True), ("b", 5, 1, True)])  # a's row is dropped
    script.events.append(Finished(1, "stop", 0.13))
    a, b = explain(script.record, "a"), explain(script.record, "#1")
    assert (a.end, a.end_s, a.num_tokens) == ("length", 0.12, 12)
    assert (b.end, b.end_s, b.num_tokens, b.request) == ("stop", 0.13, 2, "b")
    script.events[-1] = Aborted(1, 0.125)
    assert explain(script.record, "b").end == "abort"


def test_the_limit_is_twice_the_median_of_the_record(started: Started):
    script, rows = started
    script.step(0.11, 0.131, [("a", rows["a"], 1, True)])
    found = explain(script.record, "a")
    assert (found.limit_s, found.is_limit_given) == (pytest.approx(0.02), False)
    assert [token.number for token in found.late] == [12]
    assert explain(script.record, "a", 0.022).late == []


def test_a_record_without_its_beginning_tells_what_it_has(started: Started):
    """The ring begins in the middle of a's decodes: no arrival, no wait, no first token; gaps are as before."""
    script, rows = started
    script.step(0.11, 0.21, [("a", rows["a"], 1, True)])
    script.events = script.events[8:]
    found = explain(script.record, "a", 0.05)
    assert (found.is_whole, found.first_planned_s, found.first_token, found.queue) == (False, None, None, [])
    assert [(token.number, round(token.gap_s, 6)) for token in found.late] == [(12, 0.1)]


def test_an_unknown_request_names_some_that_are_there(started: Started):
    with pytest.raises(ConfigError, match=r"must hold the request, got x, which is not there: choose one of a, \.\.\."):
        explain(started[0].record, "x")
