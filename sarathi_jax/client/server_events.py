"""A stream of server-sent events (HTML standard, section 9.2) cut into its messages, from pieces of any size."""

from collections.abc import Iterator


class EventReader:
    """Gives each event's data. Comments, ids and names of events are passed over: no OpenAI-compatible server says anything with them alone."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of the events that end in this piece."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data = []
