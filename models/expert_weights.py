"""How a checkpoint's experts, each in tensors of its own, become the parameters of `MoE`. A device that holds a few experts reads no others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.weights import Index, ParamSource, ReadTensor, TensorSpec, transposed_source


class ExpertNames(NamedTuple):
    """What a family calls a layer's mixture, and the weights of an expert in it."""

    mixture: str
    gate: str
    up: str
    down: str


def moe_sources(config: ModelConfig, names: ExpertNames) -> dict[str, ParamSource]:
    """The parameters of all mixtures of experts, by their paths."""
    sources: dict[str, ParamSource] = {}
    for index in range(config.num_layers):
        if config.moe is not None and config.is_moe_layer(index):
            embed, experts, size = config.hidden_size, config.moe.num_experts, config.moe.expert_size
            path, mixture = f"layers.{index}.mlp", f"model.layers.{index}.{names.mixture}"
            gates, ups, downs = (
                [f"{mixture}.experts.{expert}.{name}.weight" for expert in range(experts)] for name in names[1:]
            )
            sources[f"{path}.router.kernel"] = transposed_source(f"{mixture}.gate.weight", (embed, experts))
            sources[f"{path}.gate_up.kernel"] = _gate_up_source(gates, ups, embed, size)
            sources[f"{path}.down.kernel"] = _down_source(downs, embed, size)
    return sources


def _gate_up_source(gates: Sequence[str], ups: Sequence[str], embed: int, size: int) -> ParamSource:
    """[E, X, 2, F] from two tensors of each expert, [F, E]."""
    pairs = list(zip(gates, ups, strict=True))

    def read_block(read: ReadTensor, index: Index) -> np.ndarray:
        embed_index, expert_index, pair_index, mlp_index = index
        blocks = [[read(name, (mlp_index, embed_index)).T for name in pair[pair_index]] for pair in pairs[expert_index]]
        return np.stack([np.stack(pair, axis=1) for pair in blocks], axis=1)  # of [e, f] each

    specs = tuple(TensorSpec(name, (size, embed)) for pair in pairs for name in pair)
    return ParamSource((embed, len(pairs), 2, size), specs, read_block)


def _down_source(names: Sequence[str], embed: int, size: int) -> ParamSource:
    """[X, F, E] from a tensor of each expert, [E, F]."""

    def read_block(read: ReadTensor, index: Index) -> np.ndarray:
        expert_index, mlp_index, embed_index = index
        return np.stack([read(name, (embed_index, mlp_index)).T for name in names[expert_index]])

    specs = tuple(TensorSpec(name, (embed, size)) for name in names)
    return ParamSource((len(names), size, embed), specs, read_block)
