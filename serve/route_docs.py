"""What /openapi.json says of a route whose body is read by hand, as strictly as pydantic alone does not."""

from typing import Any

from pydantic import BaseModel

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_AN_ERROR: dict[str, Any] = {"description": "an error", "content": {"application/json": {"schema": ERROR}}}
# Of every route.
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": _AN_ERROR, "5XX": _AN_ERROR}


def described(body: type[BaseModel]) -> dict[str, Any]:
    """Arguments for a route's decorator."""
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    inner = schema.pop("$defs", {})
    schema = _inlined(schema, inner)
    return {
        "responses": {200: {"content": {"text/event-stream": {}}}},
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
    }


def _inlined(value: Any, inner: dict[str, Any]) -> Any:
    """The schema without references: each route's stands for itself."""
    if isinstance(value, dict):
        if isinstance(ref := value.get("$ref"), str):
            return _inlined(inner[ref.rsplit("/", 1)[-1]], inner)
        return {key: _inlined(each, inner) for key, each in value.items()}
    return [_inlined(each, inner) for each in value] if isinstance(value, list) else value
