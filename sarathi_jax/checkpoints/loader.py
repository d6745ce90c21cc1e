"""Weights onto devices: from a model folder, block by block, each device's shard read alone; or made up at random.

A file is only mapped: what passes through the host's memory at a time is a parameter for each of a few readers. Which
tensors make which parameter is `sarathi_jax.models`' knowledge, and what files they are in `weight_files`'."""

import os
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sarathi_jax.checkpoints.tensor_folder import TensorSource
from sarathi_jax.checkpoints.weight_files import open_weights
from sarathi_jax.errors import ModelError
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.layout import Layout, lay_out
from sarathi_jax.models.weights import Index, ParamSource

DUMMY_STDDEV = 0.02
NORM_SUFFIX = ".scale"
PLAIN = Layout()
# Each one holds one parameter's shards in host memory at a time.
NUM_READERS = min(4, os.cpu_count() or 1)

type Parameters = Mapping[str, jax.ShapeDtypeStruct]


def load_params(
    folder: Path | str,
    config: ModelConfig,
    parameters: Parameters,
    layout: Layout = PLAIN,
    *,
    progress: bool = False,
) -> dict[str, jax.Array]:
    """Read all parameters of a model from its folder.

    Args:
      folder: a model folder, with safetensors weights or converted to Orbax.
      config: its configuration, as the folder says it.
      parameters: path -> shape, dtype and sharding to have; without a sharding it goes to the first device. Values are
        converted to that dtype on the host.
      layout: how `parameters` are laid out.
      progress: show a bar of bytes on standard error.
    Returns: path -> array, in the order of `parameters`.
    Raises: ModelNotFoundError without weights; ModelError if a file is damaged, if the tensors are not those that the
      configuration asks for, or if the dtype can't hold a value."""
    weights = open_weights(folder, config)
    sources = lay_out(config, weights.sources, layout)
    assert sources.keys() == parameters.keys(), "parameters must be those of the configuration's model"
    return read_params(weights.tensors, sources, parameters, progress=progress)


def read_params(
    tensors: TensorSource, sources: Mapping[str, ParamSource], parameters: Parameters, *, progress: bool = False
) -> dict[str, jax.Array]:
    """Read parameters, each device's shard alone.

    Args:
      tensors: holds, in the right shapes, all that `sources` need.
      sources: of all `parameters`.
      parameters, progress: as `load_params` takes them.
    Returns: path -> array, in the order of `parameters`.
    Raises: ModelError if a file is damaged, or if the dtype can't hold a value."""
    arrays: dict[str, jax.Array] = {}
    num_bytes = sum(_num_bytes(struct) for struct in parameters.values())

    def load(path: str) -> jax.Array:
        return _load_param(path, sources[path], parameters[path], tensors).block_until_ready()

    with (
        tqdm(total=num_bytes, desc="weights", unit="B", unit_scale=True, disable=not progress) as bar,
        ThreadPoolExecutor(NUM_READERS, thread_name_prefix="weights") as pool,
    ):
        for path, array in zip(parameters, pool.map(load, parameters), strict=True):
            arrays[path] = array
            bar.update(_num_bytes(parameters[path]))
    return arrays


def dummy_params(parameters: Parameters, seed: int = 0) -> dict[str, jax.Array]:
    """Random weights, made on the devices shard by shard: norms are 1, all else is normal with deviation 0.02.

    Args:
      parameters: as `load_params` takes them.
      seed: a path's values depend on it and on the path alone, not on the sharding.
    Returns: path -> array, in the order of `parameters`."""
    key = jax.random.key(seed)
    return {
        path: _generator(path.endswith(NORM_SUFFIX), struct.shape, struct.dtype, _sharding(struct))(
            jax.random.fold_in(key, zlib.crc32(path.encode()))
        )
        for path, struct in parameters.items()
    }


@lru_cache(maxsize=256)
def _generator(
    is_norm: bool, shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding
) -> Callable[[jax.Array], jax.Array]:
    """One compiled program for all parameters that look alike: models have dozens of layers."""

    def generate(key: jax.Array) -> jax.Array:
        if is_norm:
            return jnp.ones(shape, dtype)
        return jax.random.normal(key, shape, dtype) * jnp.asarray(DUMMY_STDDEV, dtype)

    return jax.jit(generate, out_shardings=sharding)


def _load_param(path: str, source: ParamSource, struct: jax.ShapeDtypeStruct, tensors: TensorSource) -> jax.Array:
    assert struct.shape == source.shape, f"{path} must have shape {source.shape}, got {struct.shape}"
    blocks: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def read_shard(index: Index | None) -> np.ndarray:
        assert index is not None, "every device holds some block"
        bounds = tuple(each.indices(size)[:2] for each, size in zip(index, struct.shape, strict=True))
        if bounds not in blocks:  # several devices may hold the same block
            block = source.read_block(tensors.read, tuple(slice(*each) for each in bounds))
            blocks[bounds] = as_dtype(path, block, np.dtype(struct.dtype))
        return blocks[bounds]

    return jax.make_array_from_callback(struct.shape, _sharding(struct), read_shard, dtype=struct.dtype)


def as_dtype(path: str, block: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """A block of a parameter in another dtype, and in memory of its own, so that no array on a device can be a view of a file.

    A view of a file can't be written to; what can is in memory of its own already. Copies stay in the file's order: most
    blocks are transposed views, which jax's copy to the device turns faster than numpy.

    Raises: ModelError, naming the parameter, if the dtype can't hold one of its values."""
    with np.errstate(over="ignore"):
        converted = np.array(block, dtype=dtype, order="K", copy=None if block.flags.writeable else True)
    has_smaller_range = block.dtype != dtype and jnp.finfo(dtype).maxexp < jnp.finfo(block.dtype).maxexp
    if has_smaller_range and np.isinf(converted).any() and not np.isinf(block).any():
        raise ModelError(
            f"{path} must fit into {dtype}, got values up to {float(np.max(np.abs(block))):g}: load it as bfloat16 or"
            " float32."
        )
    return converted


def _sharding(struct: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
    return struct.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _num_bytes(struct: jax.ShapeDtypeStruct) -> int:
    return struct.size * np.dtype(struct.dtype).itemsize
