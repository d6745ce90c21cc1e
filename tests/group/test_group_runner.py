"""A runner over several processes, which are threads here, and whose devices are fakes: calls arrive everywhere in one order, and nobody waits for ever."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from sarathi_jax.errors import GroupError
from sarathi_jax.execution.buckets import Bucket, Variant
from sarathi_jax.execution.group_runner import LeaderRunner, follow_calls

BUCKETS = [Bucket(size, 2, False, Variant.GREEDY) for size in (4, 8, 16)]


class FakeWords:
    """A step's words, once the device lets them out."""

    def __init__(self, words: np.ndarray, gate: threading.Event, error: Exception | None) -> None:
        self.words, self.gate, self.error = words, gate, error

    def is_ready(self) -> bool:
        return self.gate.is_set()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.words


class FakeRunner:
    """Its step's words are the packed array plus the number of steps before. gate: what a step waits for."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.gate = threading.Event()
        self.gate.set()
        self.dispatch_error: Exception | None = None
        self.error: Exception | None = None

    def run_step(self, bucket: Bucket, packed: np.ndarray) -> FakeWords:
        if self.dispatch_error is not None:
            raise self.dispatch_error
        number = sum(name == "step" for name, *_ in self.calls)
        self.calls.append(("step", bucket, packed.tolist()))
        return FakeWords(packed + np.int32(number), self.gate, self.error)

    def set_slot(self, packed: np.ndarray) -> None:
        self.calls.append(("slot", packed.tolist()))

    def set_masks(self, packed: np.ndarray) -> None:
        self.calls.append(("masks", packed.tolist()))

    def reset(self) -> None:
        self.calls.append(("reset",))

    def close(self) -> None:
        self.calls.append(("close",))


class Pair:
    """A leader's runner and a follower that does what it says; `follow` is what became of that."""

    def __init__(self, rig: Any, *, has_local: bool = True) -> None:
        self.rig, self.here, self.there = rig, FakeRunner(), FakeRunner()
        processes, tellers = ((0, 1), ()) if has_local else ((1,), (3,))
        self.runner = LeaderRunner(self.here if has_local else None, rig.leader, 3, BUCKETS, processes)
        pool = ThreadPoolExecutor(1)
        self.follow = pool.submit(follow_calls, rig.followers[0], {3: self.there}, BUCKETS, tellers)
        pool.shutdown(wait=False)


@pytest.fixture
def make_pair(make_rig: Any) -> Callable[..., Pair]:
    return lambda **options: Pair(make_rig(2), **options)


def packed(*words: int) -> np.ndarray:
    return np.array(words, np.int32)


def test_calls_are_made_everywhere_in_one_order(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    first = pair.runner.run_step(BUCKETS[1], packed(1, -2, 3))
    pair.runner.set_slot(packed(7, 8))
    pair.runner.set_masks(packed(9))
    second = pair.runner.run_step(BUCKETS[2], packed(4))
    pair.runner.reset()
    assert np.asarray(second).tolist() == [5]
    assert np.asarray(first).tolist() == [1, -2, 3]
    pair.runner.close()
    pair.runner.close()
    pair.runner.reset()
    pair.rig.leader.close()
    pair.follow.result(5)
    calls = [
        ("step", BUCKETS[1], [1, -2, 3]),
        ("slot", [7, 8]),
        ("masks", [9]),
        ("step", BUCKETS[2], [4]),
        ("reset",),
        ("close",),
    ]
    assert pair.here.calls == pair.there.calls == calls


def test_steps_are_dispatched_while_others_run(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    pair.here.gate.clear()
    steps = [pair.runner.run_step(BUCKETS[0], packed(each)) for each in range(4)]
    while len(pair.here.calls) < 4 or len(pair.there.calls) < 4:
        time.sleep(0.001)
    pair.here.gate.set()
    assert [np.asarray(step).tolist() for step in steps] == [[0], [2], [4], [6]]


def test_words_may_come_from_another_process(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(has_local=False)
    steps = [pair.runner.run_step(BUCKETS[0], packed(each, 9)) for each in range(3)]
    assert [np.asarray(step).tolist() for step in steps] == [[0, 9], [2, 10], [4, 11]]
    assert pair.here.calls == []


def test_calls_of_other_runners_are_not_for_this_process(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    other = LeaderRunner(FakeRunner(), pair.rig.leader, 4, BUCKETS, (0,))
    assert np.asarray(other.run_step(BUCKETS[0], packed(5))).tolist() == [5]
    assert np.asarray(pair.runner.run_step(BUCKETS[0], packed(6))).tolist() == [6]
    pair.rig.leader.close()
    assert pair.there.calls == [("step", BUCKETS[0], [6])]


def check_end(pair: Pair, step: Any, reason: str) -> None:
    """Whoever waits for a step, or asks for another, gets the reason; closing takes no time."""
    start_s = time.monotonic()
    with pytest.raises(GroupError, match=reason):
        np.asarray(step)
    for call in (lambda: pair.runner.run_step(BUCKETS[0], packed(1)), lambda: pair.runner.set_slot(packed(1))):
        with pytest.raises(GroupError, match=reason):
            call()
    pair.runner.close()
    pair.rig.leader.close()
    assert time.monotonic() - start_s < 3


def test_a_lost_process_ends_a_wait_for_a_device_that_never_answers(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    pair.here.gate.clear()
    step = pair.runner.run_step(BUCKETS[0], packed(1))
    threading.Timer(0.2, pair.rig.followers[0]._link.shut).start()
    check_end(pair, step, r"got no more of process 1 \(.*\): its connection is closed")
    pair.here.gate.set()


@pytest.mark.parametrize("place", ["dispatch_error", "error"])
def test_a_step_that_fails_elsewhere_ends_the_group(make_pair: Callable[..., Pair], place: str) -> None:
    pair = make_pair()
    pair.here.gate.clear()  # a collective whose other end has failed
    setattr(pair.there, place, RuntimeError("RESOURCE_EXHAUSTED: no memory there"))
    step = pair.runner.run_step(BUCKETS[0], packed(1))
    check_end(pair, step, r"got no more of process 1 \(.*\): RESOURCE_EXHAUSTED: no memory there")
    with pytest.raises((GroupError, RuntimeError), match="RESOURCE_EXHAUSTED"):
        pair.follow.result(5)
    pair.here.gate.set()


@pytest.mark.parametrize("place", ["dispatch_error", "error"])
def test_a_step_that_fails_here_ends_the_group(make_pair: Callable[..., Pair], place: str) -> None:
    pair = make_pair()
    setattr(pair.here, place, RuntimeError("INTERNAL: broken here"))
    step = pair.runner.run_step(BUCKETS[0], packed(1))
    check_end(pair, step, r"got no more of process 0 \(.*\): INTERNAL: broken here")
    with pytest.raises(GroupError, match=r"process 0 .*INTERNAL: broken here"):
        pair.follow.result(5)


def test_who_is_lost_is_named_and_not_who_noticed_first(make_pair: Callable[..., Pair]) -> None:
    """Collectives fail on both sides before the connection does."""
    pair = make_pair()
    pair.here.error = pair.there.error = RuntimeError("UNKNOWN: a collective's connection is closed by its peer")
    step = pair.runner.run_step(BUCKETS[0], packed(1))
    threading.Timer(0.2, pair.rig.followers[0]._link.shut).start()
    check_end(pair, step, r"got no more of process 1 \(.*\): its connection is closed")


def test_closing_ends_when_a_process_is_lost_meanwhile(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair()
    pair.here.gate.clear()  # of a step that nobody reads
    pair.runner.run_step(BUCKETS[0], packed(1))
    threading.Timer(0.3, pair.rig.followers[0]._link.shut).start()
    start_s = time.monotonic()
    pair.runner.close()
    assert 0.2 < time.monotonic() - start_s < 3
    pair.here.gate.set()
