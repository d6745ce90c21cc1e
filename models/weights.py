"""How a checkpoint's tensors become parameters: any block of a parameter from just the blocks of tensors that it needs.

A device that holds a slice of a fused weight reads that slice alone. Knows nothing of files: reading is a function that is passed in.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sarathi_jax.models.config import ModelConfig

Index = tuple[slice, ...]
ReadTensor = Callable[[str, Index], np.ndarray]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor that a checkpoint must hold."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ParamSource:
    """One parameter: its shape, the tensors it is made of, and how a block of it is put together.

    read_block(read_tensor, index): index has one slice with step 1 for each dimension of `shape`.
    """

    shape: tuple[int, ...]
    tensors: tuple[TensorSpec, ...]
    read_block: Callable[[ReadTensor, Index], np.ndarray]


def direct_source(name: str, shape: tuple[int, ...]) -> ParamSource:
    """A parameter that is a tensor as it stands."""
    return ParamSource(shape, (TensorSpec(name, shape),), lambda read, index: read(name, index))


def transposed_source(name: str, shape: tuple[int, int]) -> ParamSource:
    """[in, out] from a tensor [out, in]."""
    spec = TensorSpec(name, (shape[1], shape[0]))
    return ParamSource(shape, (spec,), lambda read, index: read(name, (index[1], index[0])).T)


def out_source(config: ModelConfig, name: str) -> ParamSource:
    """[H, D, E] from a tensor [E, H * D]."""
    heads, head_dim, embed = config.num_heads, config.head_dim, config.hidden_size

    def read_block(read: ReadTensor, index: Index) -> np.ndarray:
        block = read(name, (index[2], _rows(index[0], heads, head_dim)))  # [e, h * D]
        return block.T.reshape(-1, head_dim, block.shape[0])[:, index[1]]

    return ParamSource((heads, head_dim, embed), (TensorSpec(name, (embed, heads * head_dim)),), read_block)


def qkv_source(config: ModelConfig, prefix: str, kind: str) -> ParamSource:
    """[E, K, G + 2, D] (kind "weight") or [K, G + 2, D] (kind "bias") from q_proj, k_proj and v_proj, [heads * D, E] or [heads * D]."""
    num_kv, group, head_dim = config.num_kv_heads, config.num_queries_per_kv, config.head_dim
    inputs = (config.hidden_size,) if kind == "weight" else ()
    per_kv = {f"{prefix}.{name}_proj.{kind}": count for name, count in (("q", group), ("k", 1), ("v", 1))}
    specs = tuple(TensorSpec(name, (num_kv * count * head_dim, *inputs)) for name, count in per_kv.items())

    def read_block(read: ReadTensor, index: Index) -> np.ndarray:
        *input_index, kv_index, group_index, dim_index = index
        parts = []
        for name, count in per_kv.items():
            block = np.moveaxis(read(name, (_rows(kv_index, num_kv, count * head_dim), *input_index)), 0, -1)
            parts.append(block.reshape(*block.shape[:-1], -1, count, head_dim))  # [e, k, count, D]
        return np.concatenate(parts, axis=-2)[..., group_index, dim_index]

    return ParamSource((*inputs, num_kv, group + 2, head_dim), specs, read_block)


def gate_up_source(config: ModelConfig, prefix: str, kind: str) -> ParamSource:
    """[E, 2, F] (kind "weight") or [2, F] (kind "bias") from gate_proj and up_proj, [F, E] or [F]."""
    mlp, inputs = config.intermediate_size, (config.hidden_size,) if kind == "weight" else ()
    names = tuple(f"{prefix}.{name}_proj.{kind}" for name in ("gate", "up"))

    def read_block(read: ReadTensor, index: Index) -> np.ndarray:
        *input_index, pair_index, mlp_index = index
        blocks = [np.moveaxis(read(name, (mlp_index, *input_index)), 0, -1) for name in names]  # [e, f] each
        return np.stack(blocks, axis=-2)[..., pair_index, :]

    return ParamSource((*inputs, 2, mlp), tuple(TensorSpec(name, (mlp, *inputs)) for name in names), read_block)


def _rows(index: slice, size: int, rows_each: int) -> slice:
    """The rows of a tensor that hold `rows_each` rows for each of `size` items, for a slice of the items."""
    start, stop, _ = index.indices(size)
    return slice(start * rows_each, stop * rows_each)
