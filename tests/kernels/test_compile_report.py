"""The GPU kernels' machine code for sm_80 and sm_90, made on any machine: nothing spills, products are tensor cores', loads are asynchronous.

In a process of its own: here, Triton is the interpreter.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
COMMITTED = json.loads((ROOT / "kernels" / "compile_report.json").read_text())
pytestmark = pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed: pip install triton")


@pytest.fixture(scope="module")
def kernels() -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "sarathi_jax.cli.main", "kernels", "report", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    return json.loads(done.stdout)["kernels"]


def attention(kernels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in kernels if each["name"].startswith("attend")]


def test_nothing_spills(kernels: list[dict[str, Any]]) -> None:
    assert [each["name"] for each in kernels if each["spilled_bytes"]] == []
    assert {each["sm"] for each in kernels} == {80, 90}


def test_attention_multiplies_on_tensor_cores_and_loads_asynchronously(kernels: list[dict[str, Any]]) -> None:
    """But for float32, whose products are exact. Tiles of 64 queries and more use Hopper's own products; int8 heads of 256 leave room for 32."""
    for each in attention(kernels):
        assert each["num_async_copies"] > 0, each["name"]
        if "fp32" not in each["name"]:
            assert each["num_mma"] + each["num_wgmma"] > 0, each["name"]
        if (
            each["sm"] == 90
            and "mixed" in each["name"]
            and "fp32" not in each["name"]
            and "d256 g2 k8 i8" not in each["name"]
        ):
            assert each["num_wgmma"] > 0, each["name"]


def test_all_fit_on_a_multiprocessor_with_warps_to_hide_a_load_behind(kernels: list[dict[str, Any]]) -> None:
    for each in kernels:
        assert each["num_programs"] >= 1, each["name"]
        assert each["num_warps"] >= 8, each["name"]


def test_the_committed_table_is_what_comes_out(kernels: list[dict[str, Any]]) -> None:
    """Of the same triton, number for number; of another one, the same kernels. After a change: `sarathi-jax kernels report --output kernels/compile_report.json`."""
    assert [(each["name"], each["sm"]) for each in kernels] == [
        (each["name"], each["sm"]) for each in COMMITTED["kernels"]
    ]
    if version("triton") == COMMITTED["triton"]:
        assert kernels == COMMITTED["kernels"]
