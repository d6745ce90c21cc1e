"""How long a model's parameters take from the disk into their shards: from safetensors, and from the Orbax checkpoint that `sarathi-jax convert` makes of them.

Regime: a Llama with 537 million random parameters in bfloat16 (1.07 GB), written into a temporary folder and converted there; loaded in bfloat16 onto one CPU
device, and onto four that cut it by the default rules. `warm`: the files are in the operating system's cache. `cold`: they have been dropped from it before each
load (posix_fadvise), so that the disk is a part of it. The ways take turns, `--repeats` rounds of them after one that does not count. `orbax-api` is Orbax's own
restore of the same checkpoint, which gives whole arrays only, for comparison.
Metric: seconds of the clock and of this process' processors, medians; `ratio` is the median over the rounds of safetensors' time over Orbax' in the same round:
above 1, Orbax is faster. Once, all parameters are compared bit by bit.

    python -m benchmarks.restore [--repeats 9] [--layers 9] [--folder DIR] [--output benchmarks/results/restore.json]
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save_file

from benchmarks.machine import machine
from sarathi_jax.checkpoints.convert import convert
from sarathi_jax.checkpoints.loader import load_params
from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.checkpoints.weight_files import ORBAX_NAME
from sarathi_jax.models import param_sources
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import ModelState, abstract_model
from sarathi_jax.sharding.rules import MEGATRON

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}
MESHES = ({}, {"tensor": 4})

type Way = Callable[[], Mapping[str, Any]]


def write_model(folder: Path, num_layers: int) -> None:
    """Random weights, as the safetensors library writes them."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": num_layers}))
    rng = np.random.default_rng(0)
    specs = [spec for source in param_sources(read_model_config(folder)).values() for spec in source.tensors]
    tensors = {spec.name: rng.standard_normal(spec.shape, np.float32).astype(ml_dtypes.bfloat16) for spec in specs}
    save_file(tensors, folder / "model.safetensors")


def ways_of(model: Path, converted: Path, state: ModelState) -> dict[str, Way]:
    def load(folder: Path) -> Way:
        return lambda: load_params(folder, state.config, state.parameters, state.layout)

    def restore() -> Mapping[str, Any]:
        tree: dict[str, Any] = {}
        for path, struct in state.parameters.items():
            *parents, last = path.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = struct
        with ocp.StandardCheckpointer() as checkpointer:
            return jax.block_until_ready(checkpointer.restore(converted / ORBAX_NAME, tree))

    return {"safetensors": load(model), "orbax": load(converted), "orbax-api": restore}


def drop_from_cache(*folders: Path) -> None:
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())  # pages that are not on the disk yet stay in the cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def check_same(ways: Mapping[str, Way]) -> None:
    expected, got = ways["safetensors"](), ways["orbax"]()
    for path, array in expected.items():
        for mine, shard in zip(got[path].addressable_shards, array.addressable_shards, strict=True):
            same = np.array_equal(np.asarray(mine.data).view(np.uint16), np.asarray(shard.data).view(np.uint16))
            assert same and mine.index == shard.index, f"{path} must be the same from either"


def measure(ways: Mapping[str, Way], folders: tuple[Path, Path], repeats: int, *, is_cold: bool) -> dict[str, Any]:
    clock_s: dict[str, list[float]] = {name: [] for name in ways}
    processor_s: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, way in ways.items():
            if is_cold:
                drop_from_cache(*folders)
            start = time.perf_counter(), time.process_time()
            arrays = way()
            taken = time.perf_counter() - start[0], time.process_time() - start[1]
            del arrays
            if round_number:
                clock_s[name].append(taken[0])
                processor_s[name].append(taken[1])
    ratios = [ours / mine for ours, mine in zip(clock_s["safetensors"], clock_s["orbax"], strict=True)]
    seconds = {
        name: {
            "median_s": round(statistics.median(clock_s[name]), 4),
            "min_s": round(min(clock_s[name]), 4),
            "processor_s": round(statistics.median(processor_s[name]), 4),
        }
        for name in ways
    }
    return {**seconds, "ratio": round(statistics.median(ratios), 3)}


def run(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    model, converted = root / "model", root / "converted"
    write_model(model, args.layers)
    start_s = time.perf_counter()
    done = convert(model, converted, progress=True)
    report: dict[str, Any] = {
        "benchmark": "restore",
        **machine("jax", "orbax-checkpoint"),
        "num_bytes": done.num_bytes,
        "repeats": args.repeats,
    }
    report["convert_s"] = round(time.perf_counter() - start_s, 2)
    for shape in MESHES:
        state = abstract_model(read_model_config(model), np.dtype("bfloat16"), make_mesh(shape), MEGATRON)
        ways = ways_of(model, converted, state)
        check_same(ways)
        for kind in ("warm", "cold"):
            name = f"{kind}, tensor={shape.get('tensor', 1)}"
            report[name] = found = measure(ways, (model, converted), args.repeats, is_cold=kind == "cold")
            times = ", ".join(f"{way} {found[way]['median_s']:.2f} s" for way in ways)
            print(f"{name:<16} {times}; safetensors / orbax = {found['ratio']:.2f}", flush=True)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="rounds that count (default: 9)")
    parser.add_argument("--layers", type=int, default=9, help="of the model (default: 9, 1.07 GB)")
    parser.add_argument("--folder", type=Path, help="where to write it (default: the system's temporary folder)")
    parser.add_argument("--output", type=Path, help="also write the JSON there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        text = json.dumps(run(Path(root), args))
    if args.output:
        args.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
