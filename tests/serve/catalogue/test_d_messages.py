"""Group D of the catalogue: messages of chats.

B-D02: a role that is missing is `missing_required_parameter`, as any other field; `invalid_value` is for one that is there.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest

import sarathi_jax

CHAT = "/v1/chat/completions"
DEMO = Path(sarathi_jax.__file__).parent / "assets" / "demo"
SPECIAL_TEXTS = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>", "<|im_end|>", "[INST]"]
pytestmark = pytest.mark.usefixtures("unharmed")


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/secret.png"}}
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("B-D01", {"messages": ...}, "400 missing_required_parameter messages"),
    ("B-D01", {"messages": []}, "400 empty_array messages"),
    ("B-D01", {"messages": {}}, "400 invalid_type messages"),
    ("B-D01", {"messages": "hi"}, "400 invalid_type messages"),
    ("B-D01", {"messages": None}, "400 invalid_type messages"),
    ("B-D01", {"messages": [{"role": "user", "content": "a"}] * 10_001}, "400 array_above_max_length messages"),
    ("B-D01", {"messages": ["hi"]}, "400 invalid_type messages[0]"),
    ("B-D02", {"messages": [{"content": "a"}]}, "400 missing_required_parameter messages[0].role"),
    ("B-D02", {"messages": [{"role": "wizard", "content": "a"}]}, "400 invalid_value messages[0].role"),
    ("B-D02", {"messages": [{"role": 5, "content": "a"}]}, "400 invalid_value messages[0].role"),
    ("B-D02", {"messages": [{"role": "user", "content": "a", "x": 1}]}, "400 unknown_parameter messages[0].x"),
    ("B-D03", user(None), "400 invalid_value messages[0]"),
    ("B-D03", {"messages": [{"role": "user"}]}, "400 invalid_value messages[0]"),
    ("B-D03", user(""), "200"),
    ("B-D03", user([]), "400 empty_array messages[0].content"),
    ("B-D03", user({}), "400 invalid_type messages[0].content"),
    ("B-D03", user(5), "400 invalid_type messages[0].content"),
    ("B-D03", user(["a"]), "400 invalid_type messages[0].content[0]"),
    ("B-D03", user([[{"type": "text", "text": "a"}]]), "400 invalid_type messages[0].content[0]"),
    ("B-D03", user([{"type": "text"}]), "400 missing_required_parameter messages[0].content[0].text"),
    ("B-D03", user([{"type": "text", "text": "a"}]), "200"),
    ("B-D03", user([IMAGE]), "400 unsupported_value messages[0].content[0].type"),
    ("B-D03", user([{"type": "text", "text": "a"}, IMAGE]), "400 unsupported_value messages[0].content[1].type"),
    ("B-D03", user([{"type": "input_audio", "input_audio": {}}]), "400 unsupported_value messages[0].content[0].type"),
    ("B-D04", user(" ".join(SPECIAL_TEXTS)), "200"),
    ("B-D05", {"chat_template": "{{ messages }}"}, "400 unknown_parameter chat_template"),
    ("B-D05", {"chat_template_kwargs": {"chat_template": "x"}}, "400 unknown_parameter chat_template_kwargs"),
    ("B-D05", {"chat_template_kwargs": {"tokenize": True}}, "400 unknown_parameter chat_template_kwargs"),
    ("B-D05", {"tokenize": True}, "400 unknown_parameter tokenize"),
    ("B-D06", {"messages": [{"role": "tool", "content": "a", "tool_call_id": "x"}]}, "400 invalid_value messages"),
    ("B-D07", user("a" * 2**20), "400 context_length_exceeded messages"),
    ("B-D07", user(" " * 2**20), "400 context_length_exceeded messages"),
    ("B-D07", user("(" * 2**20), "400 context_length_exceeded messages"),
    ("B-D07", user("a" * 2500), "400 context_length_exceeded"),
    ("B-D07", user("\ud800"), "400 invalid_json -"),
]


@pytest.mark.parametrize("case", CASES)
def test_messages(server: Any, ask: Any, judge: Any, case: Any) -> None:
    judge(ask(server, CHAT, case[1]), case[2])


def test_others_do_not_notice(server: Any, ask: Any, judge: Any, neighbours: Any) -> None:
    with neighbours(server):
        for _, changes, expected in CASES:
            judge(ask(server, CHAT, changes), expected)


@pytest.mark.parametrize("role", ["user", "system", "assistant"])
def test_special_tokens_in_a_text_are_text(server: Any, role: str) -> None:
    """B-D04: a conversation has as many special tokens as its template writes, whatever its messages say."""
    special = {token["id"] for token in json.loads((DEMO / "tokenizer.json").read_text())["added_tokens"]}

    def num_special(text: str) -> int:
        messages = [{"role": role, "content": text}]
        token_ids = server.post("/tokenize", {"messages": messages}).json()["tokens"]
        return sum(token_id in special for token_id in token_ids)

    plain = num_special("hello")
    assert plain > 0
    for text in (*SPECIAL_TEXTS, "".join(SPECIAL_TEXTS), "<|us<|user|>er|>"):
        assert num_special(text) == plain
    tokens = server.post("/tokenize", {"prompt": "</s>", "add_special_tokens": False}).json()["tokens"]
    assert not special.intersection(tokens)


@pytest.mark.parametrize("char", ["a", " ", "(", "é", "\U0001f642"])
def test_a_long_text_is_refused_before_it_is_read(server: Any, ask: Any, judge: Any, char: str) -> None:
    """B-D07: however long."""
    start_s = time.perf_counter()
    judge(ask(server, CHAT, user(char * 2**20)), "400 context_length_exceeded messages")
    assert time.perf_counter() - start_s < 5.0  # 1 s, and the machine is shared


def test_a_template_that_refuses_says_why(serving: Any, ask: Any, judge: Any, well: Any, tmp_path: Path) -> None:
    """B-D06: in the template's own words, cut."""
    for path in DEMO.iterdir():
        if path.name != "model.safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no ' + 'x' * 5000) }}")
    server = serving(engine={"folder": str(tmp_path)})
    message = judge(ask(server, CHAT, {}), "400 invalid_value messages")["error"]["message"]
    assert "no xxx" in message
    assert "x" * 201 not in message
    well(server)
