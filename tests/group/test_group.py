"""A group at work: calls in order, values exchanged, and its end, whoever brings it about. Its processes are threads here."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sarathi_jax.errors import ConfigError, GroupError
from sarathi_jax.group.loss import Loss
from sarathi_jax.group.member import check_same
from sarathi_jax.group.messages import Kind
from sarathi_jax.group.silence import Silence

HOST = socket.gethostname()


def soon(condition: Callable[[], Any], limit_s: float = 5.0) -> float:
    """Wait until something holds. Returns: how long that took."""
    start_s = time.monotonic()
    while not condition():
        assert time.monotonic() - start_s < limit_s, "it does not come to hold"
        time.sleep(0.005)
    return time.monotonic() - start_s


def test_calls_reach_every_follower_in_order(make_rig: Any) -> None:
    rig = make_rig(3)
    numbers = [rig.leader.call(Kind.STEP, bytes([each]), bucket=each) for each in range(200)]
    for follower in rig.followers:
        messages = [follower.next_call() for _ in range(200)]
        assert [message.number for message in messages] == numbers
        assert [(message.bucket, message.payload) for message in messages] == [(n, bytes([n])) for n in range(200)]


def test_large_messages_pass(make_rig: Any) -> None:
    rig, payload = make_rig(2), bytes(range(256)) * 2**16
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(rig.leader.call, Kind.STEP, payload)
        assert rig.followers[0].next_call().payload == payload
        sent.result(5)


def test_values_are_exchanged_among_all(make_rig: Any) -> None:
    rig = make_rig(3)
    with ThreadPoolExecutor(3) as pool:
        for topic in ("pages", "seconds"):
            work = [
                pool.submit(each.exchange, topic, [each.me.process_id, topic]) for each in (rig.leader, *rig.followers)
            ]
            assert [each.result(5) for each in work] == [[[0, topic], [1, topic], [2, topic]]] * 3


def test_what_differs_is_named_everywhere(make_rig: Any) -> None:
    rig = make_rig(3)
    facts = [{"page_size": "16", "jax": "1"}, {"page_size": "16", "jax": "1"}, {"page_size": "32", "jax": "1"}]
    with ThreadPoolExecutor(3) as pool:
        work = [
            pool.submit(check_same, each, "options", fact)
            for each, fact in zip((rig.leader, *rig.followers), facts, strict=True)
        ]
        for each in work:
            with pytest.raises(
                ConfigError, match=r"must have the same page_size, got 16 in process 0 \(.*\) and 32 in process 2 \("
            ):
                each.result(5)


def test_what_is_missing_is_named(make_rig: Any) -> None:
    rig = make_rig(2)
    with ThreadPoolExecutor(2) as pool:
        work = pool.submit(check_same, rig.leader, "options", {"jax": "1"})
        with pytest.raises(ConfigError, match=r"the same zlib, got None in process 0 .* and 2 in process 1"):
            check_same(rig.followers[0], "options", {"jax": "1", "zlib": "2"})
        with pytest.raises(ConfigError):
            work.result(5)


def ended_by(rig: Any, process_id: int, reason: str) -> None:
    """Everybody who waits gets the same error, and later calls do too."""
    waiting = rig.leader.loss.future()
    others = [each for each in rig.followers if each.me.process_id != process_id]
    rule = rf"A group lives as long as all its processes, got no more of process {process_id} \(host {HOST}, pid \d+\): {reason}"
    with pytest.raises(GroupError, match=rule):
        waiting.result(5)
    with pytest.raises(GroupError, match=rule):
        rig.leader.call(Kind.STEP)
    with pytest.raises(GroupError, match=rule):
        rig.leader.exchange("topic", 1)
    soon(lambda: all(each.loss.error for each in others) and len(rig.losses) >= len(others))
    assert {str(each) for each in rig.losses} == {str(rig.leader.loss.error)}
    for follower in others:
        with pytest.raises(GroupError, match=rule):
            follower.next_call()
    rig.leader.close()  # at once


def test_a_closed_connection_ends_the_group(make_rig: Any) -> None:
    rig = make_rig(4)
    rig.followers[1]._is_over.set()
    rig.followers[1]._link.shut()
    ended_by(rig, 2, r"its connection is closed\. Start the group again\.")


def test_a_followers_error_ends_the_group(make_rig: Any) -> None:
    rig = make_rig(3)
    rig.followers[0].fail(ValueError("the disk is full"))
    ended_by(rig, 1, r"the disk is full\. Start the group again\.")


def test_the_leaders_error_ends_the_group(make_rig: Any) -> None:
    rig = make_rig(3)
    rig.leader.fail(ValueError("no such model"))
    ended_by(rig, 0, r"no such model\. Start")


def silence(follower: Any) -> None:
    """It is there, and says nothing more."""
    follower._say = lambda *_: None


def test_a_silent_follower_ends_the_group_in_time(make_rig: Any) -> None:
    rig = make_rig(3, patience_s=1.0)
    rig.leader.mark_ready()
    silence(rig.followers[1])
    seconds = soon(lambda: rig.leader.loss.error)
    assert 0.4 < seconds < 1.5
    ended_by(rig, 2, r"nothing was heard of it for 1\.\d s")


def test_a_silent_leader_is_noticed_by_its_followers(make_rig: Any) -> None:
    rig = make_rig(3, patience_s=1.0)
    rig.leader.mark_ready()
    rig.leader._is_over.set()  # its beats stop
    assert soon(lambda: len(rig.losses) == 2) < 1.6
    assert all("got no more of process 0 (host" in str(each) for each in rig.losses)


def test_a_leader_that_is_gone_is_noticed_at_once(make_rig: Any) -> None:
    rig = make_rig(3)
    rig.leader._is_over.set()
    for each in rig.leader._followers:
        each.link.shut()
    assert soon(lambda: len(rig.losses) == 2) < 1.0
    assert all("(host" in str(each) and "its connection is closed" in str(each) for each in rig.losses)


def test_a_step_that_does_not_end_somewhere_ends_the_group(make_rig: Any) -> None:
    rig = make_rig(3, step_limit_s=0.5)
    number = rig.leader.start_step(b"", None, {0, 1, 2}, runner=0, bucket=0)
    rig.leader.end_step(number)
    rig.followers[1].end_step(number)
    ended_by(rig, 1, rf"step message {number} must run everywhere within 0 s, and has not there")


def test_steps_that_end_in_time_end_nothing(make_rig: Any) -> None:
    rig = make_rig(2, step_limit_s=0.5)
    for _ in range(8):
        number = rig.leader.start_step(b"", None, {0, 1}, runner=0, bucket=0)
        rig.followers[0].end_step(rig.followers[0].next_call().number)
        rig.leader.end_step(number)
        time.sleep(0.1)
    assert rig.leader.loss.error is None
    soon(lambda: not rig.leader._steps)


def test_words_come_from_the_process_that_has_them(make_rig: Any) -> None:
    """Of a step that the leader has no part in."""
    rig = make_rig(3)
    words = rig.leader.loss.future()
    number = rig.leader.start_step(b"", words, {1, 2}, runner=1, bucket=0)
    rig.followers[1].end_step(number)
    rig.followers[0].end_step(number, b"seven words")
    assert words.result(5) == b"seven words"
    soon(lambda: not rig.leader._steps)


def test_a_forged_message_ends_the_group(make_rig: Any) -> None:
    rig = make_rig(2)
    rig.leader._followers[0].link.send(bytes(100))
    soon(lambda: rig.losses)
    assert "message 0 must be as it was sealed, got another digest" in str(rig.losses[0])


def test_closing_lets_all_leave(make_rig: Any) -> None:
    rig = make_rig(3)

    def follow(follower: Any) -> Kind:
        kind = follower.next_call().kind
        follower.leave()
        follower._link.shut()
        return kind

    with ThreadPoolExecutor(2) as pool:
        work = [pool.submit(follow, each) for each in rig.followers]
        rig.leader.close()
        rig.leader.close()
        assert [each.result(5) for each in work] == [Kind.CLOSE] * 2
    time.sleep(0.2)
    assert (rig.leader.loss.error, rig.losses) == (None, [])


def test_only_the_first_reason_counts(make_rig: Any) -> None:
    rig = make_rig(3)
    rig.leader.lose(rig.leader.members[2], "first")
    rig.leader.lose(rig.leader.members[1], "second")
    ended_by(rig, 2, "first")


def test_work_gives_its_result_or_its_error() -> None:
    loss = Loss()
    assert loss.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        loss.run(lambda: 1 // 0)
    assert not loss._waiting


def test_the_loss_ends_a_wait_that_nothing_else_can() -> None:
    loss, never = Loss(), threading.Event()
    threading.Timer(0.2, loss.set, [GroupError("it is over")]).start()
    start_s = time.monotonic()
    with pytest.raises(GroupError, match="it is over"):
        loss.run(never.wait)
    assert time.monotonic() - start_s < 2
    with pytest.raises(GroupError, match="it is over"):
        loss.future().result(1)
    never.set()


def test_silence_is_counted_from_the_last_word() -> None:
    now = [0.0]
    silence = Silence([1, 2], 3.0, lambda: now[0])
    for tenth in range(1, 32):
        now[0] = tenth / 10
        silence.hear(2)
        assert silence.overdue() == ([] if tenth <= 30 else [(1, 3.1)])


def test_who_was_asleep_blames_nobody() -> None:
    now = [0.0]
    silence = Silence([1], 3.0, lambda: now[0])
    now[0] = 50.0
    assert silence.overdue() == []
    for tenth in range(1, 31):
        now[0] = 50.0 + tenth / 10
        assert silence.overdue() == []
    now[0] = 53.1
    assert [process_id for process_id, _ in silence.overdue()] == [1]


def test_patience_is_shortened_from_now_on() -> None:
    now = [0.0]
    silence = Silence([1], 60.0, lambda: now[0])
    for tenth in range(1, 100):
        now[0] = tenth / 10
        assert silence.overdue() == []
    silence.shorten(3.0)
    assert silence.overdue() == []
