"""Group G of the catalogue: structured output and tools.

What each refusal is called, and what comes of good forms: tests/serve/test_structured_output.py and tests/serve/test_tools.py, which also hold B-G07 (output that
attacks the parser of calls) and B-G08 (code in arguments is text). Here: none of it is slow, and none of it is felt by others.
"""

import time
from typing import Any

import pytest

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
# 2.5 s on a machine of its own.
LIMIT_S = 10.0
SCHEMA = "response_format.json_schema.schema"
pytestmark = pytest.mark.usefixtures("unharmed")


def regex(pattern: str) -> dict[str, Any]:
    return {"structured_outputs": {"regex": pattern}}


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": value}}}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        value = {"items": value}
    return value


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **fields}}


CASES: list[tuple[str, str, dict[str, Any], str]] = [
    ("B-G01", COMPLETIONS, regex("a" * 10**5), "400 invalid_value structured_outputs.regex"),
    ("B-G01", COMPLETIONS, regex("(?<=a)b"), "400 invalid_value structured_outputs.regex"),
    ("B-G01", COMPLETIONS, regex("[a"), "400 invalid_value structured_outputs.regex"),
    ("B-G02", COMPLETIONS, schema(nested(40)), f"400 invalid_value {SCHEMA}"),
    ("B-G02", COMPLETIONS, schema(nested(500)), "400 invalid_json -"),
    ("B-G02", COMPLETIONS, schema({"$ref": "http://127.0.0.1:9/x"}), f"400 invalid_value {SCHEMA}"),
    ("B-G02", COMPLETIONS, schema({"enum": list(range(10**6))}), f"400 invalid_value {SCHEMA}"),
    ("B-G03", COMPLETIONS, {"structured_outputs": {"json": ""}}, "400 invalid_value structured_outputs.json"),
    ("B-G03", COMPLETIONS, schema(False), f"400 invalid_type {SCHEMA}"),
    ("B-G03", COMPLETIONS, schema({}), "200"),
    ("B-G03", COMPLETIONS, schema({"type": "nope"}), f"400 invalid_value {SCHEMA}"),
    ("B-G03", COMPLETIONS, schema({"pattern": 5}), f"400 invalid_value {SCHEMA}"),
    ("B-G04", COMPLETIONS, schema({"type": "string", "minLength": 3, "maxLength": 2}), f"400 invalid_value {SCHEMA}"),
    ("B-G06", CHAT, {"tools": []}, "400 empty_array tools"),
    ("B-G06", CHAT, {"tools": [tool(f"t{place}") for place in range(1000)]}, "400 array_above_max_length tools"),
    ("B-G06", CHAT, {"tools": [tool("../x")]}, "400 invalid_value tools[0].function.name"),
    ("B-G06", CHAT, {"tools": [tool('a"b')]}, "400 invalid_value tools[0].function.name"),
    (
        "B-G06",
        CHAT,
        {"tools": [tool("a", description="x" * 2**20)]},
        "400 string_above_max_length tools[0].function.description",
    ),
]
# Served or refused, as the compiler has it.
HOSTILE = ["(a+)+b", "(a|a)*c", ".{1,100000}", "((a{0,100}){0,100}){0,100}", "(.*a.{60}b)|(.*c.{60})"]
CYCLES = [{"$ref": "#"}, {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}]


def test_none_of_it_is_slow_or_felt_by_others(server: Any, ask: Any, judge: Any, neighbours: Any) -> None:
    with neighbours(server):
        for row, path, changes, expected in CASES:
            start_s = time.perf_counter()
            judge(ask(server, path, changes), expected)
            assert time.perf_counter() - start_s < LIMIT_S, (row, expected)
        for changes in (*map(regex, HOSTILE), *map(schema, CYCLES)):
            start_s = time.perf_counter()
            answer = ask(server, COMPLETIONS, changes)
            judge(answer, "200" if answer.status_code == 200 else "400 invalid_value")
            assert time.perf_counter() - start_s < LIMIT_S, changes


def schemas(server: Any, ask: Any, judge: Any, num: int) -> None:
    for place in range(num):
        judge(ask(server, COMPLETIONS, {**schema({"const": f"value {place} {'x' * 500}"}), "max_tokens": 1}), "200")


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:  # noqa: PTH123
        return int(file.read().split()[1]) * 4096


@pytest.mark.nightly
def test_many_schemas_leave_no_memory_behind(server: Any, ask: Any, judge: Any) -> None:
    """B-G05: what is kept of schemas is bounded."""
    schemas(server, ask, judge, 2000)
    before = resident_bytes(server.engine_pid)
    schemas(server, ask, judge, 8000)
    assert resident_bytes(server.engine_pid) - before < 64 * 2**20
