"""JSON bodies, read as strictly as a stranger's file: no duplicate keys, no NaN, no endless depth; then checked against a model of the request."""

import asyncio
import json
import math
from collections.abc import Iterable
from typing import Any, NoReturn

from fastapi import Request
from pydantic import BaseModel, ValidationError

from sarathi_jax.serve.errors import ApiError, of_validation_error

MAX_DEPTH = 64
MAX_KEYS = 10_000  # of one object
MAX_MARKS = 500_000  # brackets and colons: what is many times its own size, when it is parsed
INLINE_BYTES = 16_384  # what is longer is parsed in a thread, so that the event loop stays free


async def read_body[M: BaseModel](request: Request, model: type[M]) -> M:
    """A request's body as `model`. Raises: ApiError."""
    data = await request.body()
    if len(data) <= INLINE_BYTES:
        return parse_body(data, model)
    return await asyncio.to_thread(parse_body, data, model)


def parse_body[M: BaseModel](data: bytes, model: type[M]) -> M:
    """Raises: ApiError."""
    value = parse_json(data)
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_type", f"The body must be a JSON object, got {type(value).__name__}.")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise of_validation_error(error) from error


def parse_json(data: bytes) -> Any:
    """Raises: ApiError if this is not JSON as RFC 8259 has it, or nests too deeply."""
    if sum(data.count(mark) for mark in (b"[", b"{", b":")) > MAX_MARKS:
        raise _invalid(f"must have at most {MAX_MARKS} brackets and colons")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _invalid("must be UTF-8") from error
    try:
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_no_constant, parse_float=_finite, parse_int=int
        )
    except ApiError:
        raise
    except RecursionError as error:
        raise _invalid("nests too deeply") from error
    except ValueError as error:
        raise _invalid(f"can't be parsed: {str(error)[:200]}") from error
    _check_depth(value)
    if b"\\ud" in data or b"\\uD" in data:
        _check_unicode(value)
    return value


def _invalid(message: str) -> ApiError:
    return ApiError(400, "invalid_json", f"The JSON body {message}.")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _invalid("must name each key once")
    if len(value) > MAX_KEYS:
        raise _invalid(f"must have at most {MAX_KEYS} keys in an object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise _invalid(f"must have finite numbers, got {name}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _invalid(f"must have finite numbers, got {text[:40]}")
    return value


def _check_depth(value: Any) -> None:
    level, depth = [item for item in (value,) if isinstance(item, dict | list)], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _invalid(f"must nest at most {MAX_DEPTH} levels")
        level = [item for each in level for item in _items(each) if isinstance(item, dict | list)]


def _check_unicode(value: Any) -> None:
    """JSON can spell half a surrogate pair, which no text has."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _invalid("must be Unicode, got half a surrogate pair") from error


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
