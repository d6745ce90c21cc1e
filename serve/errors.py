"""What clients get when something is wrong: one shape, OpenAI's, for every status, written in one place.

{"error": {"message", "type", "param", "code"}}
"""

import logging
import re
import reprlib
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from sarathi_jax.errors import RequestError
from sarathi_jax.serve.live_request import Lost

logger = logging.getLogger(__name__)

MAX_MESSAGE_CHARS = 500
CLIENT_CLOSED = 499  # nobody gets it; the access log does
TYPES = {429: "rate_limit_error", 500: "server_error", 503: "service_unavailable_error", 504: "timeout_error"}
INVALID_REQUEST = "invalid_request_error"
STATUS_OF_LOST = {
    "engine_unavailable": 503,
    "server_shutting_down": 503,
    "internal_error": 500,
    "numerical_error": 500,
    "deadline_exceeded": 504,
}
FIXED_MESSAGES = {
    "internal_error": "The server had an error while processing this request.",
    "numerical_error": "The model's output for this request was not finite.",
    "grammar_limit": "The grammar of this request passed a limit while its output was written: use a simpler one.",
}


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        message = str(self)
        if len(message) > MAX_MESSAGE_CHARS:
            message = message[: MAX_MESSAGE_CHARS - 3] + "..."
        kind = TYPES.get(self.status, INVALID_REQUEST)
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return Response(orjson.dumps(self.body), self.status, self.headers, "application/json")


def of_request_error(error: RequestError, param: str | None = None) -> ApiError:
    """param: the field's name on the wire, where the error does not know it."""
    return ApiError(400, error.code, str(error), param=param or error.param)


def of_lost(lost: Lost) -> ApiError:
    """Why a request did not come to its end."""
    status = STATUS_OF_LOST.get(lost.code, 400)
    headers = {"Retry-After": "1"} if status == 503 else {}
    return ApiError(status, lost.code, FIXED_MESSAGES.get(lost.code, lost.message), param=lost.param, headers=headers)


# pydantic's name of a rule -> OpenAI's, by the kind of value where that matters.
_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "too_long": "array_above_max_length",
    "too_short": "empty_array",
    "string_too_long": "string_above_max_length",
    "finite_number": "invalid_value",
    "value_error": "invalid_value",
    "literal_error": "invalid_value",
    "enum": "invalid_value",
    "string_pattern_mismatch": "invalid_value",
    "string_too_short": "invalid_value",
    "union_tag_invalid": "unsupported_value",
    "unsupported_value": "unsupported_value",
    "union_tag_not_found": "invalid_value",
}
_BOUNDS = {
    "greater_than": "below_min_value",
    "greater_than_equal": "below_min_value",
    "less_than": "above_max_value",
    "less_than_equal": "above_max_value",
}
# What pydantic puts into a place to say which member of a union it tried.
_UNION_MEMBER = re.compile(r"[a-z]+\[.*|str|int|float|bool|(function|constrained|lax|json)-.*|[A-Z]\w+", re.DOTALL)


_short = reprlib.Repr(maxstring=80)  # of a client's value, however large


def of_validation_error(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body."""
    details = max(error.errors(include_url=False, include_context=True), key=_telling)
    kind, got = details["type"], details.get("input")
    if kind in _BOUNDS:
        bound = (details.get("ctx") or {}).get("ge", (details.get("ctx") or {}).get("le"))
        code = f"{'integer' if isinstance(got, int) and isinstance(bound, int) else 'decimal'}_{_BOUNDS[kind]}"
    else:
        code = _CODES.get(kind, "invalid_type")
    param = param_name(details["loc"])
    message = details["msg"].removeprefix("Value error, ")
    text = f"{param}: {message}" if param else message
    return ApiError(400, code, f"{text}{_got(kind, got)}", param=param)


def _telling(details: ErrorDetails) -> tuple[bool, int, list[int]]:
    """How much an error says. Each member of a union has one: that of the member which was meant is no wrong type, or lies deepest, or comes last."""
    place = details["loc"]
    depth = len([part for part in place if not (isinstance(part, str) and _UNION_MEMBER.fullmatch(part))])
    return not details["type"].endswith("_type"), depth, [part for part in place if isinstance(part, int)]


def _got(kind: str, got: object) -> str:
    if kind in ("missing", "extra_forbidden"):
        return "."
    text = _short.repr(got).encode("ascii", "backslashreplace").decode()
    return f", got {text if len(text) <= 80 else text[:77] + '...'}."


def param_name(place: tuple[int | str, ...]) -> str | None:
    """("messages", 0, "role") -> "messages[0].role" """
    name = ""
    for part in place:
        if isinstance(part, int):
            name += f"[{part}]"
        elif not _UNION_MEMBER.fullmatch(part):
            name += f".{part}" if name else part
    return name[:200] or None


def add_error_handlers(app: FastAPI) -> None:
    """Every answer that is no success goes through here."""

    @app.exception_handler(ApiError)
    async def answer_api_error(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def answer_http_error(request: Request, error: HTTPException) -> Response:
        wrong_url = f"Invalid URL ({request.method} {request.scope['path'][:200]})"
        if error.status_code == 404:
            return ApiError(404, None, wrong_url).response()
        if error.status_code == 405:
            message = f"Invalid method for URL ({request.method} {request.scope['path'][:200]})"
            return ApiError(405, "method_not_supported", message, headers=error.headers).response()
        return ApiError(error.status_code, None, str(error.detail), headers=error.headers).response()

    @app.exception_handler(RequestError)
    async def answer_request_error(_: Request, error: RequestError) -> Response:
        return of_request_error(error).response()

    @app.exception_handler(ClientDisconnect)
    async def answer_nobody(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    @app.exception_handler(Exception)
    async def answer_fault(request: Request, error: Exception) -> Response:
        request_id = request.scope.get("request_id", "")
        logger.error("request %s failed", request_id, exc_info=error)
        message = f"{FIXED_MESSAGES['internal_error']} (request {request_id})"
        return ApiError(500, "internal_error", message).response()
