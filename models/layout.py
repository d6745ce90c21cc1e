"""How a model's parameters are laid out for a mesh: KV heads repeated where there are fewer than devices, layers stacked over the stages of a pipeline.

Either is done while parameters are read: a laid out parameter is a `ParamSource` over the ones that it is made of. Knows nothing of meshes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sarathi_jax.errors import ConfigError
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.weights import Index, ParamSource, ReadTensor

LAYERS = "layers."
_QKV_SUFFIXES = (".qkv.kernel", ".qkv.bias")


@dataclass(frozen=True, slots=True)
class Layout:
    """num_stages: of the pipeline. kv_repeats: how many devices share a KV head, each with its part of the head's queries."""

    num_stages: int = 1
    kv_repeats: int = 1

    def repeated(self, config: ModelConfig) -> ModelConfig:
        """The model as attention sees it: K * kv_repeats KV heads."""
        return replace(config, num_kv_heads=config.num_kv_heads * self.kv_repeats)

    def stage(self, config: ModelConfig) -> ModelConfig:
        """The model that each stage runs: a share of the layers. Raises: ConfigError if the stages can't be alike, as one program for all must have them."""
        if self.num_stages == 1:
            return config
        num_layers, left = divmod(config.num_layers, self.num_stages)
        if left:
            raise ConfigError(
                f"The model's {config.num_layers} layers must be a multiple of the mesh's stage={self.num_stages}: choose a mesh that divides them."
            )
        for index in range(config.num_layers):
            first = index % num_layers
            if _kind(config, index) != _kind(config, first):
                raise ConfigError(
                    f"Stages must be alike, got layer {index} of {config.num_layers} unlike layer {first} (its window, its rotary embedding or its experts) with"
                    f" stage={self.num_stages}: choose fewer stages, or cut layers over tensor."
                )
        moe = config.moe and replace(config.moe, dense_layers=_below(config.moe.dense_layers, num_layers))
        windows = None if config.window_layers is None else _below(config.window_layers, num_layers)
        return replace(config, num_layers=num_layers, window_layers=windows, moe=moe)


def lay_out(config: ModelConfig, sources: Mapping[str, ParamSource], layout: Layout) -> dict[str, ParamSource]:
    """Parameter path -> how it is read in this layout, from the sources of all layers. Layer j of the result is the j-th of each stage."""
    if layout.kv_repeats > 1:
        sources = {
            path: _repeated_kv(config, source, layout.kv_repeats) if path.endswith(_QKV_SUFFIXES) else source
            for path, source in sources.items()
        }
    if layout.num_stages == 1:
        return dict(sources)
    num_layers = config.num_layers // layout.num_stages
    laid_out: dict[str, ParamSource] = {}
    for path, source in sources.items():
        if not path.startswith(LAYERS):
            laid_out[path] = source
            continue
        index, _, rest = path.removeprefix(LAYERS).partition(".")
        if int(index) < num_layers:
            each = [f"{LAYERS}{int(index) + stage * num_layers}.{rest}" for stage in range(layout.num_stages)]
            laid_out[path] = _stacked([sources[name] for name in each])
    return laid_out


def _kind(config: ModelConfig, index: int) -> tuple[object, ...]:
    return config.window(index), config.layer_rope(index), config.is_moe_layer(index)


def _below(layers: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    return tuple(index for index in layers if index < num_layers)


def _stacked(sources: list[ParamSource]) -> ParamSource:
    """[stages, ...] from as many parameters of one shape."""

    def read_block(read: ReadTensor, index: Index) -> np.ndarray:
        return np.stack([source.read_block(read, index[1:]) for source in sources[index[0]]])

    tensors = tuple(spec for source in sources for spec in source.tensors)
    return ParamSource((len(sources), *sources[0].shape), tensors, read_block)


def _repeated_kv(config: ModelConfig, source: ParamSource, repeats: int) -> ParamSource:
    """[..., K * r, G / r + 2, D] from [..., K, G + 2, D]: a KV head's queries are dealt out to r groups, each with the head's key and value."""
    *inputs, num_kv, group, head_dim = source.shape
    queries = (group - 2) // repeats

    def read_block(read: ReadTensor, index: Index) -> np.ndarray:
        *input_index, kv_index, group_index, dim_index = index
        blocks = []
        for place in range(*kv_index.indices(num_kv * repeats)):
            head, part = divmod(place, repeats)
            whole = source.read_block(read, (*input_index, slice(head, head + 1), slice(0, group), dim_index))
            mine = [whole[..., part * queries : (part + 1) * queries, :], whole[..., group - 2 :, :]]
            blocks.append(np.concatenate(mine, axis=-2))
        return np.concatenate(blocks, axis=-3)[..., group_index, :]

    assert num_kv == config.num_kv_heads, "sources are of the model as it is"
    return ParamSource((*inputs, num_kv * repeats, queries + 2, head_dim), source.tensors, read_block)
