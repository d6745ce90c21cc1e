"""`serve` itself, around a run that is not one."""

import gc
from collections.abc import Mapping
from typing import Any

import pytest

from sarathi_jax.serve import server
from sarathi_jax.serve.config import ServeConfig


def test_what_is_there_when_it_is_ready_is_no_work_for_the_garbage_collector(monkeypatch: pytest.MonkeyPatch):
    counts: list[int] = []

    class Run:
        def __init__(self, *args: Any, log: Any):
            self.listener, self.started = args[2:4]

        async def run(self, engine_options: Mapping[str, Any]) -> int:
            self.listener.close()
            counts.append(gc.get_freeze_count())
            self.started(None, "http://127.0.0.1")
            return 0

    monkeypatch.setattr(server, "ServerRun", Run)
    try:
        assert server.serve(ServeConfig(port=0), {}, lambda *_: counts.append(gc.get_freeze_count())) == 0
    finally:
        gc.unfreeze()
    assert len(counts) == 2
    assert counts[1] > counts[0] + 1000
