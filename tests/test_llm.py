"""LLM over a tiny folder: batches, streams, what they leave behind; and every wrong input as one clear error, after which the engine goes on."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

from sarathi_jax import LLM, SamplingParams, load_model
from sarathi_jax.checkpoints.convert import convert
from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.errors import CapacityError, ConfigError, EngineError, ModelError, ModelNotFoundError, RequestError
from sarathi_jax.models import causal_lm_logits, param_sources

LETTERS = "Ġabcdefghijklmnopqrstuvwxyz"
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": len(LETTERS) + 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}
SMALL: dict[str, Any] = {"token_budget": 16, "max_num_seqs": 2, "page_size": 4, "progress": False}
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}ok"


def tokenizer_json() -> str:
    """Letters and the space, one token each."""
    vocab = {"<s>": 0, "</s>": 1} | {letter: 2 + place for place, letter in enumerate(LETTERS)}
    tokenizer = tokenizers.Tokenizer(tokenizer_models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer.to_str()


def write_folder(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    rng = np.random.default_rng(0)
    specs = [spec for source in param_sources(read_model_config(folder)).values() for spec in source.tensors]
    tensors = {spec.name: rng.normal(float("norm" in spec.name), 0.4, spec.shape) for spec in specs}
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(tokenizer_json())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def shared(folder: Path) -> LLM:
    return LLM(str(folder), **SMALL)


@pytest.fixture
def llm(shared: LLM) -> Any:
    """The one LLM; whatever a test does with it, nothing may be left of it."""
    yield shared
    scheduler = shared.engines[0].scheduler
    while shared.engine.has_unfinished:
        assert not scheduler.has_unfinished, "a request was left behind"
        shared.engine.step()
    scheduler.check_integrity()
    assert scheduler.num_free_pages == scheduler.limits.num_pages
    assert not shared._outputs
    assert not shared._events
    assert not shared.engines[0]._entries
    assert shared.compile_ledger.num_after_ready == 0


dense_logits = jax.jit(causal_lm_logits)


def greedy(max_tokens: int = 6, **options: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": max_tokens, "ignore_eos": True, **options})


def test_tokens_are_those_of_the_dense_forward(llm: LLM, folder: Path):
    model, prompts = load_model(str(folder)), [[5], list(range(2, 25)), [9, 8, 7]]
    for prompt, output in zip(prompts, llm.generate(prompts, greedy()), strict=True):
        tokens = output.outputs[0].token_ids
        known = len(prompt) + len(tokens)
        logits = np.asarray(dense_logits(model, jnp.array([*prompt, *tokens] + [0] * (32 - known), jnp.int32)))
        assert logits[len(prompt) - 1 : known - 1].argmax(-1).tolist() == tokens
        assert output.prompt_token_ids == prompt


def test_a_converted_folder_is_the_same_model_with_its_tokenizer_and_template(llm: LLM, folder: Path, tmp_path: Path):
    messages = [{"role": "user", "content": "the cat"}]
    with closing(LLM(str(convert(folder, tmp_path / "converted").folder), **SMALL)) as converted:
        ours, theirs = (each.chat(messages, greedy()) for each in (llm, converted))
    assert ours.prompt_token_ids == theirs.prompt_token_ids
    assert (ours.outputs[0].text, ours.outputs[0].token_ids) == (theirs.outputs[0].text, theirs.outputs[0].token_ids)


def test_a_text_and_its_tokens_give_the_same(llm: LLM):
    by_text = llm.generate("the cat", greedy())[0]
    by_ids = llm.generate([by_text.prompt_token_ids], greedy())[0]
    assert by_text.prompt == "the cat"
    assert by_ids.prompt is None
    assert by_ids.outputs[0].token_ids == by_text.outputs[0].token_ids
    assert llm.tokenizer is not None
    assert by_text.outputs[0].text == by_ids.outputs[0].text == llm.tokenizer.decode(by_text.outputs[0].token_ids)


def test_outputs_come_in_the_order_of_prompts_with_params_of_their_own(llm: LLM):
    prompts = ["a", "bb", "ccc", "dddd", "eeeee"]
    outputs = llm.generate(prompts, [greedy(7 - index) for index in range(5)], progress=True)
    assert [output.prompt for output in outputs] == prompts
    assert [len(output.outputs[0].token_ids) for output in outputs] == [7, 6, 5, 4, 3]
    alone = [llm.generate(prompt, greedy(7 - index))[0] for index, prompt in enumerate(prompts)]
    assert [each.outputs[0].token_ids for each in outputs] == [each.outputs[0].token_ids for each in alone]


def test_no_prompts_no_outputs(llm: LLM):
    assert llm.generate([]) == []


def test_a_stream_joined_is_the_output(llm: LLM):
    events = list(llm.stream("the cat", greedy(9)))
    whole = llm.generate("the cat", greedy(9))[0].outputs[0]
    assert "".join(event.text_delta for event in events) == whole.text
    assert [token for event in events for token in event.token_ids] == whole.token_ids
    assert events[-1].output is not None
    assert (events[-1].finish_reason, events[-1].output.outputs[0].token_ids) == ("length", whole.token_ids)


@pytest.mark.parametrize("num_read", [0, 1, 3])
@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_that_is_left_early_is_aborted(llm: LLM, num_read: int, n: int):
    """The fixture sees to it that no page, event or output is left of it."""
    stream: Any = llm.stream("the cat", greedy(40, n=n))
    for _ in range(num_read):
        next(stream)
    assert llm.engine.has_unfinished
    stream.close()
    assert not llm.engines[0].scheduler.has_unfinished


def test_streams_and_batches_may_be_mixed(llm: LLM):
    expected = {prompt: llm.generate(prompt, greedy(8))[0].outputs[0].token_ids for prompt in ("abc", "xyz", "hi")}
    streams = {prompt: llm.stream(prompt, greedy(8)) for prompt in ("abc", "xyz")}
    got = {prompt: [*next(stream).token_ids] for prompt, stream in streams.items()}
    got["hi"] = llm.generate("hi", greedy(8))[0].outputs[0].token_ids
    for _ in range(7):
        for prompt, stream in streams.items():
            got[prompt] += next(stream).token_ids
    assert got == expected
    assert all(next(stream, None) is None for stream in streams.values())


def test_an_aborted_stream_ends_with_an_error_instead_of_waiting_forever(llm: LLM):
    stream = llm.stream("the cat", greedy(40))
    llm.engine.abort(next(stream).request_id)
    with pytest.raises(EngineError, match="A stream must be read while its request lives, got request-"):
        next(stream)


def test_chat_puts_messages_into_the_template(llm: LLM):
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "there"}]
    output = llm.chat(messages, greedy())
    assert output.prompt_token_ids == llm.generate("hello there ok", greedy())[0].prompt_token_ids
    text = "".join(event.text_delta for event in llm.stream_chat(messages, greedy()))
    assert text == output.outputs[0].text


def test_metrics_come_with_outputs(llm: LLM):
    metrics = llm.generate("the cat", greedy(5))[0].metrics
    assert metrics.ttft_s is not None
    assert metrics.scheduling_delay_s is not None
    assert 0 <= metrics.scheduling_delay_s <= metrics.ttft_s <= metrics.e2e_s
    assert len(metrics.tbt_s) == 4
    assert metrics.ttft_s + sum(metrics.tbt_s) == pytest.approx(metrics.e2e_s)


def test_the_ledger_lists_each_program(llm: LLM):
    names = [entry.name for entry in llm.compile_ledger.entries]
    shapes = ["decode 1x1", "decode 2x2", "mixed 16x2"]
    expected = {f"{shape} {variant}" for shape in shapes for variant in ("greedy", "sample", "full")}
    assert set(names) == expected - {"decode 1x1 full"} | {"make state", "set slot", "set masks 2"}
    assert len(names) == len(set(names))
    assert all(entry.seconds > 0 and not entry.is_after_ready for entry in llm.compile_ledger.entries)
    assert "32 pages, 128 tokens" in llm.memory_plan.describe()


WRONG_PROMPTS: list[tuple[Any, str]] = [
    ("", "The prompt must hold at least one token, got none"),
    ([[]], "The prompt must hold at least one token, got none"),
    ([[2] * 64], "The prompt has 64 tokens and the model's length is 64"),
    (
        [[2] * 60],
        r"60 prompt tokens \+ max_tokens=6 = 66 exceed the model's length of 64. Shorten .* or lower max_tokens",
    ),
    ([[3, 29]], "between 0 and 28 .* got 29 at position 1. Tokenize with this model's tokenizer"),
    ([[-1]], "between 0 and 28 .* got -1 at position 0"),
    ([[1.5]], "must be whole numbers below 29, got other values"),
    ([["a"]], "must be whole numbers below 29"),
    ([None], "The prompt must be a text or a list of token ids, got NoneType"),
    ([3, 4], "prompts must be a text, or a list of texts or of lists of token ids, got a list of numbers: wrap it"),
    (7, "prompts must be a text, .* got int"),
]


@pytest.mark.parametrize(("prompts", "message"), WRONG_PROMPTS)
def test_a_wrong_prompt_is_refused_and_the_engine_goes_on(llm: LLM, prompts: Any, message: str):
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts, greedy())
    assert len(llm.generate("fine", greedy())[0].outputs[0].token_ids) == 6


def test_a_bad_prompt_in_a_batch_starts_nothing(llm: LLM):
    before = len(llm.engine.records)
    with pytest.raises(RequestError, match="Prompt 2: The prompt must hold at least one token") as caught:
        llm.generate(["a", "b", "", "c"], greedy())
    assert caught.value.param == "prompt"
    assert not llm.engine.has_unfinished
    assert len(llm.engine.records) == before


WRONG_PARAMS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": float("nan")}, "temperature must be a finite number, got nan: pass a float"),
    ({"temperature": -1.0}, "temperature must be between 0.0 and 100.0, got -1.0"),
    ({"top_p": 0.0}, "top_p must be above 0.0 and at most 1.0, got 0.0"),
    ({"top_k": -1}, "top_k must be between 0 and"),
    ({"max_tokens": 0}, "max_tokens must be between 1 and"),
    ({"n": 0}, "n must be between 1 and 64, got 0"),
    ({"stop": ("",)}, "stop must be one or several non-empty strings"),
    ({"logprobs": 21}, "logprobs must be between 0 and 20, got 21"),
    ({"seed": -1}, "seed must be between 0 and"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_PARAMS)
def test_wrong_sampling_params_are_refused_at_once(options: dict[str, Any], message: str):
    with pytest.raises(RequestError, match=message) as caught:
        SamplingParams(**options)
    assert caught.value.param == next(iter(options))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([greedy()] * 3, "params must be one for all prompts or one each, got 3 for 2: pass 2"),
        (
            {"temperature": 0.0, "n": 1},
            "params must be SamplingParams, or a list of them, got dict: write SamplingParams",
        ),
        (0.5, "params must be SamplingParams, or a list of them, got float"),
        (greedy(logit_bias={29: 1.0}), "logit_bias must name ids between 0 and 28 .* got 29. Leave that id out"),
        (greedy(stop_token_ids=(40,)), "stop_token_ids must name ids .* got 40"),
    ],
)
def test_params_that_do_not_fit_are_refused_and_the_engine_goes_on(llm: LLM, params: Any, message: str):
    with pytest.raises(RequestError, match=message):
        llm.generate(["a", "b"], params)
    assert len(llm.generate("fine", greedy())[0].outputs[0].token_ids) == 6


def test_a_wrong_stream_is_refused_before_it_is_read(llm: LLM):
    with pytest.raises(RequestError, match="at least one token"):
        llm.stream("")


WRONG_OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"token_budgit": 8}, ConfigError, "LLM takes the options .*, got token_budgit: did you mean token_budget"),
    ({"frobnicate": 8}, ConfigError, r"got frobnicate\.$"),
    ({"token_budget": 1}, ConfigError, "token_budget=1 must be >= max_num_seqs=2: every running request decodes one"),
    ({"max_num_seqs": 0}, ConfigError, "max_num_seqs=0 must be a whole number, at least 1"),
    ({"page_size": 12}, ConfigError, "page_size=12 must be a power of two"),
    ({"memory_fraction": 0.0}, ConfigError, "memory_fraction=0.0 must be above 0 and at most 1"),
    ({"dtype": "int4"}, ConfigError, "dtype must be one of auto, float32, bfloat16, float16, got 'int4'"),
    ({"mesh": "tensor=16"}, ConfigError, r"mesh tensor=16 needs 16 devices, got 8 \(cpu\): make the mesh smaller"),
    ({"mesh": {"tensor": 2}}, ConfigError, r"mesh must be a text, got {'tensor': 2}: write tensor=2"),
    ({"mesh": "tensor=²"}, ConfigError, "mesh must be axis=number, .* got 'tensor=²'"),
    ({"rules": None}, ConfigError, "rules must be a text, got None: write megatron"),
    ({"coordinator": 7700}, ConfigError, "coordinator must be a text, got 7700: write node1:7700"),
    ({"mesh": "tensr=2"}, ConfigError, "mesh must be axis=number, .* got 'tensr=2': write tensor=2"),
    ({"mesh": "tensor=2"}, ConfigError, r"must be a multiple of the mesh's tensor=2: choose a mesh that divides it"),
    ({"max_model_len": 65}, ConfigError, "max_model_len=65 must be at most the model's 64 positions"),
    ({"kernels": "magic"}, ConfigError, "magic"),
    ({"policy": "magic"}, ConfigError, "magic"),
    ({"policy": "slo"}, ConfigError, "policy='slo' needs tbt_slo_ms, got none: say how far apart tokens may be"),
    ({"policy": "slo", "tbt_slo_ms": 0}, ConfigError, "tbt_slo_ms=0 must be above 0: it is a time in milliseconds"),
    ({"policy": "slo", "tbt_slo_ms": 9, "ttft_slo_ms": True}, ConfigError, "ttft_slo_ms=True must be above 0"),
    (
        {"batch_ttft_slo_ms": 9.0},
        ConfigError,
        "batch_ttft_slo_ms is for policy='slo', got policy='sarathi': choose that",
    ),
    ({"fair_clients": True}, ConfigError, "fair_clients is for policy='slo', got policy='sarathi'"),
    ({"policy": "vllm"}, ConfigError, "token_budget=.* must be >= max_model_len=64 for policy='vllm': it never splits"),
    ({"memory_fraction": 1e-9}, CapacityError, "The model must fit .*raise memory_fraction, lower max_model_len or"),
    ({"num_pages": 3}, CapacityError, "num_pages=3 must be at least 17 .one request of the greatest length. and fit"),
    ({"num_pages": 10**12}, CapacityError, "num_pages=1000000000000 .* choose another num_pages"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG_OPTIONS)
def test_wrong_options_are_refused_before_anything_is_compiled(
    folder: Path, options: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        LLM(str(folder), **{**SMALL, **options})


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(ModelNotFoundError, match=r"must be 'demo', a folder or a hub id .* check its path"):
        LLM(str(tmp_path / "no such folder"), **SMALL)


def remove(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def reconfigure(**config: Any) -> Callable[[Path], Any]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(CONFIG | config))


BROKEN: list[tuple[Callable[[Path], Any], str]] = [
    (remove("config.json"), "config.json"),
    (remove("model.safetensors"), "safetensors"),
    (cut, "model.safetensors: .* the file is damaged or no safetensors file; fetch it again"),
    (
        reconfigure(hidden_size=32, head_dim=8),
        r"the weights must be those that config.json describes, got .*embed_tokens",
    ),
    (reconfigure(num_hidden_layers=2), r"got .*model\.layers\.1\..*: fetch the folder again, or correct config.json"),
    (reconfigure(architectures=["NoSuchForCausalLM"], model_type="nosuch"), "NoSuchForCausalLM"),
]
NAMES = ["no config", "no weights", "truncated", "shapes", "missing tensors", "architecture"]


@pytest.mark.parametrize(("damage", "message"), BROKEN, ids=NAMES)
def test_a_broken_folder_is_named_with_its_fault(tmp_path: Path, damage: Callable[[Path], Any], message: str):
    damage(write_folder(tmp_path))
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_weights_that_are_wrong_stop_the_start(tmp_path: Path):
    """They are read while programs compile: here few ones."""
    cut(write_folder(tmp_path))
    with pytest.raises(ModelError, match="the file is damaged or no safetensors file; fetch it again"):
        LLM(str(tmp_path), **{**SMALL, "max_num_seqs": 1, "token_budget": 1})


def test_a_broken_tokenizer_stops_the_start(tmp_path: Path):
    (write_folder(tmp_path) / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer.json must be JSON"):
        LLM(str(tmp_path), **SMALL)


def test_closing_ends_everything(folder: Path):
    """Last, with a program set of its own."""
    llm = LLM(str(folder), **{**SMALL, "max_num_seqs": 1, "token_budget": 1})
    stream = llm.stream("the cat", greedy(30))
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(EngineError, match="which was aborted: start it again"):
        list(stream)
    assert llm.engines[0].scheduler.num_free_pages == llm.engines[0].scheduler.limits.num_pages
