"""Token ids to text with stop strings, as the engine uses them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.text.output_text import OutputText
from sarathi_jax.text.tokenizer import Tokenizer

# Ids of both tokenizers and past them; runs of byte tokens, whole characters or not, are likely.
TOKEN_IDS = st.lists(
    st.one_of(st.integers(0, 420), st.sampled_from([3 + byte for byte in "語é".encode()])), max_size=40
)
STOPS = st.lists(
    st.sampled_from(["a", "e", "the", " the", "▁", "END", "é", "語", "\ufffd", "\ufffd\ufffd"]), max_size=3
)


def generate(tokenizer: Tokenizer, text: str, params: SamplingParams) -> tuple[str, str | None, int]:
    """Text, matched stop string and tokens used of an output that would go on with `text`."""
    output = OutputText(tokenizer, params)
    deltas: list[str] = []
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        deltas.append(output.push(token_id))
        if output.matched_stop:
            break
    return "".join(deltas) + output.finish(), output.matched_stop, len(deltas)


def cut(whole: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that is completed first, the longest of several, and that stop string."""
    for end in range(len(whole) + 1):
        if done := [stop for stop in stops if whole[:end].endswith(stop)]:
            return whole[: end - len(max(done, key=len))], max(done, key=len)
    return whole, None


@pytest.mark.parametrize("name", ["byte level", "sentencepiece"])
@given(token_ids=TOKEN_IDS, stops=STOPS, skip_special_tokens=st.booleans())
@settings(max_examples=300, deadline=None)
def test_streamed_text_is_the_whole_text_up_to_its_stop_string(
    all_tokenizers: dict[str, Tokenizer], name: str, token_ids: list[int], stops: list[str], skip_special_tokens: bool
) -> None:
    params = SamplingParams(stop=tuple(stops), skip_special_tokens=skip_special_tokens)
    output = OutputText(all_tokenizers[name], params)
    deltas = [output.push(token_id) for token_id in token_ids]
    streamed = "".join(deltas) + output.finish()
    whole = all_tokenizers[name].decode(token_ids, skip_special_tokens=skip_special_tokens)
    assert (streamed, output.matched_stop) == cut(whole, stops)


def test_a_stop_string_inside_a_token_cuts_the_token(byte_level: Tokenizer) -> None:
    assert byte_level.encode("a fox", add_special_tokens=False) != byte_level.encode("a f", add_special_tokens=False)
    assert generate(byte_level, "the quick brown fox jumps", SamplingParams(stop=("ow",)))[:2] == ("the quick br", "ow")


def test_the_stop_string_stays_where_it_is_asked_for(byte_level: Tokenizer) -> None:
    params = SamplingParams(stop=("ow",), include_stop_str_in_output=True)
    assert generate(byte_level, "the quick brown fox", params)[:2] == ("the quick brow", "ow")


def test_a_stop_string_in_half_a_character_held_to_the_end_still_cuts(sentencepiece: Tokenizer) -> None:
    output = OutputText(sentencepiece, SamplingParams(stop=("ж",)))
    assert [output.push(token_id) for token_id in (262, *(3 + byte for byte in "ж".encode()))] == ["a", "", ""]
    assert (output.finish(), output.matched_stop) == ("", "ж")


def test_stop_strings_are_not_looked_for_in_the_first_min_tokens(byte_level: Tokenizer) -> None:
    params = SamplingParams(stop=("x",), min_tokens=2)
    assert generate(byte_level, "xxxx", params) == ("xx", "x", 3)


def test_special_tokens_show_only_where_they_are_asked_for(byte_level: Tokenizer) -> None:
    ids = byte_level.encode_template("a<|im_end|>b")
    for skips, text in ((True, "ab"), (False, "a<|im_end|>b")):
        output = OutputText(byte_level, SamplingParams(skip_special_tokens=skips))
        assert "".join(map(output.push, ids)) + output.finish() == text
