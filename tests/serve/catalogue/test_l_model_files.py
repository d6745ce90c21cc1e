"""Group L of the catalogue: model files, as they are when an engine starts. Each row once, from its folder to the error that ends the server.

All values of B-L01 to B-L04 and B-L06 to B-L08, field by field, are in tests/checkpoints; templates (B-L09) in tests/text/test_chat_template.py. The exit code is 2,
as for all that a user can correct.
"""

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sarathi_jax
from sarathi_jax.config import EngineConfig
from sarathi_jax.errors import ModelError
from sarathi_jax.started_engine import StartedEngine

DEMO = Path(sarathi_jax.__file__).parent / "assets" / "demo"
WEIGHTS = "model.safetensors"
# 5 s on a machine of its own. Programs compile beside the loading, and where none is in the cache the one under way is waited for.
LIMIT_S = 60.0
OPTIONS: dict[str, Any] = {"max_num_seqs": 8, "token_budget": 128}

type Damage = Callable[[Path], object]


def written(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def header(value: Any, data: bytes = b"") -> Damage:
    text = json.dumps(value).encode()
    return written(WEIGHTS, struct.pack("<Q", len(text)) + text + data)


def entry(*offsets: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [4], "data_offsets": list(offsets)}


def config(**fields: Any) -> Damage:
    """None leaves a field out."""

    def damage(folder: Path) -> None:
        value = {**json.loads((folder / "config.json").read_text()), **fields}
        kept = {name: each for name, each in value.items() if each is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return damage


def weights(change: Callable[[dict[str, np.ndarray]], object]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return damage


def spoilt(name: str, value: float) -> Callable[[dict[str, np.ndarray]], object]:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] = value

    return spoil


def index(shard: str) -> Damage:
    def damage(folder: Path) -> None:
        names = list(load_file(folder / WEIGHTS))
        (folder / WEIGHTS).rename(folder / "model-1.safetensors")
        weight_map = dict.fromkeys(names, "model-1.safetensors") | {names[0]: shard}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return damage


def linked_out(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(DEMO / WEIGHTS)


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


CASES: list[tuple[str, str, Damage, str]] = [
    ("B-L01", "empty", written(WEIGHTS, b""), "at least 8 bytes, got 0"),
    ("B-L01", "7 bytes", written(WEIGHTS, bytes(7)), "at least 8 bytes, got 7"),
    ("B-L01", "huge header", written(WEIGHTS, struct.pack("<Q", 2**63)), "at most 100000000 bytes"),
    ("B-L01", "header beyond the file", written(WEIGHTS, struct.pack("<Q", 1000)), "must fit into the file"),
    ("B-L01", "no JSON", written(WEIGHTS, struct.pack("<Q", 2) + b"{,"), "JSON"),
    ("B-L01", "no UTF-8", written(WEIGHTS, struct.pack("<Q", 2) + b"\xff\xff"), "UTF-8"),
    ("B-L02", "overlap", header({"a": entry(0, 16), "b": entry(8, 24)}, bytes(24)), "tensor 'b' .*overlap"),
    ("B-L02", "gap", header({"a": entry(0, 16), "b": entry(20, 36)}, bytes(36)), "tensor 'b' .*a gap"),
    ("B-L02", "past the end", header({"a": entry(0, 16)}, bytes(8)), "tensor 'a' .*truncated"),
    ("B-L02", "begin after end", header({"a": entry(16, 0)}, bytes(16)), "tensor 'a'"),
    ("B-L02", "negative", header({"a": entry(-16, 0)}, bytes(16)), "not negative"),
    ("B-L03", "missing shard", index("model-2.safetensors"), "model-2.safetensors must be in"),
    ("B-L03", "shard outside", index("../model-1.safetensors"), "a file in the model's own folder"),
    ("B-L03", "link out", linked_out, "a link out of it"),
    ("B-L04", "missing tensor", weights(lambda all_: all_.pop("model.norm.weight")), r"got no model\.norm\.weight"),
    (
        "B-L04",
        "extra tensor",
        weights(lambda all_: all_.update({"extra": np.ones(1, np.float32)})),
        r"got extra extra\[1\]",
    ),
    (
        "B-L04",
        "wrong shape",
        weights(lambda all_: all_.update({"model.norm.weight": np.ones(3, np.float32)})),
        r"model\.norm\.weight\[3\] in place of",
    ),
    ("B-L05", "NaN", weights(spoilt("model.norm.weight", np.nan)), "must be finite, got NaN or infinity in norm.scale"),
    (
        "B-L05",
        "infinity",
        weights(spoilt("model.embed_tokens.weight", np.inf)),
        "must be finite, got NaN or infinity in embed",
    ),
    ("B-L06", "no config", lambda folder: (folder / "config.json").unlink(), "config.json must be there"),
    ("B-L06", "bad JSON", written("config.json", b"{"), "config.json must be JSON"),
    ("B-L06", "no heads", config(num_attention_heads=0), "num_attention_heads"),
    ("B-L06", "kv heads", config(num_key_value_heads=3), "num_key_value_heads=3"),
    ("B-L06", "no vocabulary", config(vocab_size=0), "vocab_size"),
    ("B-L06", "negative layers", config(num_hidden_layers=-1), "num_hidden_layers"),
    ("B-L06", "rope", config(rope_theta=float("nan")), "rope_theta"),
    ("B-L08", "pickles", pickled, "safetensors only, got pytorch_model.bin"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_model_is_not_started(folder: Path, case: Any) -> None:
    """In time, and with one line that says what is wrong."""
    case[2](folder)
    start_s = time.perf_counter()
    with pytest.raises(ModelError, match=case[3]) as caught:
        StartedEngine(EngineConfig(model=str(folder), **OPTIONS), progress=False, found=lambda _: None)
    assert time.perf_counter() - start_s < LIMIT_S
    assert "\n" not in str(caught.value)


def test_code_of_a_model_is_left_alone(folder: Path) -> None:
    """B-L07: it is named in config.json, lies in the folder, and is neither needed nor run."""
    mark = folder.parent / "was-run"
    (folder / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w').close()")
    config(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}, vocab_size=0)(folder)
    with pytest.raises(ModelError, match="vocab_size"):
        StartedEngine(EngineConfig(model=str(folder), **OPTIONS), progress=False, found=lambda _: None)
    assert not mark.exists()


BAD_TEMPLATES: list[tuple[str, str]] = [
    ("B-L09", "{{ ''.__class__.__mro__ }}"),
    ("B-L09", "{% for a in range(10**9) %}{% endfor %}"),
    ("B-L09", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
    ("B-L09", "{% if 1 %}" * 50_000),
    ("B-L09", "{{ 'x' * 100000000 }}"),
    ("B-L09", "{% for"),
]


@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_a_bad_template_costs_its_chats_alone(
    serving: Any, ask: Any, judge: Any, well: Any, tmp_path: Path, case: Any
) -> None:
    """The server starts, chats are refused in time, and everything else is served."""
    shutil.copytree(DEMO, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "m" / "chat_template.jinja").write_text(case[1])
    server = serving(engine={"folder": str(tmp_path / "m")})
    start_s = time.perf_counter()
    judge(ask(server, "/v1/chat/completions", {}), "400 invalid_value messages")
    assert time.perf_counter() - start_s < LIMIT_S
    well(server)
