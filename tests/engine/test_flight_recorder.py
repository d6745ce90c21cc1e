"""The flight recorder: what it notes of an engine over a fake device, what a file says, and that neither text nor tokens are in it."""

import gzip
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.engine.flight_record import FlightRecord, Scheduled, read_record
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.engine.record_rows import RowReader
from sarathi_jax.engine.step_notes import StepNotes
from sarathi_jax.errors import ConfigError, EngineError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.simulation.replay import replay
from sarathi_jax.text.tokenizer import Tokenizer

type MakeRig = Callable[..., Any]
type RandomRun = Callable[[Any, int, int], dict[str, Any]]


def params(max_tokens: int = 8, **options: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": max_tokens, "seed": 1, **options})


def recorder_of(rig: Any) -> FlightRecorder:
    recorder = rig.engine.recorder
    assert recorder is not None and recorder.fault is None
    return recorder


def dumped(rig: Any, folder: Path) -> FlightRecord:
    recorder_of(rig).dump(folder / "flight.jsonl")
    return read_record(folder / "flight.jsonl")


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="sarathi_jax.engine")


def test_the_lines_of_a_file_are_these(make_rig: MakeRig, tmp_path: Path):
    """A prompt of 17 tokens by a budget of 16, in pages of 4, two tokens of output, the plain loop, a second a step: every line by hand."""
    rig = make_rig(overlap=False, num_pages=8)
    rig.engine.add_request(list(range(17)), params(2, n=1), request_id="a", cache_salt="s")
    rig.drain()
    recorder_of(rig).dump(tmp_path / "flight.jsonl")
    header, *lines = [json.loads(line) for line in (tmp_path / "flight.jsonl").read_text().splitlines()]
    assert (header["format"], header["version"], header["policy"]) == ("sarathi-jax flight record", 1, "sarathi")
    assert (header["num_requests"], header["num_events"], header["num_dropped_events"]) == (1, 7, 0)
    assert header["limits"]["num_pages"] == 8 and header["is_prefix_caching"] and not header["is_overlapped"]
    counts = {"num_running": 1, "num_waiting": 0, "num_free_pages": 3}
    bucket = {"bucket": "fake", "bucket_rows": 8}
    assert lines == [
        {
            "line": "request",
            "request": 0,
            "id": "a",
            "arrival_s": 0.0,
            "num_prompt_tokens": 17,
            "max_tokens": 2,
            "salt": 1,
        }
        | {"blocks": [0, 1, 2, 3]},
        {"line": "arrived", "requests": [0]},
        {"line": "scheduled", "step": 0, "now_s": 0.0, "dispatched_s": 0.0, "decodes": [[], []]}
        | {"others": [[0, 0, 0, 16, False]], "admitted": [[0, 0, [0, 1, 2, 3, 4]]], **counts},
        {"line": "completed", "step": 0, "asked_s": 0.0, "end_s": 1.0, "bucket_tokens": 16, **bucket},
        {"line": "scheduled", "step": 1, "now_s": 1.0, "dispatched_s": 1.0, "decodes": [[0], [16]], **counts},
        {"line": "completed", "step": 1, "asked_s": 1.0, "end_s": 2.0, "bucket_tokens": 8, **bucket},
        {"line": "scheduled", "step": 2, "now_s": 2.0, "dispatched_s": 2.0, **counts},
        {"line": "completed", "step": 2, "asked_s": 2.0, "end_s": 3.0, "bucket_tokens": 8, **bucket}
        | {"ended": [[0, "length"]]},
    ]


def test_a_decode_that_crosses_into_a_page_is_noted_with_it(make_rig: MakeRig, tmp_path: Path):
    rig = make_rig(overlap=False)
    rig.engine.add_request([1, 2, 3], params(7), request_id="a")
    rig.drain()
    steps = [event for event in dumped(rig, tmp_path).events if isinstance(event, Scheduled)]
    assert [step.grown for step in steps] == [[], [], [(0, [1])], [], [], [], [(0, [2])]]
    assert [step.decodes for step in steps] == [([], []), ([0], [3]), None, None, None, None, None]


def test_an_empty_look_is_noted_once(make_rig: MakeRig, tmp_path: Path):
    """The overlapped loop asks for a fourth step while the last token is under way: there is none."""
    rig = make_rig()
    rig.engine.add_request([5], params(3))
    rig.drain()
    kinds = [type(event).__name__.lower() for event in dumped(rig, tmp_path).events]
    assert kinds == [*("arrived", "scheduled", "scheduled", "completed", "scheduled", "completed", "idle", "completed")]


@pytest.mark.parametrize("way", ["preempted", "ended"])
def test_a_request_that_starts_anew_where_it_was_is_noted_as_such(make_rig: MakeRig, tmp_path: Path, way: str):
    """Pages of 4. At position 4 a is preempted, or ends and comes back with what it had: either way 4 tokens are found, and its row is just where the next one would be."""
    rig = make_rig(overlap=False, preempt_every_steps=3 if way == "preempted" else None)
    rig.engine.add_request([1, 2, 3], params(2 if way == "ended" else 3), request_id="a")
    (output,) = rig.outputs().values()
    if way == "ended":
        rig.engine.add_request([1, 2, 3, *output.outputs[0].token_ids], params(1), request_id="a")
        rig.drain()
    record = dumped(rig, tmp_path)
    assert list(written_out(record)) == [as_written(schedule) for schedule in rig.executor.schedules]
    last = [event for event in record.events if isinstance(event, Scheduled)][-1]
    assert last.others == [(0, int(way == "ended"), 4, 1, True)] and len(last.admitted) == 1


def test_an_answer_of_a_second_sample_is_found_by_who_goes_on_with_it(make_rig: MakeRig, tmp_path: Path):
    """Pages of 4, 6 tokens of prompt: its last two share a block with the output, and each sample's output is its own."""
    rig = make_rig(overlap=False)
    rig.engine.add_request([1, 2, 3, 4, 5, 6], params(8, n=2), request_id="a")
    (output,) = rig.outputs().values()
    answers = [sample.token_ids for sample in output.outputs]
    assert answers[0][:2] != answers[1][:2]
    rig.engine.add_request([1, 2, 3, 4, 5, 6, *answers[1]], params(1), request_id="b")
    assert rig.outputs()["b"].metrics.num_prefix_hit_tokens == 12
    found = replay(dumped(rig, tmp_path))
    assert (found.difference, found.num_prefix_hit_tokens) == (None, 12 + 4)


def test_blocks_are_alike_exactly_where_the_tokens_before_them_are(make_rig: MakeRig, tmp_path: Path):
    """Pages of 4. b begins like a and then differs; c has a's tokens under another salt; d has a's second block first; e goes on with a's output."""
    rig = make_rig(overlap=False)
    first, second = [1, 2, 3, 4], [5, 6, 7, 8]
    rig.engine.add_request([*first, *second, 9], params(5), request_id="a")
    (output,) = rig.outputs().values()
    prompts = {"b": [*first, 9, 9, 9, 9, 9], "c": [*first, *second, 9], "d": [*second, 9]}
    prompts["e"] = [*first, *second, 9, *output.outputs[0].token_ids[:3], 1]
    for name, prompt in prompts.items():
        rig.engine.add_request(prompt, params(1), request_id=name, cache_salt="x" if name == "c" else "")
        rig.drain()
    blocks = {facts.id: facts.blocks for facts in dumped(rig, tmp_path).requests.values()}
    assert blocks == {"a": [0, 1, 2], "b": [0, 3], "c": [4, 5], "d": [6], "e": [0, 1, 2]}


def test_no_text_and_no_token_is_in_a_file(make_rig: MakeRig, tokenizer: Tokenizer, tmp_path: Path):
    rig = make_rig(tokenizer=tokenizer)
    rig.engine.add_request("zebra" * 5, params(9, stop=("qqqq",), stop_token_ids=(77,)), cache_salt="pepper")
    (output,) = rig.outputs().values()
    recorder_of(rig).dump(tmp_path / "flight.jsonl")
    text = (tmp_path / "flight.jsonl").read_text()
    assert not any(word in text for word in ("zebra", "qqqq", "pepper", output.outputs[0].text))
    tokens = {value for line in text.splitlines()[1:] for value in numbers_in(json.loads(line))}
    assert not tokens & {*output.prompt_token_ids, *output.outputs[0].token_ids, 77}


def numbers_in(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [each for part in value.values() for each in numbers_in(part)]
    if isinstance(value, list):
        return [each for part in value for each in numbers_in(part)]
    return [value]


# ---- replay


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_pages": 32},
        {"num_pages": 32, "is_prefix_caching": False},
        {"preempt_every_steps": 3},
        {"token_budget": 4},
        {"num_pages": 32, "is_head_of_line_blocking": False, "long_prefill_token_threshold": 6},
        {"num_microbatches": 3, "num_pages": 40},
    ],
    ids=str,
)
def test_a_random_run_is_replayed_byte_for_byte(
    make_rig: MakeRig,
    random_run: RandomRun,
    tokenizer: Tokenizer,
    tmp_path: Path,
    options: dict[str, Any],
    overlap: bool,
):
    rig = make_rig(overlap=overlap, tokenizer=tokenizer, **options)
    rig.executor.failing_steps = {20, 21, 60, 100}
    random_run(rig, len(str(options)), 60)
    record = dumped(rig, tmp_path)
    found = replay(record)
    assert found.difference is None
    assert (found.num_events, found.num_steps) == (len(record.events), rig.executor.num_steps)
    assert found.num_preemptions == sum(len(schedule.preempted_request_ids) for schedule in rig.executor.schedules)
    assert list(written_out(record)) == [as_written(schedule) for schedule in rig.executor.schedules]


def as_written(schedule: Any) -> list[Any]:
    """What was decided, from the schedule itself."""
    rows = [
        (row.request_id, row.start, row.num_tokens, row.does_sample, row.batch_slot, row.block_table.tolist())
        for row in schedule.rows
    ]
    return [schedule.step, rows, list(schedule.preempted_request_ids)]


def written_out(record: FlightRecord) -> Iterator[list[Any]]:
    """The same from a record: slots and pages are those of the last admission, and what was added since."""
    reader, slots, tables = RowReader(), dict[int, int](), dict[int, list[int]]()
    ids = {number: facts.id for number, facts in record.requests.items()}
    for event in record.events:
        if isinstance(event, Scheduled):
            for request, slot, pages in event.admitted:
                slots[request], tables[request] = slot, pages
            for request, pages in event.grown:
                tables[request] = tables[request] + pages
            rows = [
                (ids[row.request], row.start, row.num_tokens, row.does_sample, slots[row.request], tables[row.request])
                for row in reader.rows(event).written_out()
            ]
            yield [event.step, rows, [ids[request] for request in event.preempted]]


def test_a_run_that_is_under_way_is_replayed_up_to_there(make_rig: MakeRig, tmp_path: Path):
    rig = make_rig()
    for prompt in ([1, 2, 3], [1] * 40, [7] * 9):
        rig.engine.add_request(prompt, params(20))
    for _ in range(6):
        rig.engine.step()
    found = replay(dumped(rig, tmp_path))
    assert (found.difference, found.num_steps) == (None, rig.executor.num_steps)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"others": [(0, 0, 0, 15, False)]}, "row 0"),
        ({"admitted": [(0, 1, [0, 1, 2, 3, 4])]}, "admitted"),
        ({"preempted": [0]}, "preempted"),
        ({"grown": [(0, [9])]}, "grown"),
        ({"decodes": ([0], [40])}, "rows"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_replay_tells_the_first_difference(make_rig: MakeRig, tmp_path: Path, change: dict[str, Any], what: str):
    import msgspec

    rig = make_rig(overlap=False)
    rig.engine.add_request(list(range(17)), params(2))
    rig.drain()
    record = dumped(rig, tmp_path)
    record.events[1] = msgspec.structs.replace(record.events[1], **change)
    found = replay(record)
    assert found.difference is not None
    assert (found.difference.event, found.difference.step, found.difference.what) == (1, 0, what)
    assert found.num_steps == 0


# ---- the ring


def test_a_full_ring_drops_the_oldest_and_is_not_replayed(
    make_rig: MakeRig, random_run: RandomRun, tokenizer: Tokenizer, tmp_path: Path
):
    rig = make_rig(max_events=50, tokenizer=tokenizer)
    random_run(rig, 1, 60)
    record = dumped(rig, tmp_path)
    assert len(record.events) == 50 and record.header.num_dropped_events > 100
    mentioned = {number for event in record.events for number in getattr(event, "requests", ())}
    assert mentioned <= set(record.requests) and len(record.requests) < 40
    with pytest.raises(ConfigError, match=r"from its beginning.* first \d+ events the ring had dropped: record with"):
        replay(record)


def test_memory_is_bounded_too(make_rig: MakeRig, random_run: RandomRun, tokenizer: Tokenizer):
    rig = make_rig(tokenizer=tokenizer)
    recorder = recorder_of(rig)
    recorder._max_bytes = 30_000
    random_run(rig, 2, 60)
    snapshot = recorder.snapshot()
    assert sum(event.num_bytes for event in snapshot.events) == recorder._num_bytes <= 30_000
    assert 20 < len(snapshot.events) < 100 and snapshot.num_dropped > 0
    assert len(snapshot.requests) <= sum(len(getattr(event, "requests", ())) for event in snapshot.events) + 20


def test_a_fault_of_the_recorder_stops_it_and_nothing_else(
    make_rig: MakeRig, expected_tokens: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of its own")

    rig = make_rig()
    rig.engine.add_request([1, 2], params(6), request_id="a")
    rig.engine.step()
    monkeypatch.setattr(StepNotes, "take", fail)
    assert rig.outputs()["a"].outputs[0].token_ids == expected_tokens([1, 2], 1, 6)
    with pytest.raises(EngineError, match=r"must run, got a fault of its own: ZeroDivisionError\('of its own'\)"):
        rig.engine.recorder.dump(tmp_path / "flight.jsonl")


# ---- files


def test_a_compressed_file_is_the_same(make_rig: MakeRig, tmp_path: Path):
    rig = make_rig()
    rig.engine.add_request([1, 2], params(6))
    rig.drain()
    recorder = recorder_of(rig)
    recorder.dump(tmp_path / "a.jsonl")
    recorder.dump(tmp_path / "b.jsonl.gz")
    assert gzip.decompress((tmp_path / "b.jsonl.gz").read_bytes()).count(b"\n") == len(recorder.snapshot().events) + 2
    assert read_record(tmp_path / "a.jsonl").events == read_record(tmp_path / "b.jsonl.gz").events


HEADER = (
    b'{"line":"header","format":"sarathi-jax flight record","version":1,"reason":"","written_at":"","clock_s":0,"model":"","replica":0,'
    b'"policy":"sarathi","is_overlapped":true,"is_prefix_caching":true,"limits":{},"versions":{},"num_dropped_events":0,"num_requests":0,'
    b'"num_events":1}\n'
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"a file that can be read, got .* with \[Errno 2\]"),
        (b"", "a first line that says so"),
        (b"{}\n", "a first line that says so"),
        (b'{"line":"idle","now_s":1}\n', "a first line that says so"),
        (b"\x1f\x8b\x08\x00", "a file that can be read"),
        (HEADER.replace(b"flight record", b"other"), "a first line that says so"),
        (HEADER.replace(b'"version":1', b'"version":9'), "must be of version 1 of the format, got 9"),
        (HEADER, "0 requests and 1 events, got .* with 0 and 0: it was cut off"),
        (HEADER + b'{"line":"idle","now_s":"x"}\n', "in line 2, got .*Expected `float`, got `str`"),
        (
            HEADER + b'{"line":"arrived","requests":[4]}\n',
            r"line of every request that it names, got .* with no line of request 4",
        ),
        (HEADER + HEADER, "one header"),
    ],
)
def test_a_file_that_is_none_says_why(content: bytes | None, said: str, tmp_path: Path):
    path = tmp_path / "flight.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_record(path)


def test_a_file_that_cannot_be_written_is_a_users_error(make_rig: MakeRig, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"must be written to a file, got .*Choose a folder that is there"):
        recorder_of(make_rig()).dump(tmp_path / "nowhere" / "flight.jsonl")
    assert list(tmp_path.iterdir()) == []
