"""The page's modules that draw nothing, by themselves, with steps counted by hand."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

type Row = tuple[str, int, int, int, int]


@pytest.fixture(scope="module")
def page(mock: Any, browser: "Browser") -> "Iterator[Page]":
    context = browser.new_context()
    page = context.new_page()
    page.goto(mock.url)
    yield page
    context.close()


def step(number: int, *rows: Row, preempted: tuple[str, ...] = ()) -> dict[str, object]:
    prefill = sum(row[2] for row in rows if row[3])
    decode = sum(row[2] for row in rows if not row[3])
    return {"step": number, "start_s": number * 0.02, "end_s": number * 0.02 + 0.015, "bucket": "mixed", "bucket_tokens": 64, "decode_tokens": decode,
            "prefill_tokens": prefill, "preempted": preempted, "rows": rows}  # fmt: skip


def prompt(name: str, start: int, tokens: int, is_last: bool = False) -> Row:
    return (name, start, tokens, 1, int(is_last))


def decode(name: str, position: int) -> Row:
    return (name, position, 1, 0, 1)


HISTORY = """async ([messages, stages]) => {
  const { History } = await import("/static/history.js");
  const history = new History();
  history.stages = stages;
  for (const [steps, running] of messages) steps === null ? history.interrupt() : history.add(steps, running);
  return {
    stalled: history.steps.map((step) => step.stalled),
    tracks: Object.fromEntries([...history.tracks].map(([id, { lane, ended, preempted, chunks }]) => [id, { lane, ended, preempted, chunks: chunks.length }])),
    first: history.first,
    kept: history.steps.length,
  };
}"""


def seen(page: "Page", *messages: tuple[list[dict[str, object]] | None, int], stages: int = 1) -> dict:
    return page.evaluate(HISTORY, [messages, stages])


def test_a_running_stream_that_steps_leave_out_has_stalled(page: "Page") -> None:
    steps = [
        step(1, prompt("a", 0, 8, is_last=True)),
        step(2, decode("a", 8), prompt("b", 0, 32)),
        step(3, prompt("b", 32, 32)),
        step(4, prompt("b", 64, 8, is_last=True)),
        step(5, decode("a", 9), decode("b", 72)),
    ]
    assert seen(page, (steps, 2))["stalled"] == [[], [], ["a"], ["a"], []]


def test_a_prompt_that_waits_for_its_next_chunk_has_not_stalled(page: "Page") -> None:
    steps = [step(1, prompt("a", 0, 8)), step(2, prompt("b", 0, 8)), step(3, prompt("a", 8, 8))]
    assert seen(page, (steps, 2))["stalled"] == [[], [], []]


def test_a_preempted_stream_has_not_stalled(page: "Page") -> None:
    steps = [
        step(1, prompt("a", 0, 8, is_last=True), prompt("b", 0, 8, is_last=True)),
        step(2, decode("a", 8), preempted=("b",)),
        step(3, decode("a", 9)),
        step(4, decode("a", 10), prompt("b", 0, 9, is_last=True)),
    ]
    result = seen(page, (steps, 2))
    assert result["stalled"] == [[], [], [], []]
    assert result["tracks"]["b"]["preempted"] == [1]


def test_a_pipeline_leaves_streams_to_their_other_stage(page: "Page") -> None:
    steps = [
        step(1, prompt("a", 0, 8, is_last=True)),
        step(2, prompt("b", 0, 8, is_last=True)),
        step(3, decode("a", 8)),
        step(4, decode("b", 8)),
    ]
    assert seen(page, (steps, 2), stages=2)["stalled"] == [[], [], [], []]
    assert seen(page, (steps, 2), stages=1)["stalled"] == [[], ["a"], ["b"], []]


def test_each_replica_has_steps_of_its_own(page: "Page") -> None:
    steps = [
        step(1, prompt("a", 0, 8, is_last=True), prompt("c", 0, 8, is_last=True)),
        {**step(1, prompt("b", 0, 8, is_last=True)), "replica": 1},
        {**step(2, decode("b", 8)), "replica": 1},
        step(2, decode("a", 8)),
        step(3, decode("a", 9), decode("c", 8)),
        {**step(3, decode("b", 9)), "replica": 1},
    ]
    assert seen(page, (steps, 3))["stalled"] == [[], [], [], ["c"], [], []]


@pytest.mark.parametrize("gap", ["interrupt", "number"])
def test_what_was_not_seen_is_no_stall(page: "Page", gap: str) -> None:
    before = [step(1, prompt("a", 0, 8, is_last=True)), step(2, decode("a", 8))]
    after = [step(30 if gap == "number" else 3, prompt("b", 0, 8)), step(31 if gap == "number" else 4, decode("a", 9))]
    middle: list[tuple[list[dict[str, object]] | None, int]] = [(None, 0)] if gap == "interrupt" else []
    assert seen(page, (before, 1), *middle, (after, 2))["stalled"] == [[], [], [], []]


def test_a_step_without_its_rows_is_a_gap(page: "Page") -> None:
    unknown = {**step(3), "decode_tokens": 1}
    steps = [step(1, prompt("a", 0, 8, is_last=True)), step(2, decode("a", 8)), unknown, step(4, decode("a", 10))]
    assert seen(page, (steps, 1))["stalled"] == [[], [], [], []]


def test_who_runs_no_more_has_ended_at_its_last_step(page: "Page") -> None:
    first = [
        step(1, prompt("a", 0, 8, is_last=True), prompt("b", 0, 8, is_last=True)),
        step(2, decode("a", 8), decode("b", 8)),
    ]
    then = [step(3, decode("b", 9)), step(4, decode("b", 10))]
    tracks = seen(page, (first, 2), (then, 1))["tracks"]
    assert (tracks["a"]["ended"], tracks["b"]["ended"]) == (1, None)
    assert seen(page, (first, 2), (then, 0))["tracks"]["b"]["ended"] == 3


def test_a_lane_is_used_again_after_an_end(page: "Page") -> None:
    steps = [
        step(1, prompt("a", 0, 8, is_last=True), prompt("b", 0, 8, is_last=True)),
        *(step(n, decode("b", 6 + n)) for n in range(2, 8)),
    ]
    tracks = seen(page, (steps, 1), ([step(8, decode("b", 14), prompt("c", 0, 8))], 2))["tracks"]
    assert [tracks[name]["lane"] for name in "abc"] == [0, 1, 0]


MANY = """async ([step, count]) => {
  const { History } = await import("/static/history.js");
  const history = new History();
  for (let number = 1; number <= count; number += 1) history.add([{ ...step, step: number, rows: [[`r${number}`, 0, 8, 1, 1]] }], 0);
  return [history.first, history.steps.length, history.tracks.size, history.lanes.length];
}"""


def test_only_the_last_steps_are_kept(page: "Page") -> None:
    first, kept, num_tracks, num_lanes = page.evaluate(MANY, [step(0), 20_000])
    assert first + kept == 20_000
    assert 4000 <= kept <= 4500
    assert num_tracks <= kept
    assert num_lanes <= 4  # two steps lie between two requests in a lane


EVENTS = """async ([text, size]) => {
  const { readEvents } = await import("/static/sse.js");
  const bytes = new TextEncoder().encode(text);
  const body = new ReadableStream({
    start(controller) {
      for (let at = 0; at < bytes.length; at += size) controller.enqueue(bytes.slice(at, at + size));
      controller.close();
    },
  });
  const seen = [];
  for await (const data of readEvents(body)) seen.push(data);
  return seen;
}"""


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_events_are_read_however_they_are_cut(page: "Page", size: int, end: str) -> None:
    lines = [
        'data: {"a": "é🙂"}',
        "",
        ": ping",
        "",
        "event: x",
        "data:two",
        "data: lines",
        "",
        "id: 1",
        "",
        "data: [DONE]",
        "",
        "data: cut off",
    ]
    expected = ['{"a": "é🙂"}', "two\nlines", "[DONE]"]
    assert page.evaluate(EVENTS, [end.join(lines), size]) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, "–"), (0.0084, "8.4 ms"), (0.0842, "84 ms"), (1.236, "1.24 s"), (83.21, "83.2 s")],
)
def test_times_are_written_for_people(page: "Page", value: float | None, expected: str) -> None:
    assert page.evaluate("async (value) => (await import('/static/format.js')).duration(value)", value) == expected


def test_a_character_cut_by_tokens_belongs_to_the_one_that_completes_it(page: "Page") -> None:
    smile = list("🙂".encode())
    chunks = [
        {
            "choices": [
                {
                    "delta": {"content": text},
                    "logprobs": {"content": [{"token": "?", "logprob": -0.1, "bytes": part, "top_logprobs": []}]},
                }
            ]
        }
        for text, part in [("", smile[:2]), ("🙂", smile[2:]), ("!", [33])]
    ]
    script = """async (chunks) => {
      const { Answer } = await import("/static/completion.js");
      const answer = new Answer();
      chunks.forEach((chunk) => answer.add(chunk));
      return [answer.text, answer.tokens.map((token) => token.text)];
    }"""
    assert page.evaluate(script, chunks) == ["🙂!", ["", "🙂", "!"]]


def test_overlapping_steps_go_on_lines_of_their_own(page: "Page") -> None:
    script = """async (steps) => {
      const { History } = await import("/static/history.js");
      const { traceOf } = await import("/static/trace.js");
      const history = new History();
      history.add(steps, 1);
      return traceOf(history, null).traceEvents.filter((event) => event.ph === "X").map(({ pid, tid, ts, dur }) => [pid, tid, ts, dur]);
    }"""
    one, two = step(1, decode("a", 8)), step(2, decode("a", 9))
    one.update(start_s=1.0, end_s=2.0)
    two.update(start_s=1.5, end_s=2.5)
    assert page.evaluate(script, [one, two]) == [
        [1, 1, 1_000_000, 1_000_000],
        [1, 2, 1_500_000, 1_000_000],
        [2, 1, 1_000_000, 1_000_000],
        [2, 1, 2_000_000, 500_000],
    ]
