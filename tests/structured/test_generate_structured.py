"""Structures through `LLM`, with a model of random weights at temperature 1: what it gives is valid, by python's json, `jsonschema` and `re`, or was cut off."""

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sarathi_jax import LLM, SamplingParams, StructuredOutput
from sarathi_jax.errors import RequestError
from sarathi_jax.text.tokenizer import Tokenizer

DEMO = Path(__file__).parent.parent.parent / "sarathi_jax" / "assets" / "demo"
CONFIG = {
    "model_type": "llama",
    "vocab_size": 530,  # more than the tokenizer has
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "eos_token_id": [2, 5],
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)
    options: dict[str, Any] = {"token_budget": 32, "max_num_seqs": 4, "page_size": 8, "num_pages": 150}
    llm = LLM(str(folder), load_format="dummy", **options)
    yield llm
    llm.close()


class Schemas:
    """Random schemas whose size grows: all that llguidance says it takes and that a random model can get through."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def schema(self, size: int) -> dict[str, Any]:
        kinds = [self.string, self.number, self.constant]
        if size > 1:
            kinds += [self.record, self.record, self.array, self.union, self.shared]
        return self.rng.choice(kinds)(size)

    def string(self, _: int) -> dict[str, Any]:
        low = self.rng.randint(0, 3)
        kinds = [
            {"minLength": low, "maxLength": low + self.rng.randint(0, 6)},
            {"pattern": self.rng.choice(["^[a-c]{1,3}$", "^\\d{2}-[x-z]?$", "^(on|off)$"])},
            {"format": self.rng.choice(["date", "time", "ipv4", "uuid"])},
        ]
        return {"type": "string", **self.rng.choice(kinds)}

    def number(self, _: int) -> dict[str, Any]:
        low = self.rng.randint(-50, 50)
        kinds = [
            {"type": "integer", "minimum": low, "maximum": low + self.rng.randint(0, 200)},
            {"type": "number", "minimum": low, "exclusiveMaximum": low + 5},
            {"type": "integer", "minimum": 0, "maximum": 90, "multipleOf": self.rng.choice([3, 7])},
            {"type": self.rng.choice(["boolean", "null"])},
        ]
        return self.rng.choice(kinds)

    def constant(self, _: int) -> dict[str, Any]:
        values = ["é 😀", 'q"\\/', -1.5, 10**12, True, None, [1, {"a": []}], "", {"b": "c"}]
        count = self.rng.randint(1, 4)
        return {"enum": self.rng.sample(values, count)} if count > 1 else {"const": self.rng.choice(values)}

    def record(self, size: int) -> dict[str, Any]:
        names = self.rng.sample(["a", "b c", "é", "d\n", "$ref_", "f" * 9], self.rng.randint(1, 4))
        properties = {name: self.schema(size // (len(names) + 1)) for name in names}
        required = [name for name in names if self.rng.random() < 0.6]
        extra = self.rng.choice([{"additionalProperties": False}, {"additionalProperties": False}, {}])
        return {"type": "object", "properties": properties, "required": required, **extra}

    def array(self, size: int) -> dict[str, Any]:
        low = self.rng.randint(0, 2)
        limits: dict[str, Any] = {"minItems": low, "maxItems": low + self.rng.randint(0, 2)}
        if self.rng.random() < 0.3:
            limits["prefixItems"] = [self.schema(size // 3)]
        return {"type": "array", "items": self.schema(size // 2), **limits}

    def union(self, size: int) -> dict[str, Any]:
        return {"anyOf": [self.schema(size // 2), self.schema(size // 2)]}

    def shared(self, size: int) -> dict[str, Any]:
        if self.rng.random() < 0.5:
            return {
                "allOf": [{"type": "object", "required": ["k"]}, {"properties": {"k": self.schema(size // 2)}}],
                "type": "object",
            }
        branch = {"type": "object", "properties": {"v": self.schema(0), "next": {"$ref": "#"}}, "required": ["v"]}
        return (
            {**branch, "additionalProperties": False}
            if size < 0
            else {"type": "array", "items": branch["properties"]["v"], "maxItems": 3}
        )


def check_schemas(llm: LLM, schemas: list[dict[str, Any]], max_tokens: int) -> int:
    """Returns: how many outputs were whole; those are valid, and the others were cut off."""
    params = [
        SamplingParams(structured=StructuredOutput(json_schema=each), temperature=1.0, max_tokens=max_tokens, seed=seed)
        for seed, each in enumerate(schemas)
    ]
    num_whole = 0
    for schema, output in zip(schemas, llm.generate(["{"] * len(schemas), params), strict=True):
        (sample,) = output.outputs
        assert sample.finish_reason in ("stop", "length"), schema
        if sample.finish_reason == "stop":
            jsonschema.validate(json.loads(sample.text), schema, jsonschema.Draft202012Validator)
            num_whole += 1
    return num_whole


def test_json_of_random_schemas_is_valid(llm: LLM):
    makers = [(Schemas(seed), 1 + seed // 4) for seed in range(200)]
    schemas = [maker.schema(size) for maker, size in makers]
    assert max(len(json.dumps(each)) for each in schemas) > 1000
    assert check_schemas(llm, schemas, max_tokens=90) > 120  # 169 of 200; the others were cut off
    assert llm.compile_ledger.num_after_ready == 0


def test_a_schema_that_refers_to_itself(llm: LLM):
    tree = {
        "type": "object",
        "properties": {"v": {"enum": [1]}, "next": {"$ref": "#"}},
        "required": ["v"],
        "additionalProperties": False,
    }
    assert check_schemas(llm, [tree] * 16, max_tokens=80) > 8


@pytest.mark.parametrize("regex", ["[a-f]{2}:[0-9]{1,3}", "(ab?c|d{2,4}){3}", "é(x|😀)+y"])
def test_text_of_a_regex_matches_it(llm: LLM, regex: str):
    params = SamplingParams(
        structured=StructuredOutput(regex=regex), temperature=1.0, max_tokens=60, n=6, seed=3, logprobs=2
    )
    (output,) = llm.generate("x", params)
    ended = [sample for sample in output.outputs if sample.finish_reason == "stop"]
    assert ended
    assert [sample.text for sample in ended if not re.fullmatch(regex, sample.text)] == []
    assert all(sample.logprobs and len(sample.logprobs) == len(sample.token_ids) for sample in output.outputs)


def test_penalties_bias_and_filters_never_leave_what_is_allowed(llm: LLM):
    """A bias against all that is allowed, and a filter that would keep one token that isn't."""
    choice = StructuredOutput(choice=("aa", "bb"))
    biased = dict.fromkeys(range(300), -10000.0)
    filters: list[dict[str, Any]] = [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 0.0}]
    filters += [{"logit_bias": biased}, {"repetition_penalty": 100.0}]
    for options in filters:
        (output,) = llm.generate("aabb", SamplingParams(structured=choice, max_tokens=8, seed=1, **options))
        assert output.outputs[0].text in ("aa", "bb"), options


def test_streams_and_stop_strings(llm: LLM):
    params = SamplingParams(structured=StructuredOutput(regex="[ab]{6}c+d"), max_tokens=40, seed=2, stop=("cc", "d"))
    events = list(llm.stream("x", params))
    whole = events[-1].output
    assert whole is not None
    assert "".join(event.text_delta for event in events) == whole.outputs[0].text
    assert re.fullmatch("[ab]{6}c?", whole.outputs[0].text)


def test_a_wrong_structure_is_refused_and_nothing_has_started(llm: LLM):
    with pytest.raises(
        RequestError, match=r"^Prompt 1: regex must be one that can be compiled and satisfied, got"
    ) as caught:
        llm.generate(["a", "b"], [SamplingParams(), SamplingParams(structured=StructuredOutput(regex="(?=a)"))])
    assert caught.value.param == "regex"
    assert not llm.engine.has_unfinished


def test_tokens_are_those_of_the_text(llm: LLM):
    """What the masks say of tokens is what the detokenizer makes of them."""
    assert isinstance(llm.tokenizer, Tokenizer)
    params = SamplingParams(structured=StructuredOutput(json_object=True), max_tokens=60, n=8, seed=5)
    (output,) = llm.generate("{", params)
    for sample in output.outputs:
        token_ids = [each for each in sample.token_ids if each not in (2, 5)]
        joined = b"".join(map(llm.tokenizer.token_bytes, token_ids)).decode("utf-8", "replace")
        assert joined == sample.text or sample.finish_reason == "length"
