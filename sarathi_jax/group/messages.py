"""What processes of a group say to each other: a fixed header, raw bytes, and a digest that only they can make. Never pickle: nothing that comes in is run.

    kind u8 | runner u8 | bucket u16 | pad | number u64 | payload | HMAC-SHA256 of all before it

Each process seals with a key of its own, drawn from the group's key and from random numbers of every process: a message can't be made up, changed, replayed,
left out or swapped with another without being seen. It can be read: nothing is encrypted.
"""

import hmac
import json
import struct
from enum import IntEnum
from typing import Any, NamedTuple

HEADER = struct.Struct("<BBH4xQ")
NUMBER = struct.Struct("<Q")
DIGEST = "sha256"
DIGEST_BYTES = 32


class Kind(IntEnum):
    """HELLO, WELCOME: the start. VALUES: something exchanged among all. READY: requests may come, silence is short from here on.
    STEP, SLOT, MASKS, RESET, RELEASE: calls of a runner. CLOSE: the end. DONE: a step has run. BEAT: alive. FAILED: the group ends before its time, and why."""

    HELLO = 1
    WELCOME = 2
    VALUES = 3
    READY = 4
    STEP = 5
    SLOT = 6
    RESET = 7
    RELEASE = 8
    CLOSE = 9
    DONE = 10
    BEAT = 11
    FAILED = 12
    MASKS = 13


class Message(NamedTuple):
    """runner: which of the group's runners is called. bucket: the index of a step's bucket. number: of the sender's messages, from 0. payload: a packed array's bytes, or
    JSON."""

    kind: Kind
    runner: int
    bucket: int
    number: int
    payload: bytes

    def json(self) -> Any:
        return json.loads(self.payload)


class MessageError(Exception):
    """What came in is not what the other process sealed next."""


def session_key(key: bytes, *parts: bytes) -> bytes:
    """A key for one purpose, from another key and what is peculiar to the purpose."""
    return hmac.digest(key, b"".join(hmac.digest(key, part, DIGEST) for part in parts), DIGEST)


class Sealer:
    """Seals what one process says."""

    def __init__(self, key: bytes, process_id: int) -> None:
        self._key = session_key(key, b"process", str(process_id).encode())
        self._next = 0

    def seal(
        self, kind: Kind, payload: bytes | memoryview = b"", *, runner: int = 0, bucket: int = 0
    ) -> tuple[int, bytes]:
        """The message's number, and its bytes."""
        number, self._next = self._next, self._next + 1
        body = b"".join((HEADER.pack(kind, runner, bucket, number), payload))
        return number, body + hmac.digest(self._key, body, DIGEST)

    def seal_last(self, text: str) -> bytes:
        """A FAILED message, which may overtake others: it bears no number."""
        body = HEADER.pack(Kind.FAILED, 0, 0, 0) + text.encode()
        return body + hmac.digest(self._key, body, DIGEST)


class Opener:
    """Opens what one process sealed, in order."""

    def __init__(self, key: bytes, process_id: int) -> None:
        self._key = session_key(key, b"process", str(process_id).encode())
        self._next = 0

    def open(self, data: bytes) -> Message:
        """Check digest and number. Raises: MessageError if one of them is wrong."""
        if len(data) < HEADER.size + DIGEST_BYTES:
            raise MessageError(f"a message must have at least {HEADER.size + DIGEST_BYTES} bytes, got {len(data)}")
        body, digest = memoryview(data)[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        kind, runner, bucket, number = HEADER.unpack_from(body)
        if not hmac.compare_digest(digest, hmac.digest(self._key, body, DIGEST)):
            raise MessageError(f"message {number} must be as it was sealed, got another digest")
        message = Message(Kind(kind), runner, bucket, number, bytes(body[HEADER.size :]))
        if message.kind is not Kind.FAILED:
            if number != self._next:
                raise MessageError(f"message {self._next} must come next, got {number}")
            self._next += 1
        return message
