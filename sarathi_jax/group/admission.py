"""How a group comes together: process 0 lets in whoever has the key and a free number, and when all are there, tells each who the others are."""

import contextlib
import json
import logging
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from sarathi_jax.errors import ConfigError, GroupError
from sarathi_jax.group.link import Link, accept, dial, hear_first, listen
from sarathi_jax.group.member import START_LIMIT_S, Member, this_process
from sarathi_jax.group.messages import Kind, MessageError, Opener, Sealer, session_key
from sarathi_jax.group.place import Place

logger = logging.getLogger(__name__)

PROTOCOL = 1
NONCE_BYTES = 32
ACCEPT_S = 0.2
MAX_AT_THE_DOOR = 256
SAY_WHO_IS_MISSING_S = 10.0


class Admitted(NamedTuple):
    """members: by process id. links: to every other process (of process 0), or to process 0 (of another). session: the key of all messages from here on."""

    members: list[Member]
    links: dict[int, Link]
    session: bytes


def admit(
    place: Place, key: bytes, check: Callable[[], None] = lambda: None, limit_s: float = START_LIMIT_S
) -> Admitted:
    """Let the other processes in: process 0's part.

    Args:
      check: called while waiting; stops it by raising.
      limit_s: how long to wait for all of them.
    Raises: ConfigError if it can't listen at its place; GroupError, naming who is missing, if not all come.
    """
    hellos: dict[int, dict[str, Any]] = {}
    links: dict[int, Link] = {}
    try:
        with listen(place.host, place.port) as server:
            _gather(server, place, key, hellos, links, check, limit_s)
    except BaseException as error:
        for link in links.values():
            _refuse(link, key, str(error) or type(error).__name__)
        raise
    me, nonce = this_process(0), secrets.token_hex(NONCE_BYTES)
    members = [me, *(Member(each, hellos[each]["host"], hellos[each]["pid"]) for each in sorted(hellos))]
    nonces = [nonce, *(hellos[each]["nonce"] for each in sorted(hellos))]
    welcome = json.dumps({"members": members, "nonces": nonces}).encode()
    sealed = Sealer(session_key(key, b"welcome"), 0).seal(Kind.WELCOME, welcome)[1]
    for link in links.values():
        link.send(sealed)
    return Admitted(members, links, _session(key, nonces))


def join(place: Place, key: bytes, limit_s: float = START_LIMIT_S) -> Admitted:
    """Come to process 0, and wait for the others: everybody else's part. Raises: ConfigError if one is refused; GroupError if process 0 is not there, or goes."""
    link = dial(place.host, place.port, _handshake_key(key), limit_s)
    me, nonce = this_process(place.process_id), secrets.token_hex(NONCE_BYTES)
    hello = {**me._asdict(), "num_processes": place.num_processes, "nonce": nonce, "protocol": PROTOCOL}
    link.send(Sealer(session_key(key, b"hello"), 0).seal(Kind.HELLO, json.dumps(hello).encode())[1])
    try:
        message = Opener(session_key(key, b"welcome"), 0).open(link.receive())
    except (EOFError, OSError, MessageError) as error:
        raise GroupError(
            f"Process 0, at {place.host}:{place.port}, must wait for the whole group, got its end ({error}): look at what it says, and start again."
        ) from error
    if message.kind is Kind.FAILED:
        raise ConfigError(message.payload.decode())
    welcome = message.json()
    nonces = welcome["nonces"]
    if nonces[place.process_id] != nonce:
        raise GroupError("Process 0 must answer this process, got an answer to another one: start the group again.")
    return Admitted([Member(*each) for each in welcome["members"]], {0: link}, _session(key, nonces))


def _gather(
    server: socket.socket,
    place: Place,
    key: bytes,
    hellos: dict[int, dict[str, Any]],
    links: dict[int, Link],
    check: Callable[[], None],
    limit_s: float,
) -> None:
    """Let in whoever may come, until all are there."""
    door = _Door(_handshake_key(key))
    start_s = said_s = time.monotonic()
    while len(links) < place.num_processes - 1:
        check()
        now_s = time.monotonic()
        missing = [each for each in range(1, place.num_processes) if each not in links]
        if now_s - start_s > limit_s:
            raise GroupError(
                f"All {place.num_processes} processes must join at {place.host}:{place.port} within {limit_s:.0f} s, got none of {missing}:"
                " start them with the same options, key and coordinator."
            )
        if now_s - said_s > SAY_WHO_IS_MISSING_S:
            said_s = now_s
            logger.warning("waiting at %s:%d for processes %s", place.host, place.port, missing)
        if (end := accept(server, ACCEPT_S)) is not None:
            door.open(end)
        while not door.come.empty():
            _hear(*door.come.get(), key, place, hellos, links)


class _Door:
    """Where connections wait until they have shown the key and said who they are, none for the others.

    come: links and first messages of those that have.
    """

    def __init__(self, key: bytes) -> None:
        self.come: queue.SimpleQueue[tuple[Link, bytes]] = queue.SimpleQueue()
        self._key = key
        self._room = threading.BoundedSemaphore(MAX_AT_THE_DOOR)

    def open(self, end: socket.socket) -> None:
        """Let a connection wait; one too many is closed, and may come again."""
        if not self._room.acquire(blocking=False):
            end.close()
            return
        threading.Thread(target=self._wait, args=(end,), daemon=True).start()

    def _wait(self, end: socket.socket) -> None:
        try:
            heard = hear_first(end, self._key)
        finally:
            self._room.release()
        if heard is not None:
            self.come.put(heard)


def _hear(
    link: Link, first: bytes, key: bytes, place: Place, hellos: dict[int, dict[str, Any]], links: dict[int, Link]
) -> None:
    """Take in one process, or tell it why not."""
    try:
        hello = Opener(session_key(key, b"hello"), 0).open(first).json()
    except MessageError:
        return
    process_id, reason = hello["process_id"], ""
    if hello["protocol"] != PROTOCOL:
        reason = "Every process of a group must run the same version of sarathi-jax, got another one: install the same."
    elif hello["num_processes"] != place.num_processes or not 0 < process_id < place.num_processes:
        reason = (
            f"Process {process_id} of {hello['num_processes']} must belong to process 0's group, got one of {place.num_processes}:"
            " pass the same num_processes to every process."
        )
    elif process_id in links and not links[process_id].is_over():
        other = Member(process_id, hellos[process_id]["host"], hellos[process_id]["pid"])
        reason = f"A process id must be given to one process only, got {process_id} for {other} too: number the processes from 0."
    if reason:
        _refuse(link, key, reason)
        return
    hellos[process_id], links[process_id] = hello, link


def _refuse(link: Link, key: bytes, reason: str) -> None:
    with contextlib.suppress(OSError):
        link.send(Sealer(session_key(key, b"welcome"), 0).seal_last(reason))
    link.shut()


def _handshake_key(key: bytes) -> bytes:
    return session_key(key, b"handshake")


def _session(key: bytes, nonces: list[str]) -> bytes:
    return session_key(key, b"session", *(nonce.encode() for nonce in nonces))
