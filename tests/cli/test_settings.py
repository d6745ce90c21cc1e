"""Options of `serve` from a file, the environment and the command line, and flags as vLLM has them. Oracles: pyyaml and tomllib, and the table of who comes first."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from sarathi_jax.cli import serve
from sarathi_jax.cli.main import main
from sarathi_jax.cli.options import Parser, UsageError
from sarathi_jax.cli.settings import field_kinds, read_environment, read_file
from sarathi_jax.cli.vllm_flags import AXES, RENAMED, translate
from sarathi_jax.config import EngineConfig
from sarathi_jax.errors import ConfigError
from sarathi_jax.serve.config import ServeConfig

CONFIGS = (ServeConfig, EngineConfig)


@pytest.fixture
def effective(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """What `serve WORDS --print-config` prints, read by pyyaml."""

    def read(words: str = "", environ: Mapping[str, str] = {}) -> dict[str, Any]:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert main(["serve", *words.split(), "--print-config"]) == 0, capsys.readouterr().err
        return yaml.safe_load(capsys.readouterr().out)

    return read


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_who_comes_first(effective: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "port: 1\nhost: file\ntoken-budget: 1000\nmax_num_seqs: 4\nmodel: filed\n")
    environ = {"SARATHI_JAX_PORT": "2", "SARATHI_JAX_TOKEN_BUDGET": "2000", "SARATHI_JAX_MODEL": "environed"}
    said = effective(f"worded --config {file} --port 3", environ)
    assert (said["port"], said["token_budget"], said["host"], said["max_num_seqs"]) == (3, 2000, "file", 4)
    assert said["max_body_bytes"] == ServeConfig().max_body_bytes
    assert said["model"] == "worded"
    assert effective(f"--config {file}")["model"] == "environed"


def test_what_is_printed_can_be_read_back(effective: Any, tmp_path: Path) -> None:
    words = "m --served-model-name a --served-model-name b,c --mesh tensor=2 --no-overlap --log-stats-s 2.5 --tbt-slo-ms 50 --policy slo"
    said = effective(f"{words} --api-key hush")
    assert said["served_model_name"] == ["a", "b,c"]
    assert "api_key" not in said
    assert set(said) == {field.name for config in CONFIGS for field in fields(config)} - {"api_key"}
    file = write(tmp_path / "a.yaml", yaml.safe_dump(said))
    assert effective(f"--config {file}") == said


def test_keys_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--api-key", "hush", "--print-config"]) == 0
    printed = capsys.readouterr()
    assert "hush" not in printed.out + printed.err


def test_toml_says_the_same(effective: Any, tmp_path: Path) -> None:
    text = 'port = 7\noverlap = false\nserved-model-name = ["a"]\nmemory_fraction = 0.5\n[rules]\nmlp = "tensor"\n'
    said = effective(f"--config {write(tmp_path / 'a.toml', text)}")
    for key, value in tomllib.loads(text).items():
        assert said[key.replace("-", "_")] == value


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("a.yaml", "tokn-budget: 5", "unknown key 'tokn-budget': did you mean token_budget?"),
        ("a.yaml", "max-num-batched-tokens: 5", "unknown key 'max-num-batched-tokens': did you mean token_budget?"),
        ("a.yaml", "zzz: 5", "unknown key 'zzz': leave it out."),
        ("a.yaml", "port: many", "port must be a whole number, got 'many'"),
        ("a.yaml", "port: true", "port must be a whole number, got True"),
        ("a.yaml", "overlap: 1", "overlap must be true or false, got 1"),
        ("a.yaml", "api_key: 123", "api_key must be text, got 123"),
        ("a.yaml", "port: 70000", "port must be between 0 and 65535, got 70000"),
        ("a.yaml", "log_format: xml", "log_format must be one of text, json, got 'xml'"),
        ("a.yaml", "- port", "must have a key and a value on each line, got list"),
        ("a.yaml", "port: [", "must be YAML"),
        ("a.toml", "port: 3", "must be TOML"),
        ("a.yaml", "policy: nothing", "policy"),
    ],
)
def test_a_wrong_file_is_one_clear_line(
    name: str, text: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / name, text)
    code = main(["serve", "--config", str(file), "--print-config"])
    printed = capsys.readouterr()
    if error == "policy":  # the engine knows its policies, and says so when it starts
        assert code == 0
        return
    assert code == 2
    assert error in printed.err
    assert printed.err.count("\n") == 1


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--config", "nowhere.yaml"]) == 2
    assert "--config must name a readable text file, got nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({"SARATHI_JAX_PREFIX_CACHING": "off"}, {"prefix_caching": False}),
        ({"SARATHI_JAX_FAIR_CLIENTS": "True"}, {"fair_clients": True}),
        ({"SARATHI_JAX_SERVED_MODEL_NAME": "a, b"}, {"served_model_name": ["a", "b"]}),
        ({"SARATHI_JAX_MEMORY_FRACTION": "0.5", "SARATHI_JAX_PORT": ""}, {"memory_fraction": 0.5}),
        ({"SARATHI_JAX_PORT": "tcp://10.0.0.1:80", "SARATHI_JAX_SERVICE_HOST": "10.0.0.1"}, {}),
        ({"SARATHI_JAX_API_KEY": "hush", "SARATHI_JAX_GROUP_KEY_FILE": "key", "PORT": "5", "HOME": "x"}, {}),
    ],
)
def test_variables(variables: dict[str, str], found: dict[str, Any]) -> None:
    assert read_environment(variables, field_kinds(CONFIGS)) == found


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"SARATHI_JAX_PORT": "many"}, "SARATHI_JAX_PORT must be a whole number, got 'many'"),
        ({"SARATHI_JAX_OVERLAP": "maybe"}, "SARATHI_JAX_OVERLAP must be true or false, got 'maybe'"),
        ({"SARATHI_JAX_TOKN_BUDGET": "5"}, "did you mean SARATHI_JAX_TOKEN_BUDGET?"),
    ],
)
def test_wrong_variables(variables: dict[str, str], error: str) -> None:
    with pytest.raises(ConfigError, match=error.replace("?", r"\?")):
        read_environment(variables, field_kinds(CONFIGS))


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("--max-num-batched-tokens 700 --block-size=32", {"token_budget": 700, "page_size": 32}),
        ("--gpu-memory-utilization 0.8 --num-gpu-blocks-override 64", {"memory_fraction": 0.8, "num_pages": 64}),
        ("--no-enable-prefix-caching --max-num-queued-reqs 9", {"prefix_caching": False, "max_queued_requests": 9}),
        ("--enable-prefix-caching --shutdown-timeout 5", {"prefix_caching": True, "drain_timeout_s": 5.0}),
        ("-tp 4 --pipeline-parallel-size=2 -dp 1", {"mesh": "stage=2,tensor=4"}),
        ("--tensor-parallel-size 1", {"mesh": None}),
        ("--enable-chunked-prefill --scheduling-policy fcfs m", {"model": "m"}),
        ("--scheduling-policy=priority m", {"model": "m"}),
        ("--disable-log-stats --disable-uvicorn-access-log", {"log_stats_s": 0.0, "access_log": False}),
        ("--kv-cache-dtype int8", {"kv_dtype": "int8"}),
    ],
)
def test_flags_of_vllms(words: str, fields: dict[str, Any], effective: Any) -> None:
    said = effective(words)
    assert {name: said[name] for name in fields} == fields


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--no-enable-chunked-prefill", "prompts are always read in chunks"),
        ("--enable-chunked-prefill=false", "--enable-chunked-prefill can only be true here, got false"),
        ("--scheduling-policy lifo", "can only be fcfs or priority here, got lifo"),
        ("-tp 2 --mesh tensor=2", "Sizes per axis are --mesh tensor=2 here, got --mesh besides"),
        ("--tensor-parallel-size", "must be followed by a number of devices"),
        ("--enforce-eager", "steps are always compiled"),
    ],
)
def test_flags_of_vllms_that_mean_nothing_here(words: str, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        translate(words.split())


def test_an_error_in_such_a_flag_names_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--kv-cache-dtype", "fp8"]) == 2
    assert "--kv-dtype: invalid choice: 'fp8'" in capsys.readouterr().err
    assert main(["serve", "-tp", "many"]) == 2
    assert "mesh must be axis=number" in capsys.readouterr().err


def test_every_flag_that_stands_for_another_has_one() -> None:
    parser = Parser(prog="serve")
    serve.add_arguments(parser)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert {flag.split("=")[0] for flag in RENAMED.values()} <= flags
    assert not flags & set(RENAMED)


def test_help_by_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) < 50
    names = {field.name.replace("_", "-") for config in CONFIGS for field in fields(config)}
    assert names - {"model"} <= set(short.split())
    assert main(["serve", "--help", "log"]) == main(["serve", "--help=log"]) == 0
    assert capsys.readouterr().out.count("--log-format") == 2
    assert main(["serve", "--help", "all"]) == 0
    assert all(f"--{name}" in capsys.readouterr().out for name in ["token-budget"])
    assert main(["serve", "--help", "limit"]) == 2
    assert "unknown section limit: did you mean limits? There are engine, server" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--help", "serve --help"])
def test_help_is_quick(words: str) -> None:
    """In processor time: machines may be busy."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "sarathi_jax.cli.main", *words.split()], capture_output=True, check=True)
    after = os.times()
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 0.3


def test_the_documentation_is_right(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "operations.md").read_text()
    example = next(block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "served-model-name" in block)
    found = read_file(write(tmp_path / "a.yaml", example), field_kinds(CONFIGS))
    assert found["token_budget"] == 1024
    parser = Parser(prog="serve")
    serve.add_arguments(parser)
    known = {flag for action in parser._actions for flag in action.option_strings} | {*RENAMED, *AXES}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known
