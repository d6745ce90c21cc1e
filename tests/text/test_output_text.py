"""Token ids to text with stop strings, as the engine uses them."""

from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.text.output_text import OutputText
from sarathi_jax.text.tokenizer import Tokenizer


def generate(tokenizer: Tokenizer, text: str, params: SamplingParams) -> tuple[str, str | None, int]:
    """Text, matched stop string and tokens used of an output that would go on with `text`."""
    output = OutputText(tokenizer, params)
    deltas: list[str] = []
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        deltas.append(output.push(token_id))
        if output.matched_stop:
            break
    return "".join(deltas) + output.finish(), output.matched_stop, len(deltas)


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
