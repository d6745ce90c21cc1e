"""The socket between front and engine: frames of a length (u32, little-endian) and that many bytes of msgpack. One place reads and writes them."""

import asyncio
import select
import socket
import struct
from collections.abc import Iterator

import msgspec

from sarathi_jax.serve.messages import ToEngine, ToFront

LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 256 * 2**20
RECEIVE_BYTES = 2**18
BUFFER_BYTES = 4 * 2**20

_encoder = msgspec.msgpack.Encoder()


class LinkError(Exception):
    """The other process has gone, or what came is not a frame."""


def frame(message: ToEngine | ToFront) -> bytes:
    """A message as it goes over the socket."""
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


class EngineLink:
    """The engine's end: a blocking socket, looked at between steps."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
        self._socket.connect(path)
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._received = bytearray()

    def send(self, message: ToFront) -> None:
        """Raises: LinkError if the front has gone."""
        try:
            self._socket.sendall(frame(message))
        except OSError as error:
            raise LinkError(str(error)) from error

    def poll(self, wait_s: float) -> list[ToEngine]:
        """Messages that have come; waits this long at most for the first. Raises: LinkError if the front has gone."""
        if not select.select([self._socket], [], [], wait_s)[0]:
            return []
        data = self._receive()
        self._received += data
        while len(data) == RECEIVE_BYTES and select.select([self._socket], [], [], 0)[0]:
            data = self._receive()
            self._received += data
        return list(self._whole_messages())

    def _receive(self) -> bytes:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            raise LinkError(str(error)) from error
        if not data:
            raise LinkError("the front has closed the connection")
        return data

    def _whole_messages(self) -> Iterator[ToEngine]:
        start, received = 0, self._received
        while len(received) - start >= LENGTH.size:
            end = start + LENGTH.size + LENGTH.unpack_from(received, start)[0]
            if len(received) < end:
                break
            yield self._decoder.decode(bytes(received[start + LENGTH.size : end]))
            start = end
        del received[:start]


class FrontLink:
    """The front's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = msgspec.msgpack.Decoder(ToFront)

    def send(self, message: ToEngine) -> None:
        """Never waits: what the engine does not take at once stays here. To an engine that has gone it goes nowhere."""
        if not self._writer.is_closing():
            self._writer.write(frame(message))

    async def receive(self) -> ToFront:
        """The next message. Raises: LinkError if the engine has gone, or sends what is no message."""
        try:
            (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
            if length > MAX_FRAME_BYTES:
                raise LinkError(f"a frame must have at most {MAX_FRAME_BYTES} bytes, got {length}")
            return self._decoder.decode(await self._reader.readexactly(length))
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            raise LinkError(str(error)) from error

    def close(self) -> None:
        self._writer.close()
