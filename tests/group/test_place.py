"""A process's place from options, from Slurm and from Kubernetes; the group's key; and the words that start other processes."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.cli.model_options import add_model_arguments, engine_config
from sarathi_jax.cli.options import Parser
from sarathi_jax.config import EngineConfig
from sarathi_jax.errors import ConfigError, GroupError
from sarathi_jax.group.key import read_key
from sarathi_jax.group.launch import Launched, flags, gpu_shares
from sarathi_jax.group.place import Place, find_place

# As srun sets them, of job 12345 with 2 tasks on 2 nodes.
SLURM = {
    "SLURM_JOB_ID": "12345",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
}
SLURM_PORT = 61000 + 2 * (12345 % 2200)
JOB = {"JOB_COMPLETION_INDEX": "3"}
LEADER_WORKER_SET = {
    "LWS_LEADER_ADDRESS": "llm-0.llm.default",
    "LWS_GROUP_SIZE": "4",
    "LWS_WORKER_INDEX": "2",
}
POD = "llm-3.llm.default.svc.cluster.local"


@pytest.mark.parametrize(
    ("options", "environ", "place"),
    [
        ({}, {}, None),
        ({}, SLURM, None),  # only if it is asked for
        ({"num_processes": 1}, {}, None),
        ({"num_processes": 3}, {}, Place(3, 0, "127.0.0.1", 0, is_launcher=True)),
        ({"num_processes": 2, "process_id": 1, "coordinator": "a.b:7"}, {}, Place(2, 1, "a.b", 7)),
        ({"num_processes": 2, "process_id": 0, "coordinator": "[fe80::1]:7"}, SLURM, Place(2, 0, "fe80::1", 7)),
        ({"coordinator": "a:7"}, SLURM, Place(2, 1, "a", 7)),
        ({"coordinator": "auto"}, SLURM, Place(2, 1, "gpu007", SLURM_PORT)),
        ({"coordinator": "auto"}, SLURM | {"SLURM_STEP_NODELIST": "n1,n2"}, Place(2, 1, "n1", SLURM_PORT)),
        ({"coordinator": "auto"}, SLURM | {"SLURM_STEP_NODELIST": "n[3,5-9],m1"}, Place(2, 1, "n3", SLURM_PORT)),
        ({"coordinator": "auto"}, SLURM | {"SLURM_STEP_NODELIST": "n7"}, Place(2, 1, "n7", SLURM_PORT)),
        ({"coordinator": "auto"}, SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"coordinator": "auto"}, LEADER_WORKER_SET, Place(4, 2, "llm-0.llm.default", 7700)),
        (
            {"coordinator": "auto", "num_processes": 4},
            JOB,
            Place(4, 3, "llm-0.llm.default.svc.cluster.local", 7700),
        ),
        ({"coordinator": "llm-0.llm:7", "num_processes": 4}, JOB, Place(4, 3, "llm-0.llm", 7)),
    ],
)
def test_a_place_is_found(options: dict[str, Any], environ: dict[str, str], place: Place | None) -> None:
    assert find_place(EngineConfig(**options), environ, POD) == place


@pytest.mark.parametrize(
    ("options", "environ", "text"),
    [
        ({"process_id": 1}, {}, "process_id=1 needs a coordinator, got none: pass --coordinator HOST:PORT"),
        ({"coordinator": "a:7"}, {}, "A group needs num_processes, got none from the options, and neither Slurm nor"),
        (
            {"coordinator": "a:7", "num_processes": 2},
            {},
            "needs process_id, got none .* in the environment: pass --process-id",
        ),
        ({"coordinator": "auto"}, {}, "needs the coordinator, got none .* pass --coordinator HOST:PORT"),
        ({"coordinator": "auto"}, JOB, "needs num_processes, got none from the options, and a Kubernetes Job in the"),
        ({"coordinator": "a:7", "num_processes": 2, "process_id": 2}, {}, "process_id=2 must be below num_processes=2"),
    ],
)
def test_too_little_is_refused(options: dict[str, Any], environ: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        find_place(EngineConfig(**options), environ, POD)


def test_a_pod_without_a_headless_service_has_no_leader() -> None:
    with pytest.raises(ConfigError, match="needs the coordinator, got none from the options, and a Kubernetes Job"):
        find_place(EngineConfig(coordinator="auto", num_processes=4), JOB, "llm-3")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"coordinator": "host"}, "coordinator must be HOST:PORT or auto, with a port below 65535, got 'host': write"),
        ({"coordinator": "host:65535"}, "with a port below 65535, got 'host:65535'"),
        ({"coordinator": ":7700"}, "got ':7700'"),
        (
            {"coordinator": "0.0.0.0:7700"},
            "must name one address of process 0's host, got '0.0.0.0:7700', which means all",
        ),
        ({"coordinator": "[::]:7700"}, "must name one address"),
        ({"num_processes": 0}, "num_processes=0 must be a whole number, at least 1"),
        ({"process_id": -1}, "process_id=-1 must be a whole number, at least 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        EngineConfig(**options)


def test_a_key_comes_from_a_variable_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o600)
    assert read_key({"SARATHI_JAX_GROUP_KEY": " 0123456789abcdef\n"}) == b"0123456789abcdef"
    assert read_key({"SARATHI_JAX_GROUP_KEY_FILE": str(path)}) == b"0123456789abcdef"
    path.chmod(0o604)
    with pytest.raises(ConfigError, match=r"must be its owner's alone, got .*key, open to others: chmod 600 it"):
        read_key({"SARATHI_JAX_GROUP_KEY_FILE": str(path)})


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        (
            {},
            "needs a key, got neither SARATHI_JAX_GROUP_KEY nor SARATHI_JAX_GROUP_KEY_FILE: put the output of `openssl",
        ),
        ({"SARATHI_JAX_GROUP_KEY": ""}, "must have at least 16 bytes, got 0 in SARATHI_JAX_GROUP_KEY"),
        ({"SARATHI_JAX_GROUP_KEY": "  0123456789abcde  "}, "at least 16 bytes, got 15 in"),
        ({"SARATHI_JAX_GROUP_KEY_FILE": "no/such/file"}, "must be readable at no/such/file, got .*No such file"),
    ],
)
def test_a_missing_or_weak_key_is_refused(environ: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        read_key(environ)


# A value that is not the default, for every field.
OTHER: dict[str, Any] = {
    "flight_record_folder": "records",
    "ttft_slo_ms": 900.0,
    "batch_tbt_slo_ms": 500.0,
    "batch_ttft_slo_ms": 9000.0,
    "model": "a folder",
    "mesh": "tensor=2",
    "policy": "vllm",
    "rules": "sequence",
    "max_model_len": 64,
    "num_pages": 77,
    "memory_fraction": 0.25,
    "dtype": "bfloat16",
    "kv_dtype": "int8",
    "load_format": "dummy",
    "max_num_partial_prefills": 2,
    "long_prefill_token_threshold": 8,
    "preempt_every_steps": 3,
    "kernels": "xla",
    "compile_cache": "",
    "num_processes": 2,
    "process_id": 1,
    "coordinator": "a:7",
    "page_size": 32,
    "token_budget": 600,
    "tbt_slo_ms": 50.5,
    "profile": "profile.json",
}
NEEDED = {
    "ttft_slo_ms": {"policy": "slo", "tbt_slo_ms": 100.0},
    "batch_tbt_slo_ms": {"policy": "slo", "tbt_slo_ms": 100.0},
    "batch_ttft_slo_ms": {"policy": "slo", "tbt_slo_ms": 100.0},
    "fair_clients": {"policy": "slo", "tbt_slo_ms": 100.0},
    "tbt_slo_ms": {"profile": "profile.json"},
}  # other options without which one is none


def read_back(config: EngineConfig) -> EngineConfig:
    parser = Parser()
    add_model_arguments(parser)
    return engine_config(parser.parse(flags(config)))


def test_the_words_of_a_config_give_that_config() -> None:
    assert flags(EngineConfig()) == []
    for field in dataclasses.fields(EngineConfig):
        others = {
            bool: lambda default: not default,
            int: lambda default: default + 1,
            str: lambda default: default + "x",
        }
        value = OTHER[field.name] if field.name in OTHER else others[type(field.default)](field.default)
        assert value != field.default
        config = EngineConfig(**{field.name: value, **NEEDED.get(field.name, {})})
        assert read_back(config) == config


def test_a_table_from_python_has_no_words() -> None:
    with pytest.raises(
        ConfigError, match=r"rules must be a name or a file where other processes are started, got a table"
    ):
        flags(EngineConfig(rules={"vocab": None}))


@pytest.mark.parametrize(
    ("visible", "num_processes", "shares"),
    [("0,1,2,3", 2, [["0", "1"], ["2", "3"]]), ("GPU-a,GPU-b", 2, [["GPU-a"], ["GPU-b"]]), ("", 2, [])],
)
def test_gpus_are_shared_out(visible: str, num_processes: int, shares: list[list[str]]) -> None:
    assert gpu_shares(num_processes, {"CUDA_VISIBLE_DEVICES": visible}) == shares


def test_gpus_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_processes=2 must divide this machine's GPUs, got 3: choose another"):
        gpu_shares(2, {"CUDA_VISIBLE_DEVICES": "0,1,2"})


def test_a_started_process_that_ends_is_noticed() -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", f"import sys, time; {each}"])
        for each in ("time.sleep(60)", "sys.exit(3)")
    ]
    launched = Launched(Place(3, 0, "127.0.0.1", 1), b"", None, processes)
    launched.check()
    processes[1].wait()
    with pytest.raises(
        GroupError, match="Process 2, which was started here, must join the group, got its end with code 3"
    ):
        launched.check()
    launched.end(limit_s=0.1)
    assert [process.returncode for process in processes] == [-9, 3]
