"""`doctor MODEL` over the demo model, and over copies of it that are damaged, each in one way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sarathi_jax.checkpoints.hub import DEMO_FOLDER
from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.cli.doctor_check import Check, attempt, without_paths
from sarathi_jax.cli.doctor_model import check_files
from sarathi_jax.cli.doctor_text import check_text
from sarathi_jax.cli.main import main
from sarathi_jax.models import param_sources

WEIGHTS, NORM = "model.safetensors", "model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_FOLDER, tmp_path / "copy"))


def checks_of(folder: Path) -> dict[str, Check]:
    checks, source = check_files(str(folder))
    if source is not None:
        checks += check_text(folder, source.config.vocab_size)
    return {check.name: check for check in checks}


def edit_json(name: str, **changes: Any) -> Callable[[Path], None]:
    """What sets fields of a file; those that are None are left out."""

    def damage(folder: Path) -> None:
        value = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({key: each for key, each in value.items() if each is not None}))

    return damage


def say_null(field: str, folder: Path) -> None:
    for path in (folder / "config.json", folder / "generation_config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {field: None}))


def edit_weights(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return damage


def split(folder: Path, total_size: int = 0, stray: str = "") -> None:
    """Into two shards with an index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    shards = {name: f"model-{1 + index % 2}.safetensors" for index, name in enumerate(sorted(tensors))}
    for shard in set(shards.values()):
        save_file({name: tensors[name] for name in tensors if shards[name] == shard}, folder / shard)
    num_bytes = total_size or sum(each.nbytes for each in tensors.values())
    index = {"metadata": {"total_size": num_bytes}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if stray:
        shutil.copy(folder / "model-1.safetensors", folder / stray)


def test_the_demo_model_is_whole() -> None:
    checks = checks_of(DEMO_FOLDER)
    assert {check.state for check in checks.values()} == {"ok"}
    assert {"config", "weights", "dtype", "eos", "vocabulary", "tokenizer emoji", "template tools"} <= checks.keys()
    assert checks["eos"].text == "[2, 5]"


def test_a_sharded_folder_is_whole_with_its_index(folder: Path) -> None:
    split(folder)
    assert checks_of(folder)["index"] == Check("index", "ok", "2 shards")


TEMPLATE = "{{ bos_token }}{% for m in messages %}%s{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
DAMAGES: list[Any] = [
    (edit_json("config.json", hidden_size=None), "config", "FAIL", "hidden_size"),
    (lambda folder: (folder / "config.json").write_text("{"), "config", "FAIL", "config.json must be JSON"),
    (edit_json("config.json", architectures=["GPT9"]), "config", "FAIL", "architectures must name one of"),
    (lambda folder: (folder / WEIGHTS).unlink(), "weights", "FAIL", "must hold *.safetensors, got none"),
    (edit_weights(lambda tensors: tensors.pop(NORM)), "weights", "FAIL", "got no model.norm.weight[128]"),
    (
        edit_weights(lambda tensors: tensors.update({NORM: np.ones(64, np.float32)})),
        "weights",
        "FAIL",
        "model.norm.weight[64] in place of [128]",
    ),
    (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100]),
        "weights",
        "FAIL",
        "100 bytes too few (truncated)",
    ),
    (
        edit_weights(lambda tensors: tensors.update({NORM: tensors[NORM].astype(np.float16)})),
        "dtype",
        "warn",
        "got 37 of float32, 1 of float16",
    ),
    (
        edit_json("config.json", torch_dtype="bfloat16"),
        "dtype",
        "warn",
        "should be of config.json's bfloat16, got 38 of",
    ),
    (lambda folder: split(folder, total_size=7), "index", "warn", "total_size should be"),
    (lambda folder: split(folder, stray="old.safetensors"), "index", "warn", "got old.safetensors besides"),
    (
        lambda folder: (split(folder), (folder / "model-2.safetensors").unlink()),
        "weights",
        "FAIL",
        "model-2.safetensors must be in",
    ),
    (
        edit_json("generation_config.json", eos_token_id=2),
        "eos",
        "warn",
        "config.json and generation_config.json should",
    ),
    (edit_json("generation_config.json", eos_token_id=5), "eos", "warn", "the tokenizer's end should be one of those"),
    (edit_json("generation_config.json", eos_token_id=None), "eos", "ok", "[2, 5]"),
    (lambda folder: say_null("eos_token_id", folder), "eos", "warn", "outputs end only at max_tokens"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "vocabulary", "FAIL", "must hold tokenizer.json, got none"),
    (edit_json("tokenizer.json", model={"type": "BPE"}), "vocabulary", "FAIL", "must be a tokenizer"),
    (
        edit_json("tokenizer.json", normalizer={"type": "Lowercase"}),
        "tokenizer plain",
        "warn",
        "should come back from its tokens, got 'the quick",
    ),
    (edit_json("tokenizer_config.json", chat_template=None), "template", "warn", "got none: use its chat variant"),
    (edit_json("tokenizer_config.json", chat_template="{{ x"), "template", "FAIL", "must be valid jinja2"),
    (
        edit_json("tokenizer_config.json", chat_template="{{ ''.__class__.__mro__[1]() }}"),
        "template",
        "FAIL",
        "must not leave its sandbox",
    ),
    (edit_json("tokenizer_config.json", chat_template="hello"), "template", "FAIL", "a message must be in the prompt"),
    (
        edit_json("tokenizer_config.json", chat_template="{{ messages[0].content }}"),
        "template",
        "warn",
        "should end with words that make the model answer",
    ),
    (
        edit_json("tokenizer_config.json", chat_template="{{ bos_token }}" + TEMPLATE.replace("%s", "{{ m.content }}")),
        "template",
        "warn",
        "one BOS, got two",
    ),
    (
        edit_json("tokenizer_config.json", chat_template=TEMPLATE.replace("%s", "{{ m.content }}")),
        "template tools",
        "warn",
        "tools have no effect",
    ),
    (
        edit_json(
            "tokenizer_config.json",
            chat_template=TEMPLATE.replace(
                "%s", "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}"
            ),
        ),
        "template system",
        "warn",
        "leave system out with this model",
    ),
]


@pytest.mark.parametrize(("damage", "name", "state", "text"), DAMAGES)
def test_each_damage_is_named(folder: Path, damage: Callable[[Path], object], name: str, state: str, text: str) -> None:
    damage(folder)
    check = checks_of(folder)[name]
    assert (check.state, text in check.text) == (state, True), check


def test_a_tokenizer_of_another_model_is_named(folder: Path) -> None:
    failed = [check for check in check_text(folder, 511) if check.state == "FAIL"]
    assert [check.name for check in failed] == ["vocabulary"]
    assert "every token must have a logit, got 512 tokens and logits of 511" in failed[0].text


def test_what_no_check_foresaw_is_a_failure_and_no_crash() -> None:
    def crash() -> str:
        raise ZeroDivisionError("by zero")

    assert attempt("x", crash).text == "this check must come to an end, got ZeroDivisionError: by zero: report it."


def test_the_report_names_no_folder_of_the_user(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent.parent))
    (folder / WEIGHTS).unlink()
    assert main(["doctor", str(folder), "--json"]) == 1
    printed = capsys.readouterr().out
    report = json.loads(printed)
    assert any(problem.startswith("weights: MODEL must hold *.safetensors") for problem in report["problems"])
    assert (report["model"], str(folder.parent) in printed) == ("MODEL", False)
    home = without_paths({"a": [f"{folder.parent.parent}/x/y"]}, None)
    assert home == {"a": ["~/x/y"]}


@pytest.fixture
def tiny_folder(tiny_options: list[str], tmp_path: Path) -> Path:
    """The tiny model with weights, so that little is compiled."""
    folder = Path(shutil.copytree(tiny_options[0], tmp_path / "tiny"))
    config = read_model_config(folder)
    shapes = {spec.name: spec.shape for source in param_sources(config).values() for spec in source.tensors}
    rng = np.random.default_rng(0)
    save_file({name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}, folder / WEIGHTS)
    return folder


def test_a_whole_model_runs_and_damaged_weights_do_not(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tiny_folder)]) == 0
    printed = capsys.readouterr().out
    assert "ok   generation" in printed and "'Hello' goes on with tokens [" in printed
    assert "ok   memory" in printed and " pages, " in printed
    assert printed.endswith("nothing stands in the way\n")
    for value, said in (
        (np.nan, "weights must be finite, got NaN or infinity in norm.scale"),
        (3e38, "logits must be numbers"),
    ):
        edit_weights(lambda tensors, value=value: tensors.update({NORM: np.full(16, value, np.float32)}))(tiny_folder)
        assert main(["doctor", str(tiny_folder)]) == 1
        assert f"FAIL generation          {said}" in capsys.readouterr().out
