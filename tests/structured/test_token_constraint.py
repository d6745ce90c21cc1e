"""Constraints token by token: what comes out is what Python's own re and json say it has to be, whatever tokens are drawn."""

import itertools
import json
import random
import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sarathi_jax.errors import ModelError, RequestError
from sarathi_jax.structured import StructuredOutput
from sarathi_jax.text.token_constraint import MAX_CACHED, ConstraintFactory
from sarathi_jax.text.tokenizer import Tokenizer

type Walk = Callable[..., tuple[str, bool]]

REGEXES = [
    "(a+)+b",
    "(a|a)*c",
    "^ab?$",
    "[a-c]{3}-[0-9]{1,4}",
    r"(\+|-)?\d+(\.\d+)?",
    "a/b\\\\\"'",
    "(?i)yes|no",
    "[^a-z\\n]{2,5}",
    "é+ü?",
    "x(y|z(x|y){2}){0,3}",
    r"[\w.]{1,8}@[a-z]{1,8}\.(com|org)",
]


@pytest.mark.parametrize("regex", REGEXES)
def test_a_walk_through_a_regex_matches_it(walk: Walk, regex: str):
    ended = [text for text, is_ended in (walk(StructuredOutput(regex=regex), seed) for seed in range(12)) if is_ended]
    assert ended
    assert [text for text in ended if not re.fullmatch(regex, text, re.ASCII)] == []


@pytest.mark.parametrize("regex", ["a|ab", "(ab|b){2,3}", "x?y?z?"])
def test_every_text_of_a_regex_is_found_and_no_other(walk: Walk, regex: str):
    letters = itertools.chain(itertools.product("abxyz", repeat=3), itertools.product("ab", repeat=6))
    texts = {"".join(each[:count]) for each in letters for count in range(len(each) + 1)}
    expected = {text for text in texts if re.fullmatch(regex, text)}
    found = {walk(StructuredOutput(regex=regex), seed)[0] for seed in range(300)}
    assert found == expected


def test_every_choice_is_found_and_no_other(walk: Walk):
    choices = ("yes", "yesterday", "no", 'q"\\/\n', "é 😀", "start: x | y")
    found = {walk(StructuredOutput(choice=choices), seed)[0] for seed in range(300)}
    assert found == set(choices)


@settings(max_examples=60)
@given(choices=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_a_walk_through_any_choices_is_one_of_them(walk: Walk, choices: list[str], seed: int):
    text, is_ended = walk(StructuredOutput(choice=tuple(choices)), seed, max_tokens=100)
    assert is_ended
    assert text in choices


def test_a_json_object_has_one_space_at_most_between_its_parts(walk: Walk):
    ended = [
        text for text, is_ended in (walk(StructuredOutput(json_object=True), seed) for seed in range(80)) if is_ended
    ]
    assert len(ended) > 10
    for text in ended:
        value = json.loads(text)
        assert isinstance(value, dict)
        outside = "".join(text.replace('\\"', "").split('"')[::2])
        assert re.fullmatch(r"([^\s,:]|[,:] ?)*", outside), text


def test_a_grammar_of_ones_own(walk: Walk):
    structured = StructuredOutput(grammar='start: "(" start ")" | "x"')
    ended = [text for text, is_ended in (walk(structured, seed) for seed in range(30)) if is_ended]
    assert len(ended) > 5
    assert [
        text for text in ended if text.replace("(", "").replace(")", "") != "x" or text.count("(") != text.count(")")
    ] == []


def test_special_tokens_and_ids_without_a_token_are_never_allowed(
    factory: ConstraintFactory, tokenizer: Tokenizer, ids_of: Any
):
    wide = ConstraintFactory(tokenizer.to_json(), 600, (2, 5)).make(StructuredOutput(regex="(.|\n)*"))
    allowed = set(ids_of(wide.mask()))
    assert len(wide.mask()) == 19
    assert {2, 5} == {token_id for token_id in allowed if not tokenizer.token_bytes(token_id) or token_id < 6}
    assert max(allowed) < tokenizer.vocab_size


def test_a_copy_goes_on_by_itself_and_tokens_before_are_taken_in(factory: ConstraintFactory, tokenizer: Tokenizer):
    structured = StructuredOutput(regex="(ab|cd){2,9}")
    first = factory.make(structured)
    token_ids = [tokenizer.encode(letter, add_special_tokens=False)[-1] for letter in "abcdab"]
    for count, token_id in enumerate(token_ids):
        copy, resumed = first.copy(), factory.make(structured, token_ids[:count])
        np.testing.assert_array_equal(copy.mask(), first.mask())
        np.testing.assert_array_equal(resumed.mask(), first.mask())
        before = first.mask().copy()
        assert copy.accept(token_id)
        np.testing.assert_array_equal(first.mask(), before)
        assert first.accept(token_id)
    assert factory.make(structured).mask().tolist() == factory.make(structured, ()).mask().tolist()
    for wrong in ([token_ids[0], token_ids[0]], [token_ids[0], -1], [token_ids[0], "b"], [token_ids[0], 2]):
        rule = (
            rf"^output_token_ids must begin what structured asks for, got {wrong[1]} as token 1: start the request anew"
        )
        with pytest.raises(RequestError, match=rule):
            factory.make(structured, wrong)
    with pytest.raises(
        RequestError, match=r"must leave something to come, got all that structured asks for\. The output"
    ):
        factory.make(StructuredOutput(regex="ab"), token_ids[:2])


def test_a_token_that_is_not_allowed_fails_the_constraint_for_good(factory: ConstraintFactory, tokenizer: Tokenizer):
    constraint = factory.make(StructuredOutput(regex="ab"))
    wrong = tokenizer.encode("z", add_special_tokens=False)[-1]
    assert not constraint.accept(wrong)
    assert constraint.is_failed
    assert not constraint.is_ended
    assert not constraint.accept(wrong)


def test_what_is_kept_of_many_grammars_is_bounded(tokenizer: Tokenizer):
    factory = ConstraintFactory(tokenizer.to_json(), 512, (2, 5))
    for number in range(MAX_CACHED + 50):
        factory.make(StructuredOutput(regex=f"a{number}"))
    assert len(factory._compiled) == MAX_CACHED
    for number in range(100):
        factory.make(StructuredOutput(choice=(f"{number:04}" * 2**12,)))
    assert sum(map(len, factory._compiled)) == factory._num_bytes <= 2**22


def test_threads_may_share_a_factory(factory: ConstraintFactory):
    masks: list[list[int]] = []

    def work(seed: int) -> None:
        for number in random.Random(seed).sample(range(40), 40):
            mask = factory.make(StructuredOutput(choice=(f"{chr(97 + number % 20)}{number}",))).mask()
            masks.append([number, *mask.tolist()])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(masks) == 160
    assert len({tuple(mask) for mask in masks}) == 40


def test_a_model_that_can_not_end_an_output_is_refused(tokenizer: Tokenizer):
    factory = ConstraintFactory(tokenizer.to_json(), 512, ())
    with pytest.raises(
        RequestError, match=r"structured needs a model with an end-of-sequence token, got one without: use"
    ):
        factory.make(StructuredOutput(regex="a"))


def test_a_tokenizer_that_is_of_no_use_is_named():
    factory = ConstraintFactory("{}", 512, (2,))
    with pytest.raises(
        ModelError, match=r"structured output needs a tokenizer.json that llguidance reads, got .*: leave out"
    ):
        factory.make(StructuredOutput(regex="a"))
