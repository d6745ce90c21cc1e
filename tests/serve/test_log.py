"""The log: whole lines in both formats, nothing of a client's that could fake one, and nobody who waits for its reader."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.serve.log import MAX_WAITING_LINES, JsonLines, LineHandler, TextLines, logging_to

logger = logging.getLogger("sarathi_jax.test")
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (DEBUG|INFO|WARNING|ERROR) +[\w.]+: ")
HOSTILE = "name\n2026-01-01 00:00:00.000 INFO    gate: all is well\x1b[31m\r\u202e"


@contextmanager
def logged(path: Path, log_format: Any = "text", level: Any = "info") -> Iterator[list[str]]:
    """The lines, when the block is over."""
    lines: list[str] = []
    with path.open("wb") as file, logging_to(log_format, level, file.fileno()):
        yield lines
    lines += path.read_text().splitlines()


def fail() -> None:
    raise ValueError(HOSTILE)


def test_a_line_of_text(tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        logger.info("%d requests", 3)
        logger.debug("not wanted")
        logging.getLogger("uvicorn.error").info("nor this")
        logging.getLogger("uvicorn.error").warning("but this")
    assert [LINE.sub("", line) for line in lines] == ["3 requests", "but this"]
    assert all(LINE.match(line) for line in lines)


def test_no_text_of_a_client_begins_a_line_or_moves_a_terminal(tmp_path: Path) -> None:
    with logged(tmp_path / "log") as lines:
        logger.info("model %s", HOSTILE)
        try:
            fail()
        except ValueError:
            logger.exception("it failed")
    starts = [line for line in lines if LINE.match(line)]
    assert [LINE.sub("", line)[:9] for line in starts] == ["model nam", "it failed"]
    assert not {"\x1b", "\r", "\u202e"} & set("".join(lines))
    assert all(line.startswith("    ") for line in lines if line not in starts)
    assert r"\n2026-01-01" in starts[0]


@pytest.mark.parametrize("formatter", [TextLines(), JsonLines()])
def test_half_a_character_is_written_all_the_same(formatter: logging.Formatter) -> None:
    record = logging.makeLogRecord({"name": "sarathi_jax.test", "levelno": 20, "levelname": "INFO", "msg": "a\ud800b"})
    line = LineHandler(formatter).prepare(record).decode()
    assert "ud800b" in line
    assert line.endswith("\n")


def test_a_line_of_json(tmp_path: Path) -> None:
    with logged(tmp_path / "log", "json", "debug") as lines:
        logger.debug("model %s", HOSTILE, extra={"fields": {"status": 200}})
        try:
            fail()
        except ValueError:
            logger.exception("it failed")
    first, second = map(json.loads, lines)
    assert (first["level"], first["logger"], first["status"]) == ("debug", "sarathi_jax.test", 200)
    assert first["message"].startswith("model name\n2026")
    assert "ValueError" in second["exception"]


def test_nobody_waits_for_a_reader_that_stands_still() -> None:
    reader, writer = os.pipe()
    start_s = time.perf_counter()
    with logging_to("text", "info", writer) as handler:
        for place in range(4 * MAX_WAITING_LINES):
            logger.info("line %d %s", place, "x" * 100)
        assert time.perf_counter() - start_s < 5.0
        num_dropped = handler.num_dropped
        assert num_dropped > 0
        text = os.read(reader, 2**16).decode()
        # What there was room for comes, and how much is missing; then there is room for a line.
        while "left out" not in text or handler.num_waiting > MAX_WAITING_LINES // 2:
            text += os.read(reader, 2**16).decode()
        logger.info("the last one")
        while "the last one" not in text:
            text += os.read(reader, 2**16).decode()
    os.close(reader)
    os.close(writer)
    numbers = [int(number) for number in re.findall(r"line (\d+) ", text)]
    assert numbers == sorted(set(numbers))
    assert (
        sum(map(int, re.findall(r"(\d+) lines were left out", text)))
        == num_dropped
        == 4 * MAX_WAITING_LINES - len(numbers)
    )


def test_a_process_whose_log_nobody_reads_ends() -> None:
    program = """
import logging
from sarathi_jax.serve.log import logging_to
with logging_to("text", "info"):
    for _ in range(3000):
        logging.getLogger("sarathi_jax").info("x" * 200)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
    assert process.wait(30) == 0
    assert process.stderr is not None
    process.stderr.close()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_servers_log(serving: Any, tmp_path: Path, log_format: Any) -> None:
    with logged(tmp_path / "log", log_format) as lines:
        server = serving(access_log=True, log_format=log_format, log_stats_s=0.3, engine={"step_s": 0.01})
        time.sleep(0.7)
        assert "tokens/s" not in (tmp_path / "log").read_text()  # there was nothing to do
        server.complete("a secret marker", max_tokens=60, ignore_eos=True)
        server.get("/secret%0A2026-path")
        assert server.get("/ready").status_code == server.get("/metrics").status_code == 200
        time.sleep(0.7)
        server.close()
    text = "\n".join(lines)
    assert "secret marker" not in text
    stats = [line for line in lines if "output tokens/s" in line]
    access = [line for line in lines if "/v1/completions" in line]
    assert stats
    assert len(access) == 1
    assert "/ready" not in text
    assert "/metrics" not in text
    if log_format == "json":
        said = json.loads(access[0])
        assert (said["method"], said["status"], said["path"]) == ("POST", 200, "/v1/completions")
        assert json.loads(stats[-1])["output_tokens_per_s"] > 0
    else:
        assert all(LINE.match(line) for line in lines)
        assert " POST /v1/completions 200 " in access[0]


def test_a_server_whose_log_nobody_reads_serves(serving: Any) -> None:
    reader, writer = os.pipe()
    with logging_to("text", "info", writer) as handler:
        os.set_blocking(reader, False)
        server = serving(access_log=True)
        for _ in range(2 * MAX_WAITING_LINES):
            logger.info("x" * 200)
        assert handler.num_dropped > 0
        server.front.metrics.watch_log(handler)
        assert server.complete("a", max_tokens=3)["choices"]
        said = re.search(r"^sarathi_jax_log_lines_dropped_total ([\d.]+)$", server.get("/metrics").text, re.MULTILINE)
        assert said is not None
        assert 0 < float(said[1]) <= handler.num_dropped
        server.close()
    os.close(reader)
    os.close(writer)
