"""Section 6.3, G-31: all that /openapi.json describes, tried by schemathesis with data that is right and data that is wrong.

Its checks: no answer is a 5xx; each status, content type and body is as described, which for errors is OpenAI's shape; what is not as described is refused.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
HOOKS = Path(__file__).with_name("openapi_hooks.py")


def fuzz(server: Any, folder: Path, *options: str) -> None:
    words = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    words += ["run", f"{server.url}/openapi.json", "--checks", ",".join(CHECKS), "--exclude-path", "/api/steps"]
    words += ["--mode", "all", "--seed", "1", "--generation-deterministic", "--no-color", *options]
    run = subprocess.run(
        words, cwd=folder, env={**os.environ, "SCHEMATHESIS_HOOKS": str(HOOKS)}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert re.search(r"([1-9]\d+) generated, \1 passed", run.stdout), run.stdout[-2000:]


def test_every_route_is_as_described(server: Any, well: Any, tmp_path: Path) -> None:
    fuzz(server, tmp_path, "--phases", "fuzzing", "--max-examples", "30", "--workers", "2", "--max-time", "15")
    well(server)


@pytest.mark.nightly
def test_every_route_is_as_described_at_length(server: Any, well: Any, tmp_path: Path) -> None:
    fuzz(server, tmp_path, "--phases", "coverage,fuzzing", "--max-examples", "2000")
    well(server)
