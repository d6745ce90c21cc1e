"""Who gets into a group, and who does not."""

import contextlib
import multiprocessing.connection
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from sarathi_jax.errors import ConfigError, GroupError
from sarathi_jax.group import link
from sarathi_jax.group.admission import admit, join
from sarathi_jax.group.launch import free_port
from sarathi_jax.group.place import LOOPBACK, Place

KEY = b"a key that both sides have"


def start(num_processes: int, **options: Any) -> tuple[Place, "Future[Any]"]:
    """Process 0's place, and what becomes of letting the others in."""
    place, pool = Place(num_processes, 0, LOOPBACK, free_port()), ThreadPoolExecutor(1)
    future = pool.submit(admit, place, KEY, **options)
    pool.shutdown(wait=False)
    return place, future


def joined(place: Place, process_id: int, key: bytes = KEY, num_processes: int | None = None) -> Any:
    return join(Place(num_processes or place.num_processes, process_id, LOOPBACK, place.port), key, 5.0)


def test_all_know_all_and_have_one_key() -> None:
    place, leading = start(4)
    with ThreadPoolExecutor(3) as pool:
        others = list(pool.map(lambda each: joined(place, each), [3, 1, 2]))
    first = leading.result(5)
    assert [member.process_id for member in first.members] == [0, 1, 2, 3]
    assert all(other.members == first.members and other.session == first.session for other in others)
    assert sorted(first.links) == [1, 2, 3]


def test_two_starts_have_different_keys() -> None:
    sessions = []
    for _ in range(2):
        place, leading = start(2)
        joined(place, 1)
        sessions.append(leading.result(5).session)
    assert sessions[0] != sessions[1]


def test_another_key_is_refused_and_the_group_still_comes_together() -> None:
    place, leading = start(2)
    with pytest.raises(
        ConfigError, match=f"Process 0, at {LOOPBACK}:{place.port}, must have this group's key, got Auth"
    ):
        joined(place, 1, b"a key that others have")
    joined(place, 1)
    assert len(leading.result(5).members) == 2


def test_strangers_who_stay_hold_up_nobody() -> None:
    """Five say nothing, and one says that it will say much, and does so slowly."""
    place, leading = start(2)
    time.sleep(0.1)
    silent = [socket.create_connection((LOOPBACK, place.port)) for _ in range(6)]
    silent[0].sendall(b"\x00\x00\x01\x00d")
    start_s = time.monotonic()
    joined(place, 1)
    assert len(leading.result(5).links) == 1
    assert time.monotonic() - start_s < 2.0
    for each in silent:
        each.close()


def test_a_stranger_is_shut_out_in_time_however_slowly_it_talks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "HANDSHAKE_LIMIT_S", 1)
    with link.listen(LOOPBACK, 0) as server, socket.create_connection(server.getsockname()) as slow:
        end = link.accept(server, 5.0)
        assert end is not None
        with ThreadPoolExecutor(1) as pool:
            hearing = pool.submit(link.hear_first, end, KEY)
            start_s = time.monotonic()
            slow.sendall(b"\x00\x00\x01\x00")
            while not hearing.done() and time.monotonic() - start_s < 5.0:
                time.sleep(0.2)
                with contextlib.suppress(OSError):
                    slow.sendall(b"d")
            assert hearing.result() is None
    assert time.monotonic() - start_s < 2.5


@pytest.mark.parametrize("host", ["0", "0.0", "::0"])
def test_all_addresses_are_refused_under_any_name(host: str) -> None:
    with pytest.raises(ConfigError, match=f"must name one address of process 0's host, got {host}:0, which means all"):
        link.listen(host, 0)


def test_strangers_are_sent_away() -> None:
    """One that says nothing, one that says something else, one that answers the challenge with nonsense."""
    place, leading = start(2)
    address = (LOOPBACK, place.port)
    time.sleep(0.1)
    with socket.create_connection(address) as hasty, socket.create_connection(address) as talker:
        hasty.shutdown(socket.SHUT_WR)
        talker.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with closing(multiprocessing.connection.Client(address)) as guesser:
            assert guesser.recv_bytes().startswith(b"#CHALLENGE#")
            guesser.send_bytes(b"{sha256}" + bytes(32))
            assert guesser.recv_bytes() == b"#FAILURE#"
        joined(place, 1)
    assert len(leading.result(5).links) == 1


@pytest.mark.parametrize(
    ("process_id", "num_processes", "text"),
    [
        (1, 3, "Process 1 of 3 must belong to process 0's group, got one of 2: pass the same num_processes"),
        (5, 2, "Process 5 of 2 must belong to process 0's group"),
        (0, 2, "Process 0 of 2 must belong"),
    ],
)
def test_a_wrong_number_is_refused(process_id: int, num_processes: int, text: str) -> None:
    place, leading = start(2)
    with pytest.raises(ConfigError, match=text):
        joined(place, process_id, num_processes=num_processes)
    joined(place, 1)
    leading.result(5)


def test_a_number_is_given_to_one_process_while_that_is_there() -> None:
    place, leading = start(3)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(joined, place, 1)
        time.sleep(0.3)
        with pytest.raises(ConfigError, match=r"must be given to one process only, got 1 for process 1 \(host"):
            joined(place, 1)
        joined(place, 2)
        assert len(leading.result(5).members) == len(first.result(5).members) == 3


def test_who_is_missing_is_named() -> None:
    place, leading = start(4, limit_s=0.5)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(joined, place, 2)
        with pytest.raises(GroupError, match=r"All 4 processes must join at .* within 0 s, got none of \[1, 3\]"):
            leading.result(5)
        with pytest.raises(ConfigError, match=r"All 4 processes must join at .*, got none of \[1, 3\]"):
            waiting.result(5)


def test_waiting_stops_when_it_is_told_to() -> None:
    def check() -> None:
        raise GroupError("a started process has ended")

    with pytest.raises(GroupError, match="a started process has ended"):
        start(2, check=check)[1].result(5)


def test_nobody_listens() -> None:
    place = Place(2, 1, LOOPBACK, free_port())
    with pytest.raises(GroupError, match=f"Process 0 must listen at {LOOPBACK}:{place.port} within 0 s, got .*refused"):
        join(place, KEY, 0.2)


def test_an_address_that_is_not_this_hosts() -> None:
    with pytest.raises(ConfigError, match=r"The coordinator 192\.0\.2\.1:7700 must be an address of process 0's host"):
        admit(Place(2, 0, "192.0.2.1", 7700), KEY)


def test_it_listens_at_its_address_alone() -> None:
    place, leading = start(2)
    time.sleep(0.1)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", place.port), 1):
        pass
    joined(place, 1)
    leading.result(5)
