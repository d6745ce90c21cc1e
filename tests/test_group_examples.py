"""The examples for Slurm and Kubernetes: their commands' words are real, and each process finds its place and the key by them."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sarathi_jax.cli.bench_throughput import add_arguments
from sarathi_jax.cli.model_options import engine_config
from sarathi_jax.cli.options import Parser
from sarathi_jax.group.key import read_key
from sarathi_jax.group.place import Place, find_place

EXAMPLES = Path(__file__).parent.parent / "examples"
# Runs what follows its options once a task, as srun does, and prints each task's words, number and key.
SRUN = r"""#!/bin/bash
while [ "${1#--}" != "$1" ]; do shift; done
for task in 0 1; do echo "$task $SARATHI_JAX_GROUP_KEY $*"; done
"""


def read_config(words: list[str]) -> Any:
    assert words[:3] == ["sarathi-jax", "bench", "throughput"]
    parser = Parser()
    add_arguments(parser)
    return engine_config(parser.parse(words[3:]))


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_tasks_of_the_slurm_job_find_their_places(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text(SRUN)
    srun.chmod(0o700)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(["bash", EXAMPLES / "slurm.sh"], env=env, capture_output=True, text=True, check=True).stdout
    keys = set()
    for task, line in enumerate(said.splitlines()):
        number, key, *words = line.split()
        slurm = {"SLURM_PROCID": number, "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7"}
        slurm |= {"SLURM_STEP_NODELIST": "n[1-2]"}
        assert find_place(read_config(words), slurm) == Place(2, task, "n1", 61014)
        keys.add(read_key({"SARATHI_JAX_GROUP_KEY": key}))
    assert (len(said.splitlines()), len(keys), len(keys.pop())) == (2, 1, 64)


def test_pods_of_the_kubernetes_job_find_their_places() -> None:
    service, policy, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    template = job["spec"]["template"]["spec"]
    name, (container,) = job["metadata"]["name"], template["containers"]
    labels = {"job-name": name}  # Kubernetes gives it to the pods of a Job
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == labels
    assert (service["spec"]["clusterIP"], template["subdomain"]) == ("None", service["metadata"]["name"])
    assert "SARATHI_JAX_GROUP_KEY" in [each["name"] for each in container["env"]]
    config, count = read_config(container["command"]), job["spec"]["parallelism"]
    for index in range(count):
        fqdn = f"{name}-{index}.{template['subdomain']}.default.svc.cluster.local"
        place = find_place(config, {"JOB_COMPLETION_INDEX": str(index)}, fqdn)
        assert place == Place(count, index, f"{name}-0.{template['subdomain']}.default.svc.cluster.local", 7700)
    num_devices = count * container["resources"]["limits"]["nvidia.com/gpu"]
    assert num_devices == config.mesh_shape["stage"] * config.mesh_shape["tensor"]
