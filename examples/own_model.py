"""A decoder of one's own in `generate`: written with flax.nnx alone, trained for a few seconds, saved with Orbax, restored onto devices and generated with.

    python examples/own_model.py [--steps 600]

The model learns to count: 3, 5, 7 goes on with 9, 11, ... modulo 32. What `generate` needs of it is `config`, `hidden_states` and `logits`, which docs/own-model.md
describes; `plain_greedy`, which knows nothing of this package, has to give the same tokens. Needs optax.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

from sarathi_jax import generate, restore
from sarathi_jax.models import ModelConfig
from sarathi_jax.models.attention import Attend
from sarathi_jax.models.rope import RopeAngles

CONFIG = ModelConfig(
    family="own",
    vocab_size=32,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    max_position_embeddings=64,
)
BATCH, LENGTH = 64, 24


def axes(*names: str | None) -> dict[str, Any]:
    """Logical axes of a variable: the rules say over which devices they are cut."""
    return {"out_sharding": names, "eager_sharding": False}


class Block(nnx.Module):
    """Attention, then a small MLP, each on normalized input."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        embed, mlp, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
        heads, num_kv, group = config.num_heads, config.num_kv_heads, config.num_queries_per_kv
        kv_axes = {"kernel_metadata": axes(None, "kv_heads", None, None), "use_bias": False}
        self.attention_norm = nnx.LayerNorm(embed, rngs=rngs)
        self.q = nnx.LinearGeneral(embed, (num_kv, group, head_dim), rngs=rngs, **kv_axes)
        self.kv = nnx.LinearGeneral(embed, (num_kv, 2, head_dim), rngs=rngs, **kv_axes)
        self.out = nnx.LinearGeneral(
            (heads, head_dim), embed, axis=(-2, -1), rngs=rngs, kernel_metadata=axes("heads", None, None)
        )
        self.mlp_norm = nnx.LayerNorm(embed, rngs=rngs)
        self.up = nnx.Linear(embed, mlp, rngs=rngs, kernel_metadata=axes(None, "mlp"), bias_metadata=axes("mlp"))
        self.down = nnx.Linear(mlp, embed, rngs=rngs, kernel_metadata=axes("mlp", None))

    def __call__(self, x: jax.Array, layer_index: int, attend: Attend, angles: RopeAngles) -> jax.Array:
        """x: [T, E]. Returns: [T, E]."""
        h = self.attention_norm(x)
        qkv = jnp.concatenate(
            [self.q(h), self.kv(h)], axis=2
        )  # [T, K, G + 2, D]: of each KV head its queries, its key, its value
        x = x + self.out(attend(layer_index, qkv, angles))
        return x + self.down(nnx.gelu(self.up(self.mlp_norm(x))))


class Counter(nnx.Module):
    """A decoder with learned positions; its head is the embedding."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        embed = config.hidden_size
        self.embedding = nnx.Embed(config.vocab_size, embed, rngs=rngs, embedding_metadata=axes("vocab", None))
        self.places = nnx.Embed(config.max_position_embeddings, embed, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = nnx.LayerNorm(embed, rngs=rngs)

    def hidden_states(
        self, token_ids: jax.Array, positions: jax.Array, attend: Attend, *, max_length: int | None = None
    ) -> jax.Array:
        """token_ids, positions: i32[T], of any sequences. Returns: [T, E]."""
        shape = (token_ids.shape[0], self.config.head_dim // 2)
        angles = RopeAngles(
            jnp.ones(shape), jnp.zeros(shape)
        )  # cos 1, sin 0: positions are added, so nothing is rotated
        x = self.embedding(token_ids) + self.places(positions)
        for index, block in enumerate(self.blocks):
            x = block(x, index, attend, angles)
        return self.norm(x)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """hidden: [R, E]. Returns: f32[R, V]."""
        return self.embedding.attend(hidden)


def plain_logits(model: Counter, token_ids: jax.Array) -> jax.Array:
    """One whole sequence with JAX's own attention: what it is trained with. token_ids: i32[T]. Returns: f32[T, V]."""

    def attend(layer_index: int, qkv: jax.Array, angles: RopeAngles) -> jax.Array:
        queries = qkv[:, :, :-2].reshape(qkv.shape[0], -1, qkv.shape[-1])  # [T, H, D]
        return jax.nn.dot_product_attention(queries, qkv[:, :, -2], qkv[:, :, -1], is_causal=True)

    return model.logits(model.hidden_states(token_ids, jnp.arange(token_ids.shape[0]), attend))


def plain_greedy(model: Counter, prompt: list[int], num_tokens: int) -> list[int]:
    """The whole sequence again for every token. Padding comes after what is looked at."""
    ids = list(prompt)
    forward = jax.jit(plain_logits)
    for _ in range(num_tokens):
        padded = jnp.array(ids + [0] * (CONFIG.max_position_embeddings - len(ids)))
        ids.append(int(forward(model, padded)[len(ids) - 1].argmax()))
    return ids[len(prompt) :]


def train(model: Counter, num_steps: int) -> float:
    """Teach it to count. Returns: the last loss, over the tokens that can be known."""
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model: Counter, optimizer: nnx.Optimizer, ids: jax.Array) -> jax.Array:
        def loss_of(model: Counter) -> jax.Array:
            logits = jax.vmap(lambda row: plain_logits(model, row))(ids[:, :-1])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
            return losses[:, 1:].mean()  # two tokens tell the step

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    rng, loss = np.random.default_rng(0), jnp.inf
    for _ in range(num_steps):
        first, by = rng.integers(0, CONFIG.vocab_size, (2, BATCH, 1))
        loss = step(model, optimizer, jnp.asarray((first + by * np.arange(LENGTH)) % CONFIG.vocab_size, jnp.int32))
    return float(loss)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="of training (default: 600)")
    args = parser.parse_args(arguments)
    model = Counter(CONFIG, rngs=nnx.Rngs(0))
    print(f"loss after {args.steps} steps: {train(model, args.steps):.4f}")
    with tempfile.TemporaryDirectory() as folder:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(Path(folder) / "counter", nnx.state(model))
        restored = restore(Path(folder) / "counter", nnx.eval_shape(lambda: Counter(CONFIG, rngs=nnx.Rngs(0))))
    prompts = [[3, 5, 7], [30, 31, 0, 1], [20, 15]]
    result = generate(restored, [np.array(prompt) for prompt in prompts], 8)
    for prompt, tokens in zip(prompts, np.asarray(result.tokens).tolist(), strict=True):
        assert tokens == plain_greedy(model, prompt, 8), "the same tokens as without this package"
        print(f"{prompt} goes on with {tokens}")


if __name__ == "__main__":
    main()
