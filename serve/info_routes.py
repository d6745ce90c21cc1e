"""Routes that say how things are: probes, models, versions; and the tokenizer's two."""

import platform
from importlib.metadata import version
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from sarathi_jax import __version__
from sarathi_jax.serve.errors import ApiError
from sarathi_jax.serve.front import Front
from sarathi_jax.serve.route_docs import described
from sarathi_jax.serve.schemas import DetokenizeBody, TokenizeBody

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SLOW_SHARE = 0.5  # of the time after which a step counts as hanging


def json_response(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


def probe_router(front: Front) -> APIRouter:
    """GET /live, /ready, /health: for whoever starts and stops servers."""
    router = APIRouter()

    @router.get("/live", response_class=Response, summary="Whether the front answers.")
    async def live() -> Response:
        return Response()

    @router.get("/ready", response_class=Response, summary="Whether requests are served now.")
    async def ready() -> Response:
        check_health(front)
        return Response()

    @router.get(
        "/health",
        response_class=Response,
        summary="Whether the engine works: a step has ended lately, or there is nothing to do.",
    )
    async def health() -> Response:
        check_health(front)
        return Response()

    return router


def check_health(front: Front) -> None:
    """Raises: ApiError 503, saying what is wrong."""
    if front.state != "ready":
        code = "server_shutting_down" if front.is_draining else "engine_unavailable"
        raise ApiError(503, code, f"The server is not ready: {front.state}.", headers={"Retry-After": "1"})
    silent_s = front.client.seconds_silent
    if silent_s > front.config.step_timeout_s * SLOW_SHARE:
        message = f"No step has ended for {silent_s:.1f} s."
        raise ApiError(503, "engine_unavailable", message, headers={"Retry-After": "1"})


def metrics_router(front: Front) -> APIRouter:
    """GET /metrics."""
    router = APIRouter()

    @router.get("/metrics", response_class=PlainTextResponse, summary="Counts and times, for Prometheus.")
    async def metrics() -> Response:
        return Response(front.metrics.write(), headers={"Content-Type": METRICS_TYPE})

    return router


def info_router(front: Front) -> APIRouter:
    """GET /v1/models, /version, /server_info."""
    router = APIRouter()

    def card(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": front.created,
            "owned_by": "sarathi-jax",
            "root": front.facts.model,
            "parent": None,
            "max_model_len": front.facts.limits.max_model_len,
            "permission": [],
        }

    @router.get("/v1/models", summary="The models that are served.")
    async def models() -> Response:
        front.check_ready()
        return json_response({"object": "list", "data": [card(name) for name in front.model_names]})

    @router.get("/v1/models/{name:path}", summary="One model.")
    async def model(name: str) -> Response:
        front.check_ready()
        front.check_model(name)
        return json_response(card(name))

    @router.get("/version", summary="The server's version.")
    async def versions() -> Response:
        return json_response({"version": __version__})

    @router.get("/server_info", summary="What the engine is, and how it stands.")
    async def server_info() -> Response:
        return json_response(server_facts(front))

    return router


def server_facts(front: Front) -> dict[str, Any]:
    facts, steps = front.client.facts, front.client.steps
    info: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "jax": version("jax"),
        "state": front.state,
        "num_engine_restarts": front.client.num_restarts,
    }
    if facts is not None:
        limits = facts.limits
        info |= {
            "model": facts.model,
            "served_model_names": list(front.model_names),
            "policy": facts.policy,
            "tbt_slo_ms": facts.tbt_slo_ms,
            "token_budget": limits.token_budget,
            "max_num_seqs": limits.max_num_seqs,
            "max_model_len": limits.max_model_len,
            "page_size": limits.page_size,
            "num_pages": limits.num_pages,
            "devices": facts.devices,
            "mesh": facts.mesh,
            "dtype": facts.dtype,
            "memory": facts.memory,
            "num_programs": facts.num_programs,
        }
    info["num_open_requests"] = front.admission.num_open
    if steps is not None:
        info |= {"num_running": steps.num_running, "num_waiting": steps.num_waiting}
        info["kv_pages"] = {
            "used": steps.num_used_pages,
            "cached": steps.num_cached_pages,
            "free": steps.num_free_pages,
        }
    return info


def token_router(front: Front) -> APIRouter:
    """POST /tokenize, /detokenize."""
    router = APIRouter()

    @router.post("/tokenize", **described(TokenizeBody))
    async def tokenize(request: Request) -> Response:
        body = await front.read(request, TokenizeBody)
        with front.enter(request):
            if body.model is not None:
                front.check_model(body.model)
            token_ids = await token_ids_of(front, body)
        answer: dict[str, Any] = {
            "count": len(token_ids),
            "max_model_len": front.facts.limits.max_model_len,
            "tokens": token_ids,
            "token_strs": None,
        }
        if body.return_token_strs:
            answer["token_strs"] = [front.token_texts.text(token_id) for token_id in token_ids]
        return json_response(answer)

    @router.post("/detokenize", **described(DetokenizeBody))
    async def detokenize(request: Request) -> Response:
        body = await front.read(request, DetokenizeBody)
        with front.enter(request):
            if body.model is not None:
                front.check_model(body.model)
            vocab_size = front.limits.vocab_size
            if any(token_id >= vocab_size for token_id in body.tokens):
                message = f"tokens must be below {vocab_size}, got {max(body.tokens)}."
                raise ApiError(400, "invalid_value", message, param="tokens")
            return json_response({"prompt": front.prompts.decode(body.tokens)})

    return router


async def token_ids_of(front: Front, body: TokenizeBody) -> list[int]:
    """A text may be longer than a prompt: it is only counted."""
    max_tokens = 4 * front.max_prompt_tokens
    if body.messages is not None:
        adds = body.add_generation_prompt
        return await front.prompts.encode_chat(body.messages, max_tokens=max_tokens, add_generation_prompt=adds)
    assert body.prompt is not None, "the body has one of them"
    adds = body.add_special_tokens
    return await front.prompts.encode(body.prompt, max_tokens=max_tokens, add_special_tokens=adds)
