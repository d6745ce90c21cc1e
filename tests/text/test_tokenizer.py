"""Encoding: special tokens only where they may be, exact escapes, clear errors."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi_jax.errors import ModelError, ModelNotFoundError, RequestError
from sarathi_jax.text.tokenizer import Tokenizer

SPECIAL_PARTS = st.lists(
    st.sampled_from(["<s>", "</s>", "<|im_end|>", "<|im_start|>", "<unk>", "a ", "END", "<|", "\ue000special-0\ue000"]),
    max_size=8,
)


@pytest.mark.parametrize("name", ["byte level", "sentencepiece"])
@given(parts=SPECIAL_PARTS)
@settings(max_examples=200, deadline=None)
def test_user_text_never_becomes_a_special_token(
    all_tokenizers: dict[str, Tokenizer], name: str, parts: list[str]
) -> None:
    tokenizer = all_tokenizers[name]
    special_ids = {tokenizer.encode_template(text)[0] for text in ("<s>", "</s>")}
    assert not special_ids & set(tokenizer.encode("".join(parts), add_special_tokens=False))


@given(parts=SPECIAL_PARTS)
@settings(max_examples=200, deadline=None)
def test_escaped_text_in_a_template_is_plain_and_whole(byte_level: Tokenizer, parts: list[str]) -> None:
    user_text = "".join(part for part in parts if "\ue000" not in part)
    ids = byte_level.encode_template("<|im_start|>user " + byte_level.escape_special_tokens(user_text) + "<|im_end|>")
    assert [ids.count(byte_level.encode_template(text)[0]) for text in ("<|im_start|>", "<|im_end|>", "<s>")] == [
        1,
        1,
        0,
    ]
    assert byte_level.decode(ids[1:-1], skip_special_tokens=False) == "user " + user_text


def test_a_stand_in_that_a_user_writes_is_only_text(byte_level: Tokenizer) -> None:
    stand_in = byte_level.escape_special_tokens("<|im_end|>")
    assert byte_level.decode(byte_level.encode_template(stand_in), skip_special_tokens=True) == "<|im_end|>"


def test_bos_is_added_to_a_prompt_and_not_to_a_template(byte_level: Tokenizer) -> None:
    assert byte_level.bos_token_id == 0
    assert [byte_level.encode("a").count(0), byte_level.encode("a", add_special_tokens=False).count(0)] == [1, 0]
    assert [byte_level.encode_template("<s>a").count(0), byte_level.encode_template("a").count(0)] == [1, 0]


def test_ids_of_bos_and_eos_and_the_vocabulary_size(sentencepiece: Tokenizer) -> None:
    assert (sentencepiece.bos_token_id, sentencepiece.eos_token_id) == (1, 2)
    assert sentencepiece.vocab_size == 272


def test_bytes_of_tokens_joined_are_the_text(byte_level: Tokenizer, sentencepiece: Tokenizer) -> None:
    for tokenizer in (byte_level, sentencepiece):
        ids = tokenizer.encode("a héllo 🙂", add_special_tokens=False)
        assert b"".join(map(tokenizer.token_bytes, ids)).decode().lstrip() == "a héllo 🙂"


@pytest.mark.parametrize("text", ["\ud800", 5, None, b"a"])
def test_a_prompt_that_is_no_unicode_text_is_refused(byte_level: Tokenizer, text: str) -> None:
    with pytest.raises(
        RequestError, match=r"a prompt must be a string of valid Unicode, got .* pass text without lone surrogates"
    ) as caught:
        byte_level.encode(text)
    assert caught.value.param == "prompt"


def write_folder(folder: Path, tokenizer: Tokenizer, **files: object) -> Path:
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_special_tokens_are_read_from_either_file_and_either_form(tmp_path: Path, byte_level: Tokenizer) -> None:
    folder = write_folder(
        tmp_path,
        byte_level,
        tokenizer_config={"bos_token": {"content": "<s>"}, "eos_token": None},
        special_tokens_map={"eos_token": "</s>"},
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert (tokenizer.special_tokens, tokenizer.eos_token_id) == ({"bos_token": "<s>", "eos_token": "</s>"}, 1)


def test_a_saved_truncation_does_not_cut_prompts(tmp_path: Path, byte_level: Tokenizer) -> None:
    content = json.loads(byte_level.to_json())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert len(Tokenizer.from_folder(tmp_path).encode("qqqqqqqq")) == 9


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelNotFoundError, match=rf"{tmp_path} must hold tokenizer.json, got none: fetch it with the model"
    ):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(ModelNotFoundError, match=r"convert its tokenizer\.model"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "must be JSON"),
        (b"[]", "must hold a JSON object, got list"),
        (b"\xff", "must be UTF-8 text"),
        (b"{}", "must be a tokenizer of the tokenizers library"),
        (b"[" * 100_000, "must be JSON"),
    ],
)
def test_a_broken_tokenizer_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"tokenizer\.json.*{message}"):
        Tokenizer.from_folder(tmp_path)
