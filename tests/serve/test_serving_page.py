"""docs/serving.md keeps its word: its commands and programs work, and it names every flag, field and route there is."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sarathi_jax.serve.config import ServeConfig
from sarathi_jax.serve.schemas import ChatBody, CompletionBody, SamplingBody

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
PAGES = PAGE + "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("operations.md"))
EXAMPLES = ROOT / "examples"
URL = "http://127.0.0.1:8000"
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_curl
@pytest.mark.parametrize("block", [each for each in blocks("sh") if "curl" in each])
def test_its_commands_are_answered(real_server: Any, block: str) -> None:
    for command in re.split(r"\n(?=curl)", block.strip()):
        said = run(
            ["sh", "-c", command.replace("curl -s ", "curl -sS --fail-with-body ").replace(URL, real_server.url)]
        )
        assert '"error"' not in said
        if "12+30" in command and "completions" in command and "stream" not in command:
            assert "42" in said


def test_its_program_prints_the_answer(real_server: Any) -> None:
    (program,) = blocks("python")
    assert "42" in run([sys.executable, "-c", program.replace(URL, real_server.url)])


@needs_curl
def test_the_example_with_curl(real_server: Any) -> None:
    said = run(["sh", str(EXAMPLES / "curl.sh")], SARATHI_JAX_URL=real_server.url)
    assert '"42"' in said
    assert "[DONE]" in said


def test_the_example_with_openai(real_server: Any) -> None:
    said = run([sys.executable, str(EXAMPLES / "openai_client.py")], SARATHI_JAX_URL=real_server.url)
    assert "42" in said
    assert said.count("together:") == 3


@pytest.mark.parametrize("name", [field.name for field in fields(ServeConfig)])
def test_every_flag_is_there(name: str) -> None:
    assert f"`--{name.replace('_', '-')}`" in PAGES


# Said in words, or in a page of its own.
ELSEWHERE = {
    "messages", "prompt", "echo", "max_completion_tokens", "best_of", "suffix", "add_generation_prompt", "response_format", "structured_outputs", "tools", "tool_choice",
    "parallel_tool_calls", "modalities", "audio", "prediction", "functions", "function_call", "web_search_options", "reasoning_effort", "use_beam_search", "length_penalty",
    "spaces_between_special_tokens",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", sorted({*SamplingBody.model_fields, *ChatBody.model_fields, *CompletionBody.model_fields} - ELSEWHERE)
)
def test_every_field_is_there(name: str) -> None:
    assert f"`{name}`" in PAGE


def test_every_route_is_there(real_server: Any) -> None:
    paths = real_server.get("/openapi.json").json()["paths"]
    assert [path for path in paths if path not in PAGE] == []
