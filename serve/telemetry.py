"""Spans of requests for OpenTelemetry, where the extra `otel` is installed and a collector is named; else nothing of it is loaded."""

from collections.abc import Mapping
from typing import Any

from sarathi_jax import __version__
from sarathi_jax.errors import ConfigError
from sarathi_jax.serve.gate import is_public

ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"
OFF: dict[str, Any] = {"tracing": False, "metrics": False, "logs": False}


def telemetry(endpoint: str | None, environ: Mapping[str, str]) -> Any:
    """FastAPI's option `telemetry`. Nothing that is asked or answered is in a span, and probes have none.

    endpoint: of a collector that takes OTLP over HTTP; None: as OpenTelemetry's variable has it.
    Raises: ConfigError if it was asked for with an option and can't be.
    """
    url = endpoint or environ.get(ENDPOINT_VARIABLE)
    if not url:
        return OFF
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            f"otlp_endpoint must begin with http:// or https://, got {url!r}: write http://127.0.0.1:4318."
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # pyright: ignore[reportMissingImports]
        from opentelemetry.sdk.resources import Resource  # pyright: ignore[reportMissingImports]
        from opentelemetry.sdk.trace import TracerProvider  # pyright: ignore[reportMissingImports]
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        if endpoint is None:
            return OFF
        raise ConfigError(
            f"otlp_endpoint needs OpenTelemetry's SDK, which is not here ({error}): pip install 'sarathi-jax[otel]'."
        ) from error
    name = environ.get("OTEL_SERVICE_NAME", "sarathi-jax")
    provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces")))
    return {**OFF, "tracing": True, "tracer_provider": provider, "exclude": is_public}
