"""Whether a model's folder is whole, as `doctor` says it: configuration, weights by their headers, index, dtypes, and ends of sequence. No weights are read."""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from sarathi_jax.checkpoints.json_file import read_json_object
from sarathi_jax.checkpoints.model_config import CONFIG_NAME, GENERATION_CONFIG_NAME
from sarathi_jax.checkpoints.model_source import ModelSource, find_model
from sarathi_jax.checkpoints.tensor_folder import INDEX_NAME, TensorSource
from sarathi_jax.checkpoints.weight_files import open_weights, weight_paths
from sarathi_jax.cli.doctor_check import FAIL, OK, WARN, Check, attempt
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.text.tokenizer import Tokenizer


def check_files(name: str) -> tuple[list[Check], ModelSource | None]:
    """The checks, and the model if its configuration can be read."""
    found: list[ModelSource] = []

    def find() -> str:
        found.append(find_model(name))
        config = found[0].config
        kind = f"{config.num_layers} layers of {config.hidden_size}, {config.num_heads} heads, {config.num_kv_heads} KV heads"
        return f"{kind}, {config.max_position_embeddings} positions, {config.vocab_size} tokens"

    checks = [attempt("config", find)]
    if not found or found[0].folder is None:
        return checks, None
    folder, config = found[0].folder, found[0].config
    opened: list[TensorSource] = []
    checks.append(attempt("weights", lambda: open_all(folder, config, opened)))
    if opened:
        checks.append(attempt("dtype", lambda: check_dtypes(opened[0], config)))
        if (folder / INDEX_NAME).is_file():
            checks.append(attempt("index", lambda: check_index(folder, opened[0])))
    checks.append(attempt("eos", lambda: check_ends(folder, config)))
    return checks, found[0]


def open_all(folder: Path, config: ModelConfig, opened: list[TensorSource]) -> str:
    """Raises: ModelError if names or shapes are not the configuration's."""
    opened.append(open_weights(folder, config).tensors)
    num_bytes = sum(path.stat().st_size for path in weight_paths(folder))
    return f"{len(opened[0].entries)} tensors as the configuration has them, {num_bytes / 2**20:.1f} MiB in {len(weight_paths(folder))} files"


def check_dtypes(tensors: TensorSource, config: ModelConfig) -> Check:
    counts = Counter(entry.dtype.name for entry in tensors.entries.values())
    text = ", ".join(f"{count} of {name}" for name, count in counts.most_common())
    if set(counts) == {config.dtype}:
        return Check("dtype", OK, config.dtype)
    return Check(
        "dtype",
        WARN,
        f"weights should be of config.json's {config.dtype}, got {text}: they are converted as they are loaded; correct torch_dtype if it is wrong.",
    )


def check_index(folder: Path, tensors: TensorSource) -> Check:
    """What the index says beside what `open_weights` has held it against."""
    index = read_json_object(folder / INDEX_NAME)
    shards = set(index["weight_map"].values())
    strays = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in shards)
    if strays:
        text = (
            f"every shard should be in the index, got {', '.join(strays[:3])} besides: they are not read; remove them."
        )
        return Check("index", WARN, text)
    metadata = index.get("metadata")
    said = metadata.get("total_size") if isinstance(metadata, dict) else None
    num_bytes = sum(entry.dtype.itemsize * prod(entry.shape) for entry in tensors.entries.values())
    if said is not None and said != num_bytes:
        return Check("index", WARN, f"its total_size should be {num_bytes}, got {said}: fetch the index again.")
    return Check("index", OK, f"{len(shards)} shards")


def check_ends(folder: Path, config: ModelConfig) -> Check:
    """Whether the three places that name the end of an output agree."""
    named = {name: _end_ids(folder / name) for name in (CONFIG_NAME, GENERATION_CONFIG_NAME)}
    tokenizer = Tokenizer.from_folder(folder)
    by_tokenizer = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    said = "; ".join(f"{name} {ids or 'none'}" for name, ids in {**named, "tokenizer": by_tokenizer}.items())
    used = sorted(config.eos_token_ids)
    if not used:
        text = f"an end of sequence should be named, got {said}: outputs end only at max_tokens; add eos_token_id to config.json."
        return Check("eos", WARN, text)
    if strangers := [each for each in used if not tokenizer.decode([each], skip_special_tokens=False)]:
        return Check(
            "eos", FAIL, f"an end of sequence must be a token, got {strangers} ({said}): correct eos_token_id."
        )
    if set(by_tokenizer) - set(used):
        text = f"the tokenizer's end should be one of those that end outputs, {used}, got {said}: add it to {GENERATION_CONFIG_NAME} if the model ends by it."
        return Check("eos", WARN, text)
    differ = all(named.values()) and set(named[CONFIG_NAME]) != set(named[GENERATION_CONFIG_NAME])
    if differ:
        text = (
            f"{CONFIG_NAME} and {GENERATION_CONFIG_NAME} should agree, got {said}: {used} are used; correct the other."
        )
        return Check("eos", WARN, text)
    return Check("eos", OK, f"{used}")


def _end_ids(path: Path) -> list[Any]:
    value = read_json_object(path).get("eos_token_id") if path.is_file() else None
    return [] if value is None else sorted(value) if isinstance(value, list) else [value]
