"""The FastAPI application: every route, in one place, behind one gate."""

import os
from collections.abc import Mapping

from fastapi import FastAPI
from starlette.types import ASGIApp

from sarathi_jax import __version__
from sarathi_jax.serve.chat import chat_router
from sarathi_jax.serve.completions import completions_router
from sarathi_jax.serve.errors import add_error_handlers
from sarathi_jax.serve.front import Front
from sarathi_jax.serve.gate import Gate
from sarathi_jax.serve.info_routes import info_router, metrics_router, probe_router, token_router
from sarathi_jax.serve.page import add_page
from sarathi_jax.serve.route_docs import ERRORS
from sarathi_jax.serve.steps_feed import steps_router
from sarathi_jax.serve.telemetry import telemetry


def make_app(front: Front, keys: Mapping[bytes, str]) -> ASGIApp:
    """The application, with the gate around it."""
    app = FastAPI(
        title="sarathi-jax",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=ERRORS,
        telemetry=telemetry(front.config.otlp_endpoint, os.environ),
    )
    add_error_handlers(app)
    for router in (
        completions_router,
        chat_router,
        info_router,
        token_router,
        probe_router,
        metrics_router,
        steps_router,
    ):
        app.include_router(router(front))
    add_page(app)
    return Gate(app, front.config, keys, front.metrics.visited)
