"""`plan`, from its words to what it prints: tables, JSON, pictures, and steps compiled for devices that stand in for GPUs."""

import json
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.cli.main import main
from sarathi_jax.lab import plan_compile

Captured = pytest.CaptureFixture[str]
FALCON = ("plan", "falcon-180b", "--device", "a100-80g", "--topology", "2x4")
CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def run(capsys: Captured, *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(words) == code
    return capsys.readouterr().out


def error_of(capsys: Captured, *words: str) -> str:
    assert main(words) == 2
    return capsys.readouterr().err


def test_f24_is_in_the_table_that_compares_layouts(capsys: Captured) -> None:
    """Acceptance: TP8 over two hosts decodes at least twice as slowly as TP4-PP2."""
    report = json.loads(run(capsys, *FALCON, "--compare", "--json"))
    latency_s = {
        tuple(layout["mesh"].values()): layout["decode"]["latency_s"]
        for layout in report["layouts"]
        if layout["why_not"] is None
    }
    assert latency_s[1, 1, 1, 8] >= 2 * latency_s[1, 2, 1, 4]
    assert report["system"]["name"] == "pairwise-a100"
    assert report["load"] == {"batch_size": 64, "context": 2048, "token_budget": 512}


def test_the_table_has_a_line_a_mesh_and_says_why_others_can_not_be(capsys: Captured) -> None:
    text = run(capsys, *FALCON, "--compare")
    lines = text.splitlines()
    assert lines[0] == "falcon-180b in bfloat16 on 2 hosts of 4 a100-80g, rules megatron"
    (heading,) = (index for index, line in enumerate(lines) if line.startswith("mesh "))
    meshes = [line.split()[0] for line in lines[heading + 1 : heading + 5]]
    assert meshes == ["stage=2,tensor=4", "stage=4,tensor=2", "stage=8", "tensor=8"]
    assert "  data=8: weights 332.6 GiB + temporary" in text
    assert "note: Estimates, not fits to measurements (docs/plan.md): the rates of network." in text


def test_one_mesh_without_compiling(capsys: Captured) -> None:
    text = run(capsys, *FALCON, "--mesh", "stage=2,tensor=4", "--no-compile")
    assert "  of each GPU's 79.3 GiB the engine uses 67.8 GiB: weights 41.8 GiB, temporary" in text
    assert "a token: 2 ticks" in text
    assert "collectives" not in text


def test_a_mesh_that_can_not_be_says_why_and_fails(capsys: Captured) -> None:
    text = run(capsys, *FALCON, "--mesh", "tensor=4", code=1)
    assert "this can't be: weights 83.1 GiB + temporary" in text
    assert "exceed 67.8 GiB" in text


def test_a_picture_is_drawn(capsys: Captured, tmp_path: Path) -> None:
    path = tmp_path / "layouts.png"
    run(capsys, *FALCON, "--compare", "--plot", str(path))
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_picture_needs_matplotlib(capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sarathi_jax.cli.timeline.find_spec", lambda name: None)
    said = error_of(capsys, *FALCON, "--compare", "--plot", str(tmp_path / "layouts.png"))
    assert "pip install 'sarathi-jax[bench]'" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--topology", "2by4"), "--topology must be HOSTSxGPUS, got '2by4': write 2x4"),
        (("--compare", "--mesh", "tensor=8"), "--compare must come without --mesh"),
        (("--device", "v100"), "device must be one of a100-40g, a100-80g, h100, h200, a40, got 'v100'"),
        (("--mesh", "tensor=16"), "mesh tensor=16 must fit on 2 hosts of 4 GPUs, got 16"),
        (("--rules", "mine.yaml"), "rules must be one of megatron"),
        (("--batch-size", "0"), "batch_size must be at least 1, got 0"),
    ],
)
def test_what_can_not_be_planned_is_refused_in_words(capsys: Captured, words: tuple[str, ...], said: str) -> None:
    assert said in error_of(capsys, *FALCON, *words)


def test_a_table_of_ones_own_is_planned(capsys: Captured, tmp_path: Path) -> None:
    """Attention whole on every GPU: its weights are eight times as many, and only the MLP is added up."""
    rules = tmp_path / "mine.toml"
    rules.write_text("heads = []\nkv_heads = []\n")
    words = ("plan", "llama3-8b", "--topology", "1x4", "--mesh", "tensor=4", "--no-compile", "--json")
    (mine,) = json.loads(run(capsys, *words, "--rules", str(rules)))["layouts"]
    (plain,) = json.loads(run(capsys, *words))["layouts"]
    assert mine["memory"]["kv_token_bytes"] == 4 * plain["memory"]["kv_token_bytes"]
    assert mine["decode"]["parts"]["all_reduce_s"] < 0.6 * plain["decode"]["parts"]["all_reduce_s"]


# ---- compiled for devices that stand in ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plan") / "tiny"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    return str(path)


@pytest.fixture
def words(folder: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(plan_compile, "can_describe", lambda: False)
    return [
        "plan",
        folder,
        "--topology",
        "2x2",
        "--mesh",
        "stage=2,tensor=2",
        "--batch-size",
        "8",
        "--token-budget",
        "32",
    ]


def kinds(step: dict[str, Any]) -> dict[tuple[str, ...], int]:
    """Kind and axes -> how many, of messages of activations: a token's 32 numbers or more."""
    found: dict[tuple[str, ...], int] = {}
    for message in step["traffic"]:
        if message["num_bytes"] >= 4 * 32 * 2:
            key = message["kind"], *message["axes"]
            found[key] = found.get(key, 0) + message["count"]
    return found


def test_steps_compiled_for_a_stand_in_tell_their_collectives(capsys: Captured, words: list[str]) -> None:
    """A stage of 2 layers: two all-reduces a layer and the embedding's; what leaves the last stage, and what goes to the next one."""
    report = json.loads(run(capsys, *words, "--json"))
    (layout,) = report["layouts"]
    compiled = layout["compiled"]
    assert compiled["is_described"] is False
    assert "Compiled for the host's CPU, which stands in for a100-80g" in report["notes"][0]
    assert "pip install 'sarathi-jax[aot]'" in report["notes"][0]
    for step in ("decode", "full"):
        found = kinds(compiled[step])
        assert found[("all-reduce", "tensor")] == 2 * 2 + 1
        assert found[("collective-permute", "stage")] == 1
        assert compiled[step]["flop"] > 0
    assert layout["tick_s_as_compiled"] is None


def test_memory_is_the_compiled_programs(capsys: Captured, words: list[str]) -> None:
    """A device has a head of one KV head, half of each layer's products, of 2 layers, of embedding and head; 5 norms are whole."""
    (layout,) = json.loads(run(capsys, *words, "--json"))["layouts"]
    layer = 32 * 8 * 2 * (4 + 2) + 3 * 32 * 64
    assert layout["memory"]["weight_bytes"] == 2 * ((2 * layer + 2 * 256 * 32) // 2 + 5 * 32)
    assert layout["memory"]["kv_token_bytes"] == 2 * 2 * 8 * 2
    text = run(capsys, *words)
    assert "collectives of a step, decodes (decode 4x4 greedy, compiled for a stand-in)" in text
    assert "all-reduce over tensor, within a host" in text
    assert "collective-permute over stage, between hosts" in text
