"""What `serve` says when it is ready, as a table and as an object. The numbers are the fake engine's options, worked out by hand."""

import json
import os
from typing import Any

import pytest

from sarathi_jax.cli.serve import say_ready
from sarathi_jax.serve.log import logging_to

OPTIONS = {"num_pages": 300, "page_size": 16, "max_model_len": 1600, "token_budget": 64, "max_num_seqs": 4}


def said(server: Any, log_format: Any) -> str:
    reader, writer = os.pipe()
    with logging_to(log_format, "info", writer):
        say_ready(server.front, server.url)
    os.close(writer)
    with os.fdopen(reader) as file:
        return file.read()


@pytest.fixture
def small(serving: Any) -> Any:
    return serving(engine=OPTIONS, served_model_name=("a", "b"), api_key=("hush",))


def test_a_table(small: Any) -> None:
    text = said(small, "text")
    lines = text.splitlines()
    assert lines[0].startswith("sarathi-jax ")
    assert lines[0].endswith(f" serves a at {small.url}/v1")
    assert "  KV cache  4,800 tokens, 0.0 MiB: 3.0 requests of 1,600 tokens" in lines
    assert "  schedule  sarathi, 64 tokens a step, 4 requests at a time" in lines
    assert "  devices   1 x fake" in lines
    assert "  model     demo, asked for as a, b" in lines
    assert "  keys      1" in lines
    assert "hush" not in text


def test_an_object(small: Any) -> None:
    (line,) = said(small, "json").splitlines()
    fields = json.loads(line)
    assert fields["message"] == "ready"
    assert (fields["kv_tokens"], fields["full_requests"], fields["api_keys"]) == (4800, 3.0, 1)
    assert (fields["url"], fields["devices"]) == (f"{small.url}/v1", ["fake"])
    assert "hush" not in line
