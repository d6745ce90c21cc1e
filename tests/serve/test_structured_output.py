"""`response_format` and `structured_outputs`: what comes is what was asked for, by json, jsonschema and re; what can't be is refused, and costs nobody else."""

import json
import re
import threading
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sarathi_jax.serve.errors import of_lost
from sarathi_jax.serve.live_request import Lost

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
AS_PERSON = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}


def test_json_of_a_schema_from_the_demo_model(real_server: Any) -> None:
    """It writes spaces between parts by itself; what it was asked for leaves none. Eight samples at random, and the likeliest."""
    prompt = "json(name,age): Ana is 31, lives in Oslo, likes red and has 5 pears.="
    greedy = real_server.complete(prompt, max_tokens=64, response_format=AS_PERSON, temperature=0)["choices"]
    random = real_server.complete(prompt, max_tokens=64, response_format=AS_PERSON, temperature=2, n=8, seed=3)
    for choice in [*greedy, *random["choices"]]:
        assert choice["finish_reason"] in ("stop", "length")
        if choice["finish_reason"] == "stop":
            jsonschema.validate(json.loads(choice["text"]), PERSON)
    assert json.loads(greedy[0]["text"]) == {"name": "Ana", "age": 31}
    assert any(choice["finish_reason"] == "stop" for choice in random["choices"])


def test_a_regex_from_the_demo_model(real_server: Any) -> None:
    answer = real_server.complete(
        "12+30=", max_tokens=20, structured_outputs={"regex": "[a-z]{3}-[0-9]{2}"}, temperature=1.5, n=4, seed=1
    )
    for choice in answer["choices"]:
        assert re.fullmatch("[a-z]{3}-[0-9]{2}", choice["text"])
        assert choice["finish_reason"] == "stop"


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"structured_outputs": {"regex": "[ab]{6}c"}}, "[ab]{6}c"),
    ({"structured_outputs": {"choice": ["left", "right"]}}, "left|right"),
    ({"structured_outputs": {"grammar": 'start: "x" y\ny: "1" | "2"'}}, "x[12]"),
    ({"structured_outputs": {"json": {"enum": [1, 2]}}}, "[12]"),
    ({"structured_outputs": {"json": '{"type": "boolean"}'}}, "true|false"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": "q"}}}}, '"q"'),
]


@pytest.mark.parametrize(("fields", "pattern"), FORMS)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_every_form_whole_and_in_pieces(server: Any, fields: dict[str, Any], pattern: str, path: str) -> None:
    asked: dict[str, Any] = {"model": "demo", "max_tokens": 30, "seed": 5, "temperature": 1, **fields}
    is_chat = "chat" in path
    asked |= {"messages": [{"role": "user", "content": "x"}]} if is_chat else {"prompt": "x"}
    (choice,) = server.post(path, asked).json()["choices"]
    text = choice["message"]["content"] if is_chat else choice["text"]
    assert re.fullmatch(pattern, text), text
    assert choice["finish_reason"] == "stop"
    chunks = [event["choices"][0] for event in server.stream(path, asked)]
    assert "".join(each["delta"].get("content", "") if is_chat else each["text"] for each in chunks) == text
    assert chunks[-1]["finish_reason"] == "stop"


def test_any_json_object_and_plain_text(server: Any) -> None:
    fields = {"max_tokens": 200, "temperature": 1, "seed": 1, "n": 4, "response_format": {"type": "json_object"}}
    choices = server.chat("x", **fields)["choices"]
    ended = [choice for choice in choices if choice["finish_reason"] == "stop"]
    assert ended
    assert all(isinstance(json.loads(choice["message"]["content"]), dict) for choice in ended)
    plain = {"max_tokens": 20, "seed": 1}
    texts = [server.chat("x", **plain, response_format=form)["choices"] for form in ({"type": "text"}, None)]
    assert texts[0] == texts[1] == server.chat("x", **plain)["choices"]


def test_too_few_tokens_say_so(server: Any) -> None:
    (choice,) = server.complete("x", max_tokens=3, structured_outputs={"regex": "[ab]{6}c"})["choices"]
    assert re.fullmatch("[ab]{1,6}", choice["text"])
    assert choice["finish_reason"] == "length"


def test_a_stop_string_cuts_it_and_says_which(server: Any) -> None:
    (choice,) = server.complete("x", max_tokens=30, structured_outputs={"regex": "[ab]{6}cd"}, stop=["c"])["choices"]
    assert re.fullmatch("[ab]{6}", choice["text"])
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "c")


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": value}}}


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"not": value}
    return value


SCHEMA = "response_format.json_schema.schema"
WRONG: list[tuple[dict[str, Any], str, str]] = [
    (schema({"type": "nope"}), SCHEMA, "invalid_value"),
    (schema({"pattern": 5}), SCHEMA, "invalid_value"),
    (schema({"type": "string", "pattern": "(?=a)b"}), SCHEMA, "invalid_value"),
    (schema({"type": "string", "minLength": 3, "maxLength": 2}), SCHEMA, "invalid_value"),
    (schema({"$ref": "http://127.0.0.1:9/x"}), SCHEMA, "invalid_value"),
    (schema({"enum": list(range(100_000))}), SCHEMA, "invalid_value"),
    (schema(nested(40)), SCHEMA, "invalid_value"),
    (schema(False), SCHEMA, "invalid_type"),
    (schema([]), SCHEMA, "invalid_type"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "invalid_value"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, SCHEMA, "missing_required_parameter"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": 1}}},
        "response_format.json_schema.strict",
        "invalid_type",
    ),
    ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
    ({"response_format": {"type": "text", "x": 1}}, "response_format.x", "unknown_parameter"),
    ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
    ({"structured_outputs": {"json": ""}}, "structured_outputs.json", "invalid_value"),
    ({"structured_outputs": {"json": "[1]"}}, "structured_outputs.json", "invalid_value"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object", "invalid_value"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "invalid_value"),
    ({"structured_outputs": {"regex": "["}}, "structured_outputs.regex", "invalid_value"),
    ({"structured_outputs": {"regex": "a" * 100_000}}, "structured_outputs.regex", "invalid_value"),
    ({"structured_outputs": {"regex": "(?<=a)b"}}, "structured_outputs.regex", "invalid_value"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "invalid_value"),
    ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs.grammar", "invalid_value"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "unknown_parameter"),
    ({"guided_regex": "a"}, "guided_regex", "unknown_parameter"),
    ({**schema({}), "structured_outputs": {"regex": "a"}}, None, "invalid_value"),  # type: ignore[list-item]
    ({"structured_outputs": {"regex": "a+"}, "ignore_eos": True}, "ignore_eos", "invalid_value"),
]


@pytest.mark.parametrize(("fields", "param", "code"), WRONG)
def test_what_can_not_be_is_refused(server: Any, fields: dict[str, Any], param: str, code: str) -> None:
    for path, rest in (
        ("completions", {"prompt": "x"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        response = server.post(f"/v1/{path}", {"model": "demo", "max_tokens": 5, **rest, **fields})
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, param, code), error
        assert error["type"] == "invalid_request_error"
    assert server.complete("x", max_tokens=2)["choices"]


OPTIONS: dict[str, list[Any]] = {
    "response_format": [{"type": "text"}, {"type": "json_object"}, AS_PERSON],
    "structured_outputs": [{"regex": "[ab]{3}"}, {"choice": ["x", "y"]}],
    "tools": [[{"type": "function", "function": {"name": "stop"}}]],
    "tool_choice": ["none", "auto", "required"],
    "logprobs": [True],
    "top_logprobs": [2],
    "n": [3],
    "temperature": [0, 1.5],
    "seed": [7],
    "presence_penalty": [1.5],
    "repetition_penalty": [1.2],
    "logit_bias": [{"40": -100, "41": 100}],
    "top_k": [1],
    "min_p": [0.5],
    "stop": [["a"]],
    "stop_token_ids": [[40]],
    "min_tokens": [3],
    "ignore_eos": [True],
    "allowed_token_ids": [[40, 41, 42]],
    "prompt_logprobs": [1],
    "skip_special_tokens": [False],
    "parallel_tool_calls": [False],
}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    body=st.lists(st.sampled_from(sorted(OPTIONS)), max_size=5, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: st.sampled_from(OPTIONS[name]) for name in names})
    )
)
def test_options_together_are_served_or_refused(server: Any, body: dict[str, Any]) -> None:
    """And what is served is of its form, if it came to its end by itself."""
    asked = {"model": "demo", "messages": [{"role": "user", "content": "x"}], "max_tokens": 12, **body}
    response = server.post("/v1/chat/completions", asked)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["code"]
        return
    for choice in response.json()["choices"]:
        text, is_whole = choice["message"]["content"], choice["finish_reason"] == "stop" and not choice["stop_reason"]
        if not is_whole or choice["message"].get("tool_calls"):
            continue
        if body.get("response_format", {}).get("type", "text") != "text":
            json.loads(text)
        elif "structured_outputs" in body:
            assert re.fullmatch("[ab]{3}|x|y", text)


@pytest.mark.parametrize(
    "regex", ["(a+)+b", "(a|a)*c", ".{1,100000}", "((a{0,100}){0,100}){0,100}", "(.*a.{60}b)|(.*c.{60})"]
)
def test_a_regex_that_hurts_others_costs_its_own_request_alone(server: Any, regex: str) -> None:
    response = server.post(
        "/v1/completions", {"model": "demo", "prompt": "x", "max_tokens": 8, "structured_outputs": {"regex": regex}}
    )
    assert response.status_code in (200, 400)
    assert server.complete("x", max_tokens=2)["choices"]


def test_nobody_waits_for_a_check_of_another(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither plain requests nor those whose grammar is known."""
    asked: dict[str, Any] = {"model": "demo", "prompt": "x", "max_tokens": 2}
    server.complete("x", max_tokens=2, structured_outputs={"choice": ["known"]})
    is_looked_at, goes_on = threading.Event(), threading.Event()

    def ask(_: str) -> None:
        is_looked_at.set()
        goes_on.wait(60)

    monkeypatch.setattr(server.front.forms._checker, "_ask", ask)
    body = {**asked, "structured_outputs": {"choice": ["slow"]}}
    slow = threading.Thread(target=server.post, args=("/v1/completions", body))
    slow.start()
    assert is_looked_at.wait(60)
    server.complete("x", max_tokens=2)
    server.complete("x", max_tokens=2, structured_outputs={"choice": ["known"]})
    assert slow.is_alive()
    goes_on.set()
    slow.join(60)


def test_a_grammar_that_passes_a_limit_on_the_way_is_its_clients_fault() -> None:
    error = of_lost(Lost("grammar_limit", ""))
    assert (error.status, error.body["error"]["type"]) == (400, "invalid_request_error")
    assert "grammar" in str(error)
