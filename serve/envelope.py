"""The frame around every answer of one request: id, object, time and model are the same on all chunks, and are encoded once."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from sarathi_jax.serve.sse import one_line


class Envelope:
    """kind: OpenAI's name of the object. with_usage: whether every chunk has a field for it."""

    def __init__(self, answer_id: str, kind: str, created: int, model: str, *, with_usage: bool = False) -> None:
        head = {"id": answer_id, "object": kind, "created": created, "model": model, "system_fingerprint": None}
        self._head = head
        self._prefix = b"data: " + orjson.dumps(head)[:-1] + b',"choices":'
        self._suffix = b',"usage":null}\n\n' if with_usage else b"}\n\n"

    def chunk(
        self,
        choices: Sequence[Mapping[str, Any]],
        usage: Mapping[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> bytes:
        """One server-sent event."""
        if usage is None and more is None:
            return b"".join((self._prefix, one_line(choices), self._suffix))
        rest = one_line({"usage": usage, **(more or {})})
        return b"".join((self._prefix, one_line(choices), b",", rest[1:], b"\n\n"))

    def body(self, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any], **more: Any) -> bytes:
        """The whole answer."""
        return orjson.dumps({**self._head, "choices": choices, "usage": usage, **more})
