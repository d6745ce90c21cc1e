"""Tools: calls that are forced and calls that the model chooses, whole and in pieces; with jsonschema as the judge of their arguments."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sarathi_jax.text.tool_calls import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "structured-output.md"
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
}
TIMER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "minutes": {"type": "integer", "minimum": 1, "maximum": 60},
        "label": {"$ref": "#/$defs/label"},
    },
    "required": ["minutes"],
    "$defs": {"label": {"enum": ["tea", "bread"]}},
}
SCHEMAS = {"get_weather": WEATHER, "set_timer": TIMER, "stop": {"type": "object", "maxProperties": 0}}


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    function = {"name": name, "description": f"What {name} does."}
    return {"type": "function", "function": function if parameters is None else {**function, "parameters": parameters}}


TOOLS = [tool("get_weather", WEATHER), tool("set_timer", TIMER), tool("stop")]
NAMED = {"type": "function", "function": {"name": "set_timer"}}


def checked(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    """Name and arguments of a choice's calls, which have to be whole."""
    assert choice["finish_reason"] == "tool_calls", choice
    message = choice["message"]
    assert message["role"] == "assistant"
    calls = []
    for call in message["tool_calls"]:
        assert set(call) == {"id", "type", "function"}
        assert set(call["function"]) == {"name", "arguments"}
        assert call["type"] == "function"
        arguments = json.loads(call["function"]["arguments"])
        jsonschema.validate(arguments, SCHEMAS[call["function"]["name"]])
        calls.append((call["function"]["name"], arguments))
    assert len({call["id"] for call in message["tool_calls"]}) == len(calls)
    return calls


def merged(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """A choice as a client puts it together from chunks. A call's first delta has its id, type and name, and only that."""
    content, calls, reason = "", [], None
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            assert reason is None, "nothing comes after the end"
            reason = choice["finish_reason"]
            content += choice["delta"].get("content") or ""
            for call in choice["delta"].get("tool_calls", ()):
                if call["index"] == len(calls):
                    calls.append({"type": call["type"], "function": dict(call["function"])})
                    assert call["id"]
                else:
                    assert set(call) == {"index", "function"}
                    assert set(call["function"]) == {"arguments"}
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return {"content": content, "calls": calls, "reason": reason}


def as_merged(choice: dict[str, Any]) -> dict[str, Any]:
    calls = [{"type": call["type"], "function": call["function"]} for call in choice["message"].get("tool_calls", ())]
    return {"content": choice["message"]["content"] or "", "calls": calls, "reason": choice["finish_reason"]}


@pytest.fixture
def tools_as(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The server, with a model that writes calls in this form."""

    def with_form(form: str) -> Any:
        monkeypatch.setattr(server.front, "tool_format", FORMATS[form])
        return server

    return with_form


def asked(says: str = "", **fields: Any) -> dict[str, Any]:
    """says: what the engine has to say, as far as it may; else it is at random."""
    content = f"Say: {says}" if says else "x"
    return {"messages": [{"role": "user", "content": content}], "tools": TOOLS, "max_tokens": 200, "seed": 4, **fields}


# ---- the demo model, which has learned to call


def test_the_demo_model_calls_the_tool_that_it_needs(real_server: Any) -> None:
    weather = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    timer = {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]}
    tools = [tool("get_weather", weather), tool("set_timer", timer)]
    for content, name, arguments in [
        ("What is the weather in Oslo?", "get_weather", {"city": "Oslo"}),
        ("Set a timer for 12 minutes.", "set_timer", {"minutes": 12}),
    ]:
        for fields in ({}, {"tool_choice": "required"}, {"parallel_tool_calls": False}):
            answer = real_server.chat(content, tools=tools, temperature=0, **fields)
            (choice,) = answer["choices"]
            assert choice["message"]["content"] is None
            (call,) = choice["message"]["tool_calls"]
            assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == (name, arguments)
            assert choice["finish_reason"] == "tool_calls"


def test_the_demo_model_is_forced_to_call_what_it_would_not(real_server: Any) -> None:
    choices = real_server.chat(
        "What is 12+30?", **asked(messages=[{"role": "user", "content": "What is 12+30?"}], n=4, temperature=1.5),
        tool_choice=NAMED,
    )["choices"]  # fmt: skip
    for choice in choices:
        ((name, _),) = checked(choice)
        assert name == "set_timer"
    plain = real_server.chat("What is 12+30?", tools=TOOLS, tool_choice="none", temperature=0)["choices"][0]
    assert plain["message"]["content"] == "42"
    assert plain["finish_reason"] == "stop"


def test_the_page_prints_what_it_says(real_server: Any) -> None:
    page = PAGE.read_text(encoding="utf-8")
    programs, said = (re.findall(rf"```{name}\n(.*?)```", page, re.DOTALL)[1:] for name in ("python", "text"))
    program = "".join(programs).replace("http://127.0.0.1:8000", real_server.url)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("".join(said), 0), done.stderr


# ---- shapes, over an engine that says what it is told


@pytest.mark.parametrize("form", ["json", "llama3_json", "hermes", "mistral"])
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_forced_calls_keep_to_their_schema_in_every_form(tools_as: Any, form: str, choice: Any) -> None:
    """Tokens at random: nothing but the grammar makes them calls."""
    server = tools_as(form)
    body = asked(tool_choice=choice, temperature=1, n=6, max_tokens=300)
    ended = [each for each in server.chat(**body)["choices"] if each["finish_reason"] != "length"]
    assert len(ended) > 3
    for each in ended:
        message = each["message"]
        assert message["content"] is None
        for call in message["tool_calls"]:
            assert len(call["id"]) == (9 if form == "mistral" else 29)
            arguments, schema = json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]]
            jsonschema.validate(arguments, schema)
            assert set(arguments) <= set(schema.get("properties", {})), "nobody said that there may be others"
        if choice is NAMED:
            assert [call["function"]["name"] for call in message["tool_calls"]] == ["set_timer"]


SAID = [
    ("json", "Just text.", "Just text.", []),
    ("json", '{"name": "get_wea', '{"name": "get_wea', []),
    ("hermes", "a <tool_", "a <tool_", []),
    ("json", '{"a": 1} is JSON', '{"a": 1} is JSON', []),
    ("json", '{"name": "get_weather", "arguments": {"city": "Oslo"}}', "", [("get_weather", {"city": "Oslo"})]),
    ("hermes", 'Let me see.\n<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>', "Let me see.\n", [("stop", {})]),
    (
        "hermes",
        '<tool_call>{"name":"set_timer","arguments":{"minutes":5,"label":"tea"}}</tool_call>\n<tool_call>{"name":"stop","arguments":{}}</tool_call>',
        "",
        [("set_timer", {"minutes": 5, "label": "tea"}), ("stop", {})],
    ),
    (
        "mistral",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "a}]\\"b"}}, {"name": "stop", "arguments": {}}]',
        "",
        [("get_weather", {"city": 'a}]"b'}), ("stop", {})],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("form", "says", "content", "calls"), SAID)
def test_calls_that_the_model_chooses_whole_and_in_pieces(
    tools_as: Any, form: str, says: str, content: str, calls: list[Any]
) -> None:
    server = tools_as(form)
    body = asked(says)
    (choice,) = server.chat(**body)["choices"]
    if calls:
        assert checked(choice) == calls
        assert (choice["message"]["content"] or "") == content
    else:
        assert choice["message"]["content"] == content
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"
    chunks = server.stream("/v1/chat/completions", {"model": "demo", **body})
    assert merged(chunks) == as_merged(choice)
    assert merged(chunks)["content"] == content
    # Tokens and ends are on chunks as ever.
    with_tokens = server.stream("/v1/chat/completions", {"model": "demo", **body, "return_token_ids": True})
    ids = [token for chunk in with_tokens for each in chunk["choices"] for token in each.get("token_ids", ())]
    assert ids == server.chat(**body, return_token_ids=True)["choices"][0]["token_ids"]


@pytest.mark.parametrize("form", ["json", "hermes", "mistral"])
def test_a_stream_of_several_random_answers_is_the_whole_one(tools_as: Any, form: str) -> None:
    server = tools_as(form)
    for fields in ({"tool_choice": "required"}, {}):
        body = asked(n=3, temperature=1, max_tokens=40, **fields)
        chunks = server.stream("/v1/chat/completions", {"model": "demo", **body})
        for choice in server.chat(**body)["choices"]:
            assert merged(chunks, choice["index"]) == as_merged(choice)


def test_arguments_are_held_to_their_schema_also_in_calls_that_the_model_chooses(server: Any) -> None:
    says = '{"name": "set_timer", "arguments": {"minutes": 999, "label": "x"}}'
    (choice,) = server.chat(**asked(says))["choices"]
    ((name, arguments),) = checked(choice)
    assert name == "set_timer"
    assert arguments["minutes"] <= 60


def test_calls_are_found_without_a_grammar_too(server: Any) -> None:
    """ignore_eos goes with no grammar: the schema is not kept to."""
    says = '{"name": "set_timer", "arguments": {"minutes": 999}}'
    (choice,) = server.chat(**asked(says, ignore_eos=True, stop_token_ids=[2]))["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"minutes": 999}


def test_a_call_that_is_cut_says_so(server: Any) -> None:
    says = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'
    whole = server.chat(**asked(says), return_token_ids=True)["choices"][0]
    (choice,) = server.chat(**asked(says, max_tokens=len(whole["token_ids"]) - 4))["choices"]
    assert choice["finish_reason"] == "length"
    (call,) = choice["message"]["tool_calls"]
    assert '{"city": "Oslo"}'.startswith(call["function"]["arguments"])
    (choice,) = server.chat(**asked(says, stop=["slo"]))["choices"]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "slo")
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"city": "O'


def test_json_or_calls(tools_as: Any) -> None:
    answer = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["yes", "no"]}}}
    server = tools_as("hermes")
    (choice,) = server.chat(**asked('"yes"', response_format=answer))["choices"]
    assert choice["message"]["content"] == '"yes"'
    assert choice["finish_reason"] == "stop"
    called = server.chat(**asked('<tool_call>{"name": "stop", "arguments": {}}</tool_call>', response_format=answer))
    assert checked(called["choices"][0]) == [("stop", {})]
    (choice,) = server.chat(**asked('"yes"', response_format=answer, tool_choice="none"))["choices"]
    assert choice["message"]["content"] == '"yes"'


def test_code_in_arguments_is_text(server: Any) -> None:
    code = '__import__("os").system("touch /tmp/owned"); <script>alert(1)</script>'
    says = json.dumps({"name": "run", "arguments": {"code": code}})
    tools = [tool("run", {"type": "object", "properties": {"code": {"type": "string"}}})]
    (choice,) = server.chat(**asked(says, tools=tools))["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"code": code}


@pytest.mark.parametrize(
    "says", ["{" * 600, '{"name": "stop", "arguments": {"a": "' + "x" * 500, "<tool_call>" * 80, "[TOOL_CALLS][" * 50]
)
@pytest.mark.parametrize("form", ["json", "hermes", "mistral"])
def test_output_that_attacks_the_parser_is_content(tools_as: Any, says: str, form: str) -> None:
    server = tools_as(form)
    (choice,) = server.chat(**asked(says, max_tokens=700, ignore_eos=True, stop_token_ids=[2]))["choices"]
    said = (choice["message"]["content"] or "") + "".join(
        call["function"]["arguments"] for call in choice["message"].get("tool_calls", ())
    )
    assert said in says
    assert len(said) > 400


# ---- what can't be


WRONG: list[tuple[dict[str, Any], str | None, str]] = [
    ({"tools": []}, "tools", "empty_array"),
    ({"tools": [tool(f"t{number}") for number in range(1000)]}, "tools", "array_above_max_length"),
    ({"tools": [tool("../x")]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [tool('a"b')]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [tool("a" * 65)]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [tool("")]}, "tools[0].function.name", "invalid_value"),
    ({"tools": [tool("a"), tool("a")]}, None, "invalid_value"),
    (
        {"tools": [{"type": "function", "function": {"name": "a", "description": "x" * 2**20}}]},
        "tools[0].function.description",
        "string_above_max_length",
    ),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [tool("a", {"type": "integer"})]}, "tools[0].function.parameters", "invalid_value"),
    ({"tools": [tool("a", {"properties": {"x": {"$ref": "http://127.0.0.1:9/"}}})]}, "tools[0].function.parameters", "invalid_value"),
    ({"tools": [tool("a", {"properties": {"x": {"type": "nope"}}})]}, "tools", "invalid_value"),
    ({"tools": [tool("a", {"properties": {"x": {"type": "string", "pattern": "(?=a)"}}})]}, "tools", "invalid_value"),
    ({"tools": [tool(f"t{n}", {"properties": {"x": {"enum": ["y" * 2000]}}}) for n in range(60)]}, "tools", "invalid_value"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, None, "invalid_value"),
    ({"tool_choice": "required", "tools": None}, None, "invalid_value"),
    ({"tool_choice": "sometimes"}, "tool_choice", "invalid_value"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls", "invalid_type"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs.regex", "unsupported_value"),
    ({"tool_choice": "required", "ignore_eos": True}, "ignore_eos", "invalid_value"),
    ({"functions": [{"name": "a"}]}, "functions", "invalid_type"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "code"), WRONG)
def test_what_can_not_be_is_refused(server: Any, fields: dict[str, Any], param: str | None, code: str) -> None:
    response = server.post("/v1/chat/completions", {"model": "demo", **asked(**fields)})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code), error
    assert error["type"] == "invalid_request_error"


def test_tools_need_a_template_that_knows_of_them(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.front, "tool_format", None)
    response = server.post("/v1/chat/completions", {"model": "demo", **asked()})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tools")
    assert response.json()["error"]["code"] == "unsupported_value"


def test_a_conversation_with_calls_goes_through_the_template(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments come as text, and templates want them as JSON; the demo model's template takes no tool's answer, and says so."""
    seen: list[Any] = []
    template = server.front.prompts._template
    render = template.render
    monkeypatch.setattr(template, "render", lambda *args: seen.append(args) or render(*args))
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "stop", "arguments": '{"a": [1]}'}},
        {"id": "call_2", "type": "function", "function": {"name": "stop", "arguments": "not JSON"}},
        {"id": "call_3", "type": "function", "function": {"name": "stop", "arguments": ""}},
    ]
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    server.chat(**asked(messages=messages, max_tokens=2))
    (rendered, tools, _) = seen[0]
    assert [call["function"]["arguments"] for call in rendered[1]["tool_calls"]] == [{"a": [1]}, "not JSON", {}]
    assert [each["function"]["name"] for each in tools] == ["get_weather", "set_timer", "stop"]
    messages.append({"role": "tool", "tool_call_id": "call_1", "content": "done"})
    response = server.post("/v1/chat/completions", {"model": "demo", **asked(messages=messages)})
    assert response.status_code == 400
    assert "the roles are system, user and assistant" in response.json()["error"]["message"]
    assert seen[1][0][2] == {"role": "tool", "tool_call_id": "call_1", "content": "done"}


def test_no_tools_are_told_of_when_none_may_be_called(server: Any) -> None:
    fields = {"max_tokens": 2, "return_token_ids": True}
    without = server.chat("x", **fields)["prompt_token_ids"]
    assert server.chat("x", **fields, tools=TOOLS, tool_choice="none")["prompt_token_ids"] == without
    assert server.chat("x", **fields, tools=TOOLS)["prompt_token_ids"] != without
