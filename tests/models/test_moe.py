"""A mixture of experts against a loop over tokens and their experts in float64, and what its routing does with equals."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from sarathi_jax.models import ModelConfig, param_sources
from sarathi_jax.models.config import MoEConfig
from sarathi_jax.models.moe import MoE, route
from sarathi_jax.models.weights import Index
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import abstract_model
from sarathi_jax.sharding.rules import MEGATRON

EMBED, EXPERTS, SIZE = 12, 5, 8
CONFIG = ModelConfig(
    family="mixtral",
    vocab_size=13,
    hidden_size=EMBED,
    intermediate_size=SIZE,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    max_position_embeddings=32,
)
RNG = np.random.default_rng(0)
ROUTER, GATE_UP, DOWN = (
    RNG.normal(0, 0.5, shape) for shape in ((EMBED, EXPERTS), (EMBED, EXPERTS, 2, SIZE), (EXPERTS, SIZE, EMBED))
)


def make_moe(dtype: str = "float32", gate_up: np.ndarray = GATE_UP, **options: object) -> MoE:
    moe = replace(MoEConfig(num_experts=EXPERTS, num_experts_per_token=2, expert_size=SIZE), **options)
    module = MoE(CONFIG, moe, rngs=nnx.Rngs(0), dtype=jnp.dtype(dtype))
    for linear, kernel in ((module.router, ROUTER), (module.gate_up, gate_up), (module.down, DOWN)):
        linear.kernel[...] = jnp.asarray(kernel, dtype)
    return module


def one_token(x: np.ndarray, num_per_token: int, *, is_normalized: bool) -> np.ndarray:
    """As the definition has it: the experts with most of the softmax, each one's MLP, their sum."""
    logits = x @ ROUTER
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    chosen = sorted(range(EXPERTS), key=lambda expert: (-probabilities[expert], expert))[:num_per_token]
    total = sum(probabilities[expert] for expert in chosen) if is_normalized else 1.0
    out = np.zeros(EMBED)
    for expert in chosen:
        gate, up = x @ GATE_UP[:, expert, 0], x @ GATE_UP[:, expert, 1]
        out += probabilities[expert] / total * ((gate / (1 + np.exp(-gate)) * up) @ DOWN[expert])
    return out


@pytest.mark.parametrize("num_per_token", [1, 2, 3, 5])
@pytest.mark.parametrize("is_normalized", [True, False])
def test_tokens_go_through_their_experts(num_per_token: int, is_normalized: bool):
    x = RNG.normal(size=(17, EMBED))
    moe = make_moe(num_experts_per_token=num_per_token, is_normalized=is_normalized)
    expected = np.stack([one_token(token, num_per_token, is_normalized=is_normalized) for token in x])
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(moe(jnp.asarray(x, jnp.float32)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_per_token", [1, 2, 3, 4])
def test_of_equal_experts_the_first_are_chosen(num_per_token: int):
    """Every way that logits of four experts can be equal or not; and many experts with two kinds of logits."""
    logits = np.stack(np.meshgrid(*[[0.0, 1.0, 2.0]] * 4)).reshape(4, -1).T
    more = RNG.integers(0, 2, (50, 64)).astype(np.float64)
    for each in (logits, more):
        order = np.argsort(-each, axis=-1, kind="stable")[:, :num_per_token]
        shares = np.asarray(route(jnp.asarray(each, jnp.float32), num_per_token, is_normalized=True))
        np.testing.assert_array_equal(np.sort(order), [np.flatnonzero(row) for row in shares])
        np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-6)


def test_shares_are_float32_whatever_the_model_is():
    """Softmax of bfloat16 logits by hand: e / (e + 1) and 1 / (e + 1), which bfloat16 would round to 0.73 and 0.27."""
    shares = route(jnp.asarray([[1.0, 0.0, -jnp.inf]], jnp.bfloat16), 2, is_normalized=False)
    assert shares.dtype == jnp.float32
    np.testing.assert_allclose(shares[0], [0.7310586, 0.2689414, 0.0], rtol=1e-6)


def test_an_expert_that_was_not_asked_may_overflow():
    x = jnp.asarray(RNG.normal(size=(40, EMBED)), jnp.float32)
    plain = np.asarray(make_moe(num_experts_per_token=1)(x))
    asked = np.asarray(route(x @ jnp.asarray(ROUTER, jnp.float32), 1, is_normalized=True)) > 0
    huge = GATE_UP.copy()
    huge[:, 3] *= 1e30
    out = np.asarray(make_moe(gate_up=huge, num_experts_per_token=1)(x))
    assert asked[:, 3].any() and not np.isfinite(out[asked[:, 3]]).all(), "it does overflow"
    np.testing.assert_array_equal(out[~asked[:, 3]], plain[~asked[:, 3]])


def test_padding_changes_no_other_tokens_result():
    x = RNG.normal(size=(9, EMBED)).astype(np.float32)
    padded = np.concatenate([x, np.full((7, EMBED), np.nan, np.float32)])
    run = jax.jit(make_moe())
    np.testing.assert_allclose(run(jnp.asarray(padded))[:9], run(jnp.asarray(x)), rtol=0, atol=1e-6)


def test_experts_are_cut_over_one_axis_and_their_width_over_another():
    config = replace(CONFIG, vocab_size=16, moe=MoEConfig(num_experts=4, num_experts_per_token=2, expert_size=SIZE))
    mesh = make_mesh({"expert": 2, "tensor": 2})
    state = abstract_model(replace(config, num_heads=4, num_kv_heads=4), jnp.dtype("float32"), mesh, MEGATRON)
    kernels = {name: state.parameters[f"layers.0.mlp.{name}.kernel"] for name in ("router", "gate_up", "down")}
    assert {name: kernel.sharding.spec for name, kernel in kernels.items() if kernel.sharding} == {
        "router": P(None, None),
        "gate_up": P(None, "expert", None, "tensor"),
        "down": P("expert", "tensor", None),
    }


# ---- reading experts ----

WITH_EXPERTS = replace(
    CONFIG, moe=MoEConfig(num_experts=EXPERTS, num_experts_per_token=2, expert_size=SIZE, dense_layers=(1,))
)
GATE, UP, OUT = "w1", "w3", "w2"


def tensor(name: str) -> np.ndarray:
    """Every number of a checkpoint is another one."""
    shapes = {spec.name: spec.shape for source in param_sources(WITH_EXPERTS).values() for spec in source.tensors}
    return np.random.default_rng(list(name.encode())).normal(size=shapes[name])


def expert(number: int, kind: str) -> np.ndarray:
    return tensor(f"model.layers.0.block_sparse_moe.experts.{number}.{kind}.weight")


def test_each_expert_is_put_in_its_place():
    sources = param_sources(WITH_EXPERTS)
    gate_up, down = (
        sources[f"layers.0.mlp.{name}.kernel"].read_block(
            lambda name, index: tensor(name)[index], (slice(None),) * len(shape)
        )
        for name, shape in (("gate_up", GATE_UP.shape), ("down", DOWN.shape))
    )
    assert (gate_up.shape, down.shape) == (GATE_UP.shape, DOWN.shape)
    for number in range(EXPERTS):
        np.testing.assert_array_equal(gate_up[:, number, 0], expert(number, GATE).T)
        np.testing.assert_array_equal(gate_up[:, number, 1], expert(number, UP).T)
        np.testing.assert_array_equal(down[number], expert(number, OUT).T)
    assert sources["layers.1.mlp.gate_up.kernel"].shape == (EMBED, 2, SIZE)
    assert "layers.1.mlp.router.kernel" not in sources


def test_a_device_reads_the_blocks_of_its_own_experts_alone():
    asked: dict[str, Index] = {}

    def watch(name: str, index: Index) -> np.ndarray:
        asked[name.removeprefix("model.layers.0.block_sparse_moe.experts.")] = index
        return tensor(name)[index]

    embed, experts, mlp = slice(0, EMBED), slice(3, 5), slice(2, 6)
    sources = param_sources(WITH_EXPERTS)
    block = sources["layers.0.mlp.gate_up.kernel"].read_block(watch, (embed, experts, slice(0, 2), mlp))
    np.testing.assert_array_equal(block[:, 1, 0], expert(4, GATE).T[:, 2:6])
    sources["layers.0.mlp.down.kernel"].read_block(watch, (experts, mlp, embed))
    ups = {f"{number}.{kind}.weight": (mlp, embed) for number in (3, 4) for kind in (GATE, UP)}
    assert asked == ups | {f"{number}.{OUT}.weight": (embed, mlp) for number in (3, 4)}
    block = sources["layers.0.mlp.gate_up.kernel"].read_block(watch, (slice(0, 2), slice(0, 1), slice(1, 2), mlp))
    np.testing.assert_array_equal(block[:, 0, 0], expert(0, UP).T[:2, 2:6])
