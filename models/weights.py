"""How a checkpoint's tensors become parameters: any block of a parameter from just the blocks of tensors that it needs.

A device that holds a slice of a fused weight reads that slice alone. Knows nothing of files: reading is a function that is passed in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


class Rows(NamedTuple):
    """Rows of a tensor that hold, from row `start` on, so many `heads` for each KV head. is_rotated: they are queries or keys, which positions turn."""

    tensor: str
    start: int
    heads: int
    is_rotated: bool = True


def direct_source(name: str, shape: tuple[int, ...]) -> ParamSource:
    """A parameter that is a tensor as it stands."""
    return ParamSource(shape, (TensorSpec(name, shape),), lambda read, index: read(name, index))


def prefixed_source(prefix: str, source: ParamSource) -> ParamSource:
    """The same parameter from tensors whose names begin with `prefix`."""

    def read_block(read: ReadTensor, index: Index) -> np.ndarray:
        return source.read_block(lambda name, block: read(prefix + name, block), index)

    specs = tuple(TensorSpec(prefix + spec.name, spec.shape) for spec in source.tensors)
    return ParamSource(source.shape, specs, read_block)


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
    group, inputs = config.num_queries_per_kv, _inputs(config, kind)
    q, k, v = (f"{prefix}.{name}_proj.{kind}" for name in "qkv")
    parts = Rows(q, 0, group), Rows(k, 0, 1), Rows(v, 0, 1, is_rotated=False)
    rows_each = config.num_kv_heads * config.head_dim
    return _qkv_source(config, parts, [TensorSpec(each.tensor, (each.heads * rows_each, *inputs)) for each in parts])


def joined_qkv_source(config: ModelConfig, name: str, kind: str) -> ParamSource:
    """The same from one tensor, [(H + 2 K) * D, E] or [(H + 2 K) * D]: all queries, then all keys, then all values."""
    heads, num_kv, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    parts = (
        Rows(name, 0, config.num_queries_per_kv),
        Rows(name, heads * head_dim, 1),
        Rows(name, (heads + num_kv) * head_dim, 1, is_rotated=False),
    )
    return _qkv_source(config, parts, [TensorSpec(name, ((heads + 2 * num_kv) * head_dim, *_inputs(config, kind)))])


def _qkv_source(config: ModelConfig, parts: Sequence[Rows], specs: Sequence[TensorSpec]) -> ParamSource:
    num_kv, group, head_dim, inputs = (
        config.num_kv_heads,
        config.num_queries_per_kv,
        config.head_dim,
        specs[0].shape[1:],
    )
    order = _rotary_order(config)

    def read_block(read: ReadTensor, index: Index) -> np.ndarray:
        *input_index, kv_index, group_index, dim_index = index
        blocks = []
        for part in parts:
            rows = _rows(kv_index, num_kv, part.heads * head_dim, part.start)
            block = np.moveaxis(read(part.tensor, (rows, *input_index)), 0, -1)
            block = block.reshape(*block.shape[:-1], -1, part.heads, head_dim)  # [e, k, heads, D]
            blocks.append(block[..., order] if part.is_rotated and order is not None else block)
        return np.concatenate(blocks, axis=-2)[..., group_index, dim_index]

    return ParamSource((*inputs, num_kv, group + 2, head_dim), tuple(specs), read_block)


def _rotary_order(config: ModelConfig) -> np.ndarray | None:
    """Where the elements of a partly rotated head come from, so that rotated pairs are the first ones of pairs D / 2 apart; None: they stay.

    A checkpoint has the R rotated elements first, paired R / 2 apart, and then those that stay as they are. Queries and keys are in one order, which
    leaves their products alone.
    """
    head_dim, rotary_dim = config.head_dim, config.rotary_dim
    if rotary_dim is None or rotary_dim == head_dim:
        return None
    first, second = np.split(np.arange(rotary_dim), 2)
    first_still, second_still = np.split(np.arange(rotary_dim, head_dim), 2)
    return np.concatenate([first, first_still, second, second_still])


def fused_qkv_source(config: ModelConfig, name: str, kind: str) -> ParamSource:
    """[E, K, G + 2, D] (kind "weight") or [K, G + 2, D] (kind "bias") from a tensor [K * (G + 2) * D, E] or [K * (G + 2) * D] in that order."""
    num_kv, width, head_dim = config.num_kv_heads, config.num_queries_per_kv + 2, config.head_dim
    inputs = (config.hidden_size,) if kind == "weight" else ()

    def read_block(read: ReadTensor, index: Index) -> np.ndarray:
        *input_index, kv_index, group_index, dim_index = index
        block = np.moveaxis(read(name, (_rows(kv_index, num_kv, width * head_dim), *input_index)), 0, -1)
        return block.reshape(*block.shape[:-1], -1, width, head_dim)[..., group_index, dim_index]

    spec = TensorSpec(name, (num_kv * width * head_dim, *inputs))
    return ParamSource((*inputs, num_kv, width, head_dim), (spec,), read_block)


def gate_up_source(config: ModelConfig, prefix: str, kind: str) -> ParamSource:
    """[E, 2, F] (kind "weight") or [2, F] (kind "bias") from gate_proj and up_proj, [F, E] or [F]."""
    gate, up = (f"{prefix}.{name}_proj.{kind}" for name in ("gate", "up"))
    shape = (config.intermediate_size, *_inputs(config, kind))
    return _gate_up_source(config, (gate, up), (0, 0), [TensorSpec(gate, shape), TensorSpec(up, shape)])


def joined_gate_up_source(config: ModelConfig, name: str, kind: str) -> ParamSource:
    """The same from one tensor, [2 * F, E] or [2 * F]: all of the gate, then all of the other."""
    mlp = config.intermediate_size
    return _gate_up_source(config, (name, name), (0, mlp), [TensorSpec(name, (2 * mlp, *_inputs(config, kind)))])


def _gate_up_source(
    config: ModelConfig, names: tuple[str, str], starts: tuple[int, int], specs: Sequence[TensorSpec]
) -> ParamSource:
    mlp, inputs = config.intermediate_size, specs[0].shape[1:]

    def read_block(read: ReadTensor, index: Index) -> np.ndarray:
        *input_index, pair_index, mlp_index = index
        rows = (_rows(mlp_index, mlp, 1, start) for start in starts)
        blocks = [np.moveaxis(read(name, (each, *input_index)), 0, -1) for name, each in zip(names, rows, strict=True)]
        return np.stack(blocks, axis=-2)[..., pair_index, :]  # of [e, f] each

    return ParamSource((*inputs, 2, mlp), tuple(specs), read_block)


def _inputs(config: ModelConfig, kind: str) -> tuple[int, ...]:
    """The inputs of a weight, which a bias has not."""
    return (config.hidden_size,) if kind == "weight" else ()


def _rows(index: slice, size: int, rows_each: int, first_row: int = 0) -> slice:
    """The rows of a tensor that hold, from `first_row` on, `rows_each` rows for each of `size` items, for a slice of the items."""
    start, stop, _ = index.indices(size)
    return slice(first_row + start * rows_each, first_row + stop * rows_each)
