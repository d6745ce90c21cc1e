"""A module that somebody else wrote in generate: the same tokens as JAX's own attention over the whole sequence gives, and clear errors for what is missing."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.own_model import CONFIG, Counter, main, plain_greedy
from sarathi_jax import generate
from sarathi_jax.errors import ConfigError, ModelError
from sarathi_jax.models import check_model
from sarathi_jax.models.attention import Attend
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.rules import MEGATRON, SEQUENCE

PROMPTS = [[3, 5, 7], [30], [7, 8, 9, 10, 11, 12, 13], [20, 21]]


def apart[M: Counter](model: M) -> M:
    """Weights that put logits apart."""
    nnx.update(model, jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, nnx.state(model, nnx.Param)))
    return model


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    model = apart(Counter(CONFIG, rngs=nnx.Rngs(0)))
    return [plain_greedy(model, prompt, 10) for prompt in PROMPTS]


def tokens_of(model: Any, **options: Any) -> list[list[int]]:
    return np.asarray(generate(model, PROMPTS, 10, **options).tokens).tolist()


def test_the_example_trains_saves_restores_and_generates(capsys: pytest.CaptureFixture[str]):
    with jax.numpy_dtype_promotion("standard"):  # optax counts on it
        main(["--steps", "2"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("loss after 2 steps: ")
    assert said[1].startswith("[3, 5, 7] goes on with [")


@pytest.mark.parametrize("mesh", [{}, {"tensor": 2}], ids=str)
def test_tokens_are_those_of_the_plain_forward(expected: list[list[int]], mesh: dict[str, int]):
    assert len({tuple(row) for row in expected}) == 4
    assert tokens_of(apart(Counter(CONFIG, rngs=nnx.Rngs(0))), mesh=make_mesh(mesh)) == expected


class Constrained(Counter):
    """It lets the rules say where the residual stream is."""

    def hidden_states(self, *args: Any, constrain: Any, **options: Any) -> jax.Array:
        return constrain(super().hidden_states(*args, **options))


def test_rules_that_cut_the_residual_stream_need_a_module_that_knows(expected: list[list[int]]):
    mesh = make_mesh({"tensor": 2})
    assert tokens_of(apart(Constrained(CONFIG, rngs=nnx.Rngs(0))), mesh=mesh, rules=SEQUENCE) == expected
    with pytest.raises(
        ModelError, match=r"Counter must have hidden_states\(token_ids, positions, attend, max_length=, constr"
    ):
        tokens_of(Counter(CONFIG, rngs=nnx.Rngs(0)), mesh=mesh, rules=SEQUENCE)


class WithMore(Counter):
    """Variables of other kinds, the first of them no floats: keys and values are kept in the dtype of the weights."""

    def __init__(self, **options: Any) -> None:
        super().__init__(CONFIG, **options)
        self.a_count = nnx.BatchStat(jnp.arange(3))
        self.a_dropout = nnx.Dropout(0.5, rngs=options["rngs"])

    def logits(self, hidden: jax.Array) -> jax.Array:
        return super().logits(self.a_dropout(hidden))


def test_variables_of_any_kind_come_along(expected: list[list[int]]):
    model = apart(WithMore(rngs=nnx.Rngs(0)))
    model.eval()
    assert tokens_of(model) == expected


def test_stages_are_for_models_of_this_package():
    with pytest.raises(ConfigError, match="need a model of this package, got Counter on mesh"):
        tokens_of(Counter(CONFIG, rngs=nnx.Rngs(0)), mesh=make_mesh({"stage": 2}))


class Missing(nnx.Module):
    """Has a configuration only."""

    def __init__(self, config: Any) -> None:
        self.config = config


class NoLogits(Missing):
    hidden_states = Counter.hidden_states


class OtherArguments(Missing):
    def hidden_states(self, token_ids: Any, mask: Any) -> Any: ...


class Changed(Counter):
    """Hands `attend` something else than it should."""

    def __init__(self, change: Any, **config: Any) -> None:
        super().__init__(replace(CONFIG, **config), rngs=nnx.Rngs(0))
        self.change = change

    def hidden_states(self, token_ids: Any, positions: Any, attend: Attend, *, max_length: int | None = None) -> Any:
        return super().hidden_states(token_ids, positions, lambda *args: attend(*self.change(*args)))


class Returning(Counter):
    """Returns something else than it should."""

    def __init__(self, hidden: Any = lambda x: x, logits: Any = lambda x: x) -> None:
        super().__init__(CONFIG, rngs=nnx.Rngs(0))
        self.of_hidden, self.of_logits = hidden, logits

    def hidden_states(self, *args: Any, **options: Any) -> Any:
        return self.of_hidden(super().hidden_states(*args, **options))

    def logits(self, hidden: jax.Array) -> Any:
        return self.of_logits(super().logits(hidden))


def scanned(index: int, qkv: jax.Array, angles: Any) -> tuple[Any, ...]:
    return jnp.asarray(index), qkv, angles


def half_cos(index: int, qkv: jax.Array, angles: Any) -> tuple[Any, ...]:
    return index, qkv, angles._replace(cos=angles.cos.astype(jnp.bfloat16))


WRONG: list[tuple[Any, str]] = [
    (object(), r"A model must be a Flax NNX module, got object: see docs/own-model\.md"),
    (
        Missing({"vocab_size": 3}),
        r"Missing\.config must be a sarathi_jax\.models\.ModelConfig, got dict: give the module",
    ),
    (
        Missing(replace(CONFIG, num_heads=5)),
        r"Missing\.config must have num_heads that are a multiple .* got 5, 2 and 16",
    ),
    (
        Missing(CONFIG),
        r"Missing must have hidden_states\(token_ids, positions, attend, max_length=\), got no such method",
    ),
    (OtherArguments(CONFIG), r"OtherArguments must have hidden_states\(.*\), got .*: add it; see docs/own-model\.md"),
    (NoLogits(CONFIG), r"NoLogits must have logits\(hidden\), got no such method: add it"),
    (
        Changed(lambda index, *rest: (0, *rest)),
        r"must call attend once for each of its 2 layers, 0 to 1, got calls for \[0, 0\]",
    ),
    (Changed(lambda index, *rest: (index + 1, *rest)), r"got calls for \[1, 2\]: correct its config, or what it calls"),
    (
        Changed(scanned),
        r"must call attend with a layer's index, a number, got .*: run the layers in a Python loop, not a",
    ),
    (
        Changed(lambda index, qkv, angles: (index, qkv[:, :, 1:], angles)),
        r"with qkv \[T, K, G \+ 2, D\], which is \[5, 2, 4, 16\]",
    ),
    (Changed(half_cos), r"with cos f32\[T, D / 2\], which is \[5, 8\] for a trial .* got bfloat16\[5, 8\]: correct it"),
    (
        Returning(hidden=lambda x: x[:, :3]),
        r"hidden_states must return \[T, E\], which is \[5, 64\] .* got float32\[5, 3\]",
    ),
    (Returning(hidden=lambda x: (x, x)), r"hidden_states must return \[T, E\], .* got tuple: correct it"),
    (
        Returning(logits=lambda x: x[:, :3]),
        r"logits must return f32\[R, V\], which is \[3, 32\] .* got float32\[3, 3\]",
    ),
    (Returning(logits=lambda x: x.astype(jnp.bfloat16)), r"logits must return f32\[R, V\], .* got bfloat16\[3, 32\]"),
]


@pytest.mark.parametrize(("model", "message"), WRONG)
def test_what_is_missing_is_named(model: Any, message: str):
    with pytest.raises(ModelError, match=message):
        check_model(model, is_constrained=False)
    with pytest.raises(ModelError, match=message):
        generate(model, PROMPTS, 2, rules=MEGATRON)
