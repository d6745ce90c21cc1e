"""generate and load_model: Flax models and arrays in, arrays out, against the dense forward; on one device and on two."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from sarathi_jax import generate, load_model
from sarathi_jax.errors import ConfigError, RequestError
from sarathi_jax.models import CausalLM, ModelConfig, causal_lm_logits, create_model, param_sources
from sarathi_jax.sharding.mesh import make_mesh

CONFIG = ModelConfig(
    family="llama",
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    eos_token_ids=(2,),
)
PROMPTS = [[3, 4, 5], [30], [7, 8, 9, 10, 11, 12, 13], [20, 21]]  # always four rows or three: one set of programs
ROOM = 24


def make_model(seed: int) -> CausalLM:
    """Random weights that put logits apart."""
    model = create_model(CONFIG, rngs=nnx.Rngs(seed), dtype=jnp.dtype("float32"))
    nnx.update(model, jax.tree.map(lambda leaf: leaf * 15 if leaf.ndim > 1 else leaf, nnx.state(model)))
    return model


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return make_model(0)


@jax.jit
def _logits(model: CausalLM, token_ids: jax.Array) -> jax.Array:
    return causal_lm_logits(model, token_ids)


def logits_after(model: CausalLM, prompt: list[int], output: list[int]) -> np.ndarray:
    """f64[len(output), V]: what each token of the output was drawn from."""
    padded = np.zeros(ROOM, np.int32)
    known = [*prompt, *output]
    padded[: len(known)] = known
    return np.asarray(_logits(model, jnp.asarray(padded)), np.float64)[len(prompt) - 1 : len(known) - 1]


def rows_of(result: Any) -> list[list[int]]:
    tokens, lengths = np.asarray(result.tokens), np.asarray(result.lengths)
    return [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]


def check_greedy(model: CausalLM, result: Any) -> None:
    for prompt, output in zip(PROMPTS, rows_of(result), strict=True):
        assert logits_after(model, prompt, output).argmax(-1).tolist() == output


def test_greedy_is_the_dense_argmax(model: CausalLM):
    result = generate(model, [np.array(prompt) for prompt in PROMPTS], 10, eos_token_ids=())
    assert result.tokens.shape == (4, 10)
    assert result.tokens.dtype == result.lengths.dtype == jnp.int32
    assert (result.lengths.tolist(), result.logprobs) == ([10] * 4, None)
    check_greedy(model, result)


def test_a_padded_array_is_the_same_as_a_list(model: CausalLM):
    padded = np.full((4, 9), 37, np.int32)
    for row, prompt in zip(padded, PROMPTS, strict=True):
        row[: len(prompt)] = prompt
    lengths = jnp.array([len(prompt) for prompt in PROMPTS])
    by_array = generate(model, jnp.asarray(padded), 10, prompt_lengths=lengths, eos_token_ids=())
    assert rows_of(by_array) == rows_of(generate(model, [np.array(p) for p in PROMPTS], 10, eos_token_ids=()))


def test_rows_end_at_their_end_of_sequence_and_are_padded(model: CausalLM):
    whole = rows_of(generate(model, PROMPTS, 10, eos_token_ids=()))
    stop = whole[0][3]
    result = generate(model, PROMPTS, 10, eos_token_ids=(stop,), pad_id=36)
    cut = [row[: row.index(stop) + 1] if stop in row else row for row in whole]
    assert rows_of(result) == cut
    for row, length in zip(np.asarray(result.tokens), np.asarray(result.lengths), strict=True):
        assert (row[length:] == 36).all()


def test_draws_depend_on_the_key_and_the_rows_number_alone(model: CausalLM):
    draw = {"temperature": 1.0, "eos_token_ids": (), "top_k": 10}
    first = rows_of(generate(model, PROMPTS, 10, key=jax.random.key(3), **draw))
    assert rows_of(generate(model, PROMPTS, 10, key=jax.random.key(3), **draw)) == first
    assert rows_of(generate(model, PROMPTS[:3], 10, key=jax.random.key(3), **draw)) == first[:3]
    assert rows_of(generate(model, PROMPTS, 10, key=jax.random.key(4), **draw)) != first
    same = rows_of(generate(model, [PROMPTS[0]] * 3, 10, key=jax.random.key(3), **draw))
    assert same[0] == first[0]
    assert len({tuple(row) for row in same}) == 3
    for prompt, output in zip(PROMPTS, first, strict=True):
        rows = logits_after(model, prompt, output)
        assert all((row > row[token] + 1e-4).sum() < 10 for row, token in zip(rows, output, strict=True))


def test_logprobs_are_the_dense_log_softmax(model: CausalLM):
    result = generate(model, PROMPTS, 10, has_logprobs=True, temperature=2.0, key=jax.random.key(0))
    assert result.logprobs is not None
    for prompt, output, logprobs in zip(PROMPTS, rows_of(result), np.asarray(result.logprobs), strict=True):
        logits = logits_after(model, prompt, output)
        exact = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        exact -= logits.max(-1, keepdims=True)
        expected = exact[np.arange(len(output)), output]
        np.testing.assert_allclose(logprobs[: len(output)], expected, rtol=0, atol=1e-4)
        assert not logprobs[len(output) :].any()


def test_changed_weights_need_no_compile_and_are_used(model: CausalLM):
    """As while a model is trained."""
    before, other, compiled = generate(model, PROMPTS, 10, eos_token_ids=()), make_model(1), []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        after = generate(other, PROMPTS, 10, eos_token_ids=())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []
    assert rows_of(after) != rows_of(before)
    check_greedy(other, after)


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    ([[1.5]], {}, "Prompt 0 must be a one-dimensional array of whole numbers, got shape .1,. of float64: tokenize"),
    ([[1], [[2]]], {}, "Prompt 1 must be a one-dimensional array"),
    ([[3]], {"temperature": 1.0}, "temperature above 0 needs a key, got None: pass jax.random.key"),
    (np.ones((2, 3), int), {"prompt_lengths": [1, 4]}, r"prompt_lengths must give one length .* got \[1, 4\] for an"),
    (np.ones((2, 3), int), {"prompt_lengths": [1]}, r"prompt_lengths must give one length .* got \[1\] for an"),
    (np.ones((2, 3), int), {"prompt_lengths": [0, 1]}, r"prompt_lengths must give one length from 1"),
    ([[3]], {"temperature": -1.0}, "temperature must be between"),
    ([[3]], {"max_new_tokens": 0}, "max_tokens must be between 1"),
    ([[3], [40], [1]], {"max_new_tokens": 10}, "between 0 and 39 .* got 40 at position 0"),
    ([[3], [], [1]], {"max_new_tokens": 10}, "must hold at least one token|whole numbers"),
]


@pytest.mark.parametrize(("prompts", "options", "message"), WRONG)
def test_wrong_inputs_are_refused(model: CausalLM, prompts: Any, options: dict[str, Any], message: str):
    with pytest.raises(RequestError, match=message):
        generate(model, prompts, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("model"), np.random.default_rng(0)
    names = {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
    }
    same = ("vocab_size", "hidden_size", "intermediate_size", "head_dim", "max_position_embeddings")
    config = {names.get(name, name): getattr(CONFIG, name) for name in (*same, *names)}
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    specs = [spec for source in param_sources(CONFIG).values() for spec in source.tensors]
    tensors = {spec.name: rng.normal(float("norm" in spec.name), 0.4, spec.shape) for spec in specs}
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def test_a_model_on_two_devices_gives_the_tokens_of_one(folder: Path):
    mesh = make_mesh({"tensor": 2})
    alone, shared = load_model(str(folder)), load_model(str(folder), mesh=mesh)
    layer: Any = shared.layers[0]
    kernel = layer.attention.qkv.kernel[...]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(16, 1, 4, 8)}
    assert len(kernel.sharding.device_set) == 2
    result = generate(shared, PROMPTS, 10, mesh=mesh, eos_token_ids=())
    check_greedy(alone, result)


@pytest.mark.parametrize("mesh", [{"tensor": 4}, {"stage": 2}, {"stage": 2, "tensor": 4}], ids=str)
def test_a_model_that_is_held_whole_is_laid_out_for_a_mesh(folder: Path, mesh: dict[str, int]):
    """More devices than KV heads, and layers on stages: the model itself stays as it is."""
    model = load_model(str(folder))
    check_greedy(model, generate(model, PROMPTS, 10, mesh=make_mesh(mesh), eos_token_ids=()))


def test_meshes_that_jax_makes_will_do_and_other_axes_are_named(folder: Path):
    """`jax.make_mesh` gives axes of another type, which every operation would have to name."""
    model = load_model(str(folder), mesh=jax.make_mesh((2,), ("tensor",)))
    check_greedy(model, generate(model, PROMPTS, 10, mesh=jax.make_mesh((2,), ("tensor",)), eos_token_ids=()))
    with pytest.raises(ConfigError, match="A mesh must have axes of data, stage, expert, tensor, got model: rename"):
        generate(model, PROMPTS, 2, mesh=jax.make_mesh((2,), ("model",)))


def test_axes_that_are_not_for_a_model_in_hand_are_refused(folder: Path):
    with pytest.raises(
        ConfigError, match=r"held whole takes a mesh without data and stage, got \{'stage': 2, 'tensor': 1\}"
    ):
        load_model(str(folder), mesh=make_mesh({"stage": 2}))
    with pytest.raises(ConfigError, match=r"generate takes a mesh without data, got .*: leave out data, or use LLM"):
        generate(load_model(str(folder)), PROMPTS, 2, mesh=make_mesh({"data": 2}))
