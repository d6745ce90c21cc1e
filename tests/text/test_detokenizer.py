"""The streamed text is the whole text, for random ids, invalid UTF-8 included, and for every decoder that is
supported."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders

from sarathi_jax.errors import ModelError
from sarathi_jax.text.pieces import read_decoding_rules
from sarathi_jax.text.tokenizer import Tokenizer

NAMES = [
    "byte level",
    "sentencepiece",
    "no decoder",
    "metaspace",
    "metaspace, first",
    "metaspace, never",
    "strip each",
    "replace after",
    "byte level in a sequence",
]
# Ids past the vocabulary too: a model's logits may be wider than its tokenizer.
TOKEN_IDS = st.lists(st.integers(0, 420), max_size=40)
BYTE_RUNS = st.lists(
    st.one_of(st.integers(3, 258), st.sampled_from([3 + byte for byte in "語🙂é".encode()])), max_size=30
)


def stream(tokenizer: Tokenizer, token_ids: list[int], **options: bool) -> list[str]:
    detokenizer = tokenizer.new_detokenizer(**options)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.finish()]


@pytest.mark.parametrize("name", NAMES)
@given(token_ids=st.one_of(TOKEN_IDS, BYTE_RUNS), skip_special_tokens=st.booleans())
@settings(max_examples=300, deadline=None)
def test_joined_deltas_are_the_whole_text(
    all_tokenizers: dict[str, Tokenizer], name: str, token_ids: list[int], skip_special_tokens: bool
) -> None:
    tokenizer = all_tokenizers[name]
    whole = tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
    assert "".join(stream(tokenizer, token_ids, skip_special_tokens=skip_special_tokens)) == whole


@pytest.mark.parametrize("name", ["byte level", "sentencepiece"])
@given(text=st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_streamed_text_of_encoded_text_never_has_half_a_character(
    all_tokenizers: dict[str, Tokenizer], name: str, text: str
) -> None:
    tokenizer = all_tokenizers[name]
    deltas = stream(tokenizer, tokenizer.encode(text.replace("\ufffd", ""), add_special_tokens=False))
    assert "".join(deltas) == text.replace("\ufffd", "")
    assert not any("\ufffd" in delta for delta in deltas)


@given(prompt=TOKEN_IDS, token_ids=st.lists(st.sampled_from(range(259, 270)), max_size=10))
@settings(max_examples=200, deadline=None)
def test_continued_text_follows_its_prompt(sentencepiece: Tokenizer, prompt: list[int], token_ids: list[int]) -> None:
    prompt = [261, *prompt, 262]  # a word at both ends: the strip and any run of bytes are over
    whole = sentencepiece.decode(prompt + token_ids)
    assert sentencepiece.decode(prompt) + "".join(stream(sentencepiece, token_ids, continues_text=True)) == whole


def test_a_character_of_four_bytes_comes_with_its_last_byte(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("\U0001d11e", add_special_tokens=False)
    assert stream(byte_level, ids) == ["", "", "", "\U0001d11e", ""]


def test_half_a_character_at_the_end_becomes_one_replacement_character(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("\U0001d11e", add_special_tokens=False)[:3]
    assert stream(byte_level, ids) == ["", "", "", "\ufffd"]


def test_a_run_of_byte_tokens_comes_with_the_token_after_it(sentencepiece: Tokenizer) -> None:
    ids = [3 + byte for byte in "ж".encode()] + [262]
    assert stream(sentencepiece, ids) == ["", "", "жa", ""]


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.WordPiece(),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
        decoders.Strip(" ", 0, 1),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
        decoders.Sequence([decoders.ByteFallback(), decoders.ByteFallback()]),
    ],
    ids=[
        "wordpiece",
        "replace in a fused text",
        "strip the end",
        "strip each end",
        "metaspace of byte runs",
        "bytes twice",
    ],
)
def test_a_decoder_that_cannot_be_streamed_is_refused(sentencepiece: Tokenizer, decoder: decoders.Decoder) -> None:
    library_tokenizer = LibraryTokenizer.from_str(sentencepiece.to_json())
    library_tokenizer.decoder = decoder
    with pytest.raises(
        ModelError,
        match=r"the tokenizer's decoder must be made of ByteLevel, ByteFallback, .* this tokenizer isn't supported\.",
    ):
        read_decoding_rules(library_tokenizer)
