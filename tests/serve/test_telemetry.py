"""OpenTelemetry: off unless it is asked for, an error where it can't be had, and spans at a collector where the extra is installed."""

import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from typing import Any

import pytest

from sarathi_jax.errors import ConfigError
from sarathi_jax.serve.telemetry import OFF, telemetry

HAS_SDK = find_spec("opentelemetry") is not None and find_spec("opentelemetry.sdk") is not None


def test_off_by_default() -> None:
    program = "import sys; import sarathi_jax.serve.server; from sarathi_jax.serve.telemetry import telemetry; telemetry(None, {}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "opentelemetry.sdk" not in done.stdout.split()
    assert not any(OFF.values())


def test_an_endpoint_that_is_no_url() -> None:
    with pytest.raises(ConfigError, match=r"otlp_endpoint must begin with http:// or https://, got 'collector:4318'"):
        telemetry("collector:4318", {})


@pytest.mark.skipif(HAS_SDK, reason="the extra is installed")
def test_without_the_extra() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'sarathi-jax\[otel\]'"):
        telemetry("http://127.0.0.1:4318", {})
    assert telemetry(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}) == OFF


@pytest.mark.skipif(not HAS_SDK, reason="needs the extra otel")
def test_spans_come_to_a_collector(serving: Any) -> None:
    bodies: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    server = serving(otlp_endpoint=f"http://127.0.0.1:{collector.server_port}")
    server.get("/health")
    server.complete("a secret marker", max_tokens=3)
    end_s = time.perf_counter() + 15
    while not bodies and time.perf_counter() < end_s:
        time.sleep(0.1)
    collector.shutdown()
    collector.server_close()
    text = b"".join(body for _, body in bodies)
    assert {path for path, _ in bodies} == {"/v1/traces"}
    assert b"/v1/completions" in text
    assert b"/health" not in text
    assert b"secret" not in text
