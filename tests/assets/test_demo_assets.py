"""The committed demo model: its size, its files, its tokenizer, and that its evaluation asks what training never asked."""

import importlib
import json
import math
import random
from pathlib import Path
from types import ModuleType

import pytest
import tokenizers
from safetensors import safe_open

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "sarathi_jax" / "assets" / "demo"
TASKS = [
    "add",
    "subtract",
    "multiply",
    "copy",
    "sort",
    "reverse",
    "count",
    "recall",
    "facts",
    "engine",
    "json",
    "tools",
]


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The generator of the demo's training text."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("demo_training.text")


@pytest.fixture(scope="module")
def tokenizer() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))


def read_json(name: str) -> dict[str, object]:
    return json.loads((DEMO / name).read_text(encoding="utf-8"))


def weight_shapes() -> dict[str, list[int]]:
    with safe_open(DEMO / "model.safetensors", framework="numpy") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (a file is no mapping)


def test_the_folder_is_at_most_16_megabytes() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= 16 * 2**20


def test_it_has_at_most_8_million_parameters_and_says_how_many() -> None:
    num_params = sum(math.prod(shape) for shape in weight_shapes().values())
    assert num_params <= 8_000_000
    assert read_json("ACCURACY.json")["num_params"] == num_params


def test_it_is_a_mistral_with_grouped_queries_and_2048_positions() -> None:
    config = read_json("config.json")
    assert config["architectures"] == ["MistralForCausalLM"]
    assert config["model_type"] == "mistral"
    assert config["num_attention_heads"] == 2 * int(str(config["num_key_value_heads"]))
    assert int(str(config["max_position_embeddings"])) >= 2048


def test_weights_have_the_shapes_that_the_configuration_gives() -> None:
    config, shapes = read_json("config.json"), weight_shapes()
    hidden, head_dim = config["hidden_size"], int(str(config["head_dim"]))
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], hidden]
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == [
        int(str(config["num_key_value_heads"])) * head_dim,
        hidden,
    ]
    assert shapes["model.layers.0.mlp.down_proj.weight"] == [hidden, config["intermediate_size"]]
    assert len(shapes) == 2 + 9 * int(str(config["num_hidden_layers"]))


@pytest.mark.parametrize("sample", ["12+30=42", "Ünï 漢字 🙂 <s>", " two  spaces\n\ttab", '{"name": "Ada"}', ""])
def test_text_survives_the_tokenizer(tokenizer: tokenizers.Tokenizer, sample: str) -> None:
    tokenizer.encode_special_tokens = True
    assert tokenizer.decode(tokenizer.encode(sample).ids, skip_special_tokens=True) == sample


def test_every_digit_is_a_token(tokenizer: tokenizers.Tokenizer) -> None:
    assert tokenizer.encode("a120 + 3456=").tokens == ["<s>", "a", *"120", "Ġ", "+", "Ġ", *"3456", "="]


def test_special_tokens_have_the_ids_of_the_configuration(tokenizer: tokenizers.Tokenizer) -> None:
    config = read_json("config.json")
    assert config["eos_token_id"] == [tokenizer.token_to_id("</s>"), tokenizer.token_to_id("<|end|>")]
    assert config["bos_token_id"] == tokenizer.token_to_id("<s>")
    assert config["pad_token_id"] == tokenizer.token_to_id("<pad>")


@pytest.mark.parametrize("task", TASKS)
def test_no_held_out_question_is_trained_on(text: ModuleType, task: str) -> None:
    rng = random.Random(1)

    def questions(held_out: bool, num: int) -> set[tuple[object, ...]]:
        examples = [text.draw(task, rng, held_out=held_out, level=1.0) for _ in range(num)]
        return {(example.is_chat, example.context, example.turns[0].prompt, example.tools) for example in examples}

    assert not questions(True, 500) & questions(False, 2000)


def test_every_task_has_its_accuracy(text: ModuleType) -> None:
    held_out = read_json("ACCURACY.json")["held_out"]
    assert isinstance(held_out, dict)
    assert set(TASKS) == set(text.TASKS) <= set(held_out)
