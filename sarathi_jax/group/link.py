"""One connection of two processes of a group: TCP, and the handshake of `multiprocessing.connection` by which each proves to the other that it has the key.

Only that module's bytes are used: its objects would be pickled.
"""

import contextlib
import ipaddress
import multiprocessing
import os
import socket
import struct
import threading
import time
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge

from sarathi_jax.errors import ConfigError, GroupError

HANDSHAKE_LIMIT_S = 5
DIAL_AGAIN_S = 0.1
MAX_MESSAGE_BYTES = 2**30


class Link:
    """Whole messages of bytes, in order. Any number of threads may send, one may receive."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, data: bytes, timeout_s: float = -1) -> None:
        """Send a message. timeout_s: give up, and send nothing, if another thread is at it for that long. Raises: OSError if nobody receives any more."""
        if self._sending.acquire(timeout=timeout_s):
            try:
                self._connection.send_bytes(data)
            finally:
                self._sending.release()

    def receive(self) -> bytes:
        """Wait for a message. Raises: EOFError or OSError if none can come any more."""
        return self._connection.recv_bytes(MAX_MESSAGE_BYTES)

    def is_over(self) -> bool:
        """Of a process that has nothing to say: whether it has gone."""
        try:
            return self._connection.poll(0)
        except OSError:
            return True

    def shut(self) -> None:
        """End the connection; whoever waits for its messages is told."""
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address alone. Raises: ConfigError if it can't be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if ipaddress.ip_address(str(address[0]).partition("%")[0]).is_unspecified:
            raise ConfigError(
                f"The coordinator must name one address of process 0's host, got {host}:{port}, which means all of them: name the one that the others"
                " reach."
            )
        return socket.create_server(address[:2], family=family, backlog=128)
    except OSError as error:
        raise ConfigError(
            f"The coordinator {host}:{port} must be an address of process 0's host, with a free port, got {error}: choose another address or port."
        ) from error


def accept(server: socket.socket, timeout_s: float) -> socket.socket | None:
    """The next connection, of whoever it is; None: there was none in that time."""
    server.settimeout(timeout_s)
    try:
        return server.accept()[0]
    except TimeoutError:
        return None


def hear_first(end: socket.socket, key: bytes) -> tuple[Link, bytes] | None:
    """A new connection's link and first message; None: it has not the key, or took longer than HANDSHAKE_LIMIT_S for both."""
    shutter = socket.socket(fileno=os.dup(end.fileno()))
    timer = threading.Timer(HANDSHAKE_LIMIT_S, _shut, [shutter])
    timer.daemon = True
    timer.start()
    try:
        link = _shake_hands(end, key, is_server=True)
        return link, link.receive()
    except (OSError, EOFError, multiprocessing.AuthenticationError):
        return None
    finally:
        timer.cancel()
        shutter.close()


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def dial(host: str, port: int, key: bytes, limit_s: float) -> Link:
    """Connect, trying again until process 0 is there and has time. Raises: GroupError if it does not come; ConfigError if it has another key."""
    give_up_at_s = time.monotonic() + limit_s
    while True:
        try:
            return _shake_hands(socket.create_connection((host, port), timeout=HANDSHAKE_LIMIT_S), key, is_server=False)
        except multiprocessing.AuthenticationError as error:
            raise ConfigError(
                f"Process 0, at {host}:{port}, must have this group's key, got {type(error).__name__}: {error}: give every process the same key."
            ) from error
        except (OSError, EOFError) as error:
            if time.monotonic() > give_up_at_s:
                raise GroupError(
                    f"Process 0 must listen at {host}:{port} within {limit_s:.0f} s, got {type(error).__name__}: {error}: start it, and look whether the"
                    " network lets this process reach it."
                ) from error
            time.sleep(DIAL_AGAIN_S)


def _shake_hands(end: socket.socket, key: bytes, *, is_server: bool) -> Link:
    end.settimeout(None)
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _limit(end, HANDSHAKE_LIMIT_S)
    connection = Connection(os.dup(end.fileno()))
    try:
        if is_server:
            deliver_challenge(connection, key)
            answer_challenge(connection, key)
        else:
            answer_challenge(connection, key)
            deliver_challenge(connection, key)
        _limit(end, 0)
    except BaseException:
        connection.close()
        raise
    finally:
        end.close()
    return Link(connection)


def _limit(end: socket.socket, seconds: int) -> None:
    """How long the system waits for the other side in one read or write; 0: for ever."""
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        end.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))
