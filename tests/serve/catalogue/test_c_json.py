"""Group C of the catalogue: JSON and the types in it."""

import json
import tracemalloc
from typing import Any

import pytest

from sarathi_jax.serve.body import parse_body
from sarathi_jax.serve.errors import ApiError
from sarathi_jax.serve.schemas import ChatBody, CompletionBody

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
BOTH = [COMPLETIONS, CHAT]
pytestmark = pytest.mark.usefixtures("unharmed")

NAMED_TWICE = b'{"model":"demo","prompt":"a","n":1,"n":99}'
BODIES: list[tuple[str, bytes, str]] = [
    ("B-C01", b"", "400 invalid_json -"),
    ("B-C01", b"null", "400 invalid_type -"),
    ("B-C01", b"[]", "400 invalid_type -"),
    ("B-C01", b'"x"', "400 invalid_type -"),
    ("B-C01", b"7", "400 invalid_type -"),
    ("B-C01", b"{", "400 invalid_json -"),
    ("B-C01", b"{}x", "400 invalid_json -"),
    ("B-C02", b"[" * 100_000, "400 invalid_json -"),
    ("B-C02", b"[" * 100_000 + b"]" * 100_000, "400 invalid_json -"),
    ("B-C02", b'{"a":' * 100_000, "400 invalid_json -"),
    ("B-C02", b'{"model":"demo","metadata":' + b'{"a":' * 1000 + b"1" + b"}" * 1001, "400 invalid_json -"),
    ("B-C03", b'{"model":"demo","prompt":"a","temperature":NaN}', "400 invalid_json -"),
    ("B-C03", b'{"model":"demo","prompt":"a","temperature":Infinity}', "400 invalid_json -"),
    ("B-C03", b'{"model":"demo","prompt":"a","temperature":-Infinity}', "400 invalid_json -"),
    ("B-C03", b'{"model":"demo","prompt":"a","temperature":1e999}', "400 invalid_json -"),
    ("B-C03", b'{"model":"demo","prompt":"a","metadata":{"a":[-1e999]}}', "400 invalid_json -"),
    ("B-C03", b'{"model":"demo","prompt":"a","max_tokens":1' + b"0" * 5000 + b"}", "400 invalid_json -"),
    ("B-C05", b'\xef\xbb\xbf{"model":"demo","prompt":"a"}', "400 invalid_json -"),
    ("B-C05", b'{"model":"demo","prompt":"\xff"}', "400 invalid_json -"),
    ("B-C05", b'{"model":"demo","prompt":"\xc0\xaf"}', "400 invalid_json -"),
    ("B-C05", b'{"model":"demo","prompt":"\xed\xa0\x80"}', "400 invalid_json -"),
    ("B-C05", b'{"model":"demo","prompt":"a\x00"}', "400 invalid_json -"),
    ("B-C06", NAMED_TWICE, "400 invalid_json -"),
    ("B-C06", b'{"model":"demo","prompt":"a","metadata":{"a":1,"a":1}}', "400 invalid_json -"),
    ("B-C07", b" " * 10_000_000, "400 invalid_json -"),
    ("B-C07", b"{" + b",".join(b'"%d":0' % place for place in range(1_000_000)) + b"}", "400 invalid_json -"),
]
FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("B-C04", {"max_tokens": True}, "400 invalid_type max_tokens"),
    ("B-C04", {"max_tokens": "3"}, "400 invalid_type max_tokens"),
    ("B-C04", {"max_tokens": 2.0}, "400 invalid_type max_tokens"),
    ("B-C04", {"max_tokens": [3]}, "400 invalid_type max_tokens"),
    ("B-C04", {"temperature": True}, "400 invalid_type temperature"),
    ("B-C04", {"temperature": "1"}, "400 invalid_type temperature"),
    ("B-C04", {"stream": 1}, "400 invalid_type stream"),
    ("B-C04", {"stream": "true"}, "400 invalid_type stream"),
    ("B-C04", {"seed": 1.0}, "400 invalid_type seed"),
    ("B-C04", {"stop_token_ids": ["1"]}, "400 invalid_type stop_token_ids[0]"),
    ("B-C04", {"stream_options": [], "stream": True}, "400 invalid_type stream_options"),
    ("B-C08", {"foo": 1}, "400 unknown_parameter foo"),
    ("B-C08", {"foo": None}, "400 unknown_parameter foo"),
    ("B-C08", {"stream": True, "stream_options": {"foo": 1}}, "400 unknown_parameter stream_options.foo"),
    ("B-C08", {"x" * 10_000: 1}, "400 unknown_parameter " + "x" * 200),
    ("B-C09", {"model": ...}, "400 missing_required_parameter model"),
    ("B-C09", {"model": None}, "400 invalid_type model"),
    ("B-C09", {"model": ""}, "400 invalid_value model"),
    ("B-C09", {"model": 5}, "400 invalid_type model"),
    ("B-C09", {"model": "gpt-4"}, "404 model_not_found model"),
    ("B-C09", {"model": "m" * 2**20}, "404 model_not_found model"),
    ("B-C09", {"model": "../../etc/passwd"}, "404 model_not_found model"),
    ("B-C09", {"model": "demo\x00"}, "404 model_not_found model"),
    ("B-C09", {"model": "DEMO"}, "404 model_not_found model"),
]


# Bodies in which very much is wrong.
HUGE: list[tuple[str, Any, dict[str, Any]]] = [
    ("B-C07", CompletionBody, {"prompt": [None] * 50_000}),
    ("B-C07", CompletionBody, {"prompt": [[None]] * 50_000}),
    ("B-C07", CompletionBody, {"prompt": "a", "allowed_token_ids": ["x"] * 50_000}),
    ("B-C07", CompletionBody, {"prompt": "a", "stop": [1] * 50_000}),
    ("B-C07", CompletionBody, {"prompt": "a", **dict.fromkeys(map(str, range(50_000)), 1)}),
    ("B-C07", CompletionBody, {"prompt": "a", "structured_outputs": {"choice": [5] * 50_000}}),
    ("B-C07", ChatBody, {"messages": [{"role": "user", "content": "a"}], "tools": [5] * 50_000}),
    ("B-C07", ChatBody, {"messages": [5] * 50_000}),
    ("B-C07", ChatBody, {"messages": [{"role": "user", "content": [5] * 50_000}]}),
]


@pytest.mark.parametrize("path", BOTH)
def test_bodies_that_are_no_json(server: Any, ask: Any, judge: Any, path: str) -> None:
    for row, body, expected in BODIES:
        error = judge(ask(server, path, body), expected)["error"]
        assert len(error["message"]) <= 300, row


@pytest.mark.parametrize("path", BOTH)
@pytest.mark.parametrize("case", FIELDS)
def test_a_field(server: Any, ask: Any, judge: Any, path: str, case: Any) -> None:
    judge(ask(server, path, case[1]), case[2])


def test_others_do_not_notice(server: Any, ask: Any, judge: Any, neighbours: Any) -> None:
    with neighbours(server):
        for path in BOTH:
            for _, body, expected in BODIES[:-2]:
                judge(ask(server, path, body), expected)
            for _, changes, expected in FIELDS:
                judge(ask(server, path, changes), expected)


@pytest.mark.parametrize("case", HUGE)
def test_a_wrong_body_costs_little_memory(case: Any) -> None:
    """G-60: one error is made of a million wrong items, not a million errors."""
    data = json.dumps({"model": "demo", **case[2]}).encode()
    tracemalloc.start()
    try:
        with pytest.raises(ApiError):
            parse_body(data, case[1])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 24 * len(data)
