"""A runner whose devices belong to several processes: process 0 sends each call to the others before it makes it itself, and all run the same program.

Nobody who serves requests waits for a device here: one thread dispatches, one waits for results, and whoever wants a result waits for a future that the loss of the
group ends too.
"""

import queue
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from sarathi_jax.errors import GroupError
from sarathi_jax.execution.buckets import Bucket
from sarathi_jax.execution.device_runner import Runner, StepWords
from sarathi_jax.group.follower import Follower
from sarathi_jax.group.leader import Leader
from sarathi_jax.group.messages import Kind, Message

CLOSE_LIMIT_S = 60.0
# A step may fail because another process is lost, and before that is heard of: who is lost is to be named, not who noticed.
LEADER_GRACE_S, FOLLOWER_GRACE_S = 1.0, 0.5


class _Call(NamedTuple):
    """One call on its way to all processes. packed: of a step, a slot or masks. bucket: of a step. words: of a step."""

    kind: Kind
    packed: np.ndarray | None = None
    bucket: Bucket | None = None
    words: "Future[np.ndarray] | None" = None


class PendingWords:
    """A step's words, as soon as they are there. `np.asarray` of it waits for them. Raises: GroupError if the group ends first."""

    def __init__(self, words: "Future[np.ndarray]") -> None:
        self._words = words

    def is_ready(self) -> bool:
        return self._words.done()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._words.result(), dtype, copy=copy)


class LeaderRunner:
    """The `Runner` over the devices of several processes, in process 0. A step that fails anywhere ends the group, since the others wait for it in collectives.

    Args:
      local: over this process's part of the devices; None: it has none of them.
      number: this runner's, in the group.
      buckets: the same in all processes, in one order.
      processes: those that have a part of the devices.
    """

    def __init__(
        self,
        local: Runner | None,
        leader: Leader,
        number: int,
        buckets: Sequence[Bucket],
        processes: Collection[int],
    ) -> None:
        self._local, self._leader, self._number = local, leader, number
        self._indices = {bucket: index for index, bucket in enumerate(buckets)}
        self._processes = tuple(processes)
        self._calls: queue.Queue[_Call] = queue.Queue()
        self._running: queue.Queue[tuple[int, Future[np.ndarray], StepWords] | None] = queue.Queue()
        self._is_closed = False
        self._released: Future[None] = leader.loss.future()
        self._collecting = threading.Thread(target=self._collect, name=f"runner {number} collect", daemon=True)
        self._collecting.start()
        threading.Thread(target=self._dispatch, name=f"runner {number} dispatch", daemon=True).start()

    def run_step(self, bucket: Bucket, packed: np.ndarray) -> StepWords:
        words: Future[np.ndarray] = self._leader.loss.future()
        self._put(_Call(Kind.STEP, packed, bucket, words))
        return PendingWords(words)

    def set_slot(self, packed: np.ndarray) -> None:
        self._put(_Call(Kind.SLOT, packed))

    def set_masks(self, packed: np.ndarray) -> None:
        self._put(_Call(Kind.MASKS, packed))

    def reset(self) -> None:
        if not self._is_closed:
            self._put(_Call(Kind.RESET))

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._calls.put(_Call(Kind.RELEASE))
        with suppress(TimeoutError, GroupError):
            self._released.result(CLOSE_LIMIT_S)

    def _put(self, call: _Call) -> None:
        assert not self._is_closed, "the runner is closed"
        self._leader.loss.check()
        self._calls.put(call)

    def _dispatch(self) -> None:
        """A thread's work: send each call, then make it here."""
        try:
            while (call := self._calls.get()).kind is not Kind.RELEASE:
                if call.kind is Kind.STEP:
                    self._run_step(call)
                else:
                    self._leader.call(call.kind, _bytes(call.packed), runner=self._number)
                    if self._local is not None:
                        _make(self._local, call.kind, call.packed)
            self._leader.call(Kind.RELEASE, runner=self._number)
            self._running.put(None)
            self._collecting.join()
            if self._local is not None:
                self._local.close()
            self._leader.loss.resolve(self._released, None)
        except BaseException as error:
            self._fail(error)

    def _run_step(self, call: _Call) -> None:
        assert call.bucket is not None and call.packed is not None and call.words is not None
        words = None if self._local is not None else self._words_of_others(call.words)
        number = self._leader.start_step(
            _bytes(call.packed), words, self._processes, runner=self._number, bucket=self._indices[call.bucket]
        )
        if self._local is not None:
            self._running.put((number, call.words, self._local.run_step(call.bucket, call.packed)))

    def _words_of_others(self, words: "Future[np.ndarray]") -> "Future[bytes]":
        told: Future[bytes] = self._leader.loss.future()

        def pass_on(done: "Future[bytes]") -> None:
            if done.exception() is None:
                self._leader.loss.resolve(words, np.frombuffer(done.result(), np.int32))

        told.add_done_callback(pass_on)
        return told

    def _collect(self) -> None:
        """A thread's work: wait for each step."""
        try:
            while (running := self._running.get()) is not None:
                number, words, out = running
                value = np.asarray(out)
                self._leader.end_step(number)
                self._leader.loss.resolve(words, value)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self._leader.loss.wait(LEADER_GRACE_S):
            self._leader.fail(error)


def follow_calls(
    follower: Follower, runners: Mapping[int, Runner], buckets: Sequence[Bucket], tellers: Collection[int] = ()
) -> None:
    """Do what process 0 says until it closes the group: every other process's work.

    Args:
      runners: by number, those of which this process has a part of the devices.
      buckets: the same in all processes, in one order.
      tellers: runners whose words this process tells, since process 0 has no part in them.
    Raises: GroupError if the group ends before its time; what a runner raises.
    """
    running: queue.Queue[tuple[Message, StepWords] | None] = queue.Queue()

    def collect() -> None:
        try:
            while (step := running.get()) is not None:
                words = np.asarray(step[1])
                follower.end_step(step[0].number, words.tobytes() if step[0].runner in tellers else b"")
        except BaseException as error:
            _fail_following(follower, error)

    thread = threading.Thread(target=collect, name="follower collect", daemon=True)
    thread.start()
    while (call := follower.next_call()).kind is not Kind.CLOSE:
        if call.runner not in runners:
            continue
        packed = np.frombuffer(call.payload, np.int32)
        try:
            if call.kind is Kind.STEP:
                running.put((call, runners[call.runner].run_step(buckets[call.bucket], packed)))
            else:
                _make(runners[call.runner], call.kind, packed)
        except BaseException as error:
            _fail_following(follower, error)
            raise
    running.put(None)
    thread.join()
    follower.leave()


def _fail_following(follower: Follower, error: BaseException) -> None:
    if not follower.loss.wait(FOLLOWER_GRACE_S):
        follower.fail(error)


def _make(runner: Runner, kind: Kind, packed: np.ndarray | None) -> None:
    """Make a call that is no step."""
    if kind is Kind.SLOT:
        assert packed is not None
        runner.set_slot(packed)
    elif kind is Kind.MASKS:
        assert packed is not None
        runner.set_masks(packed)
    elif kind is Kind.RESET:
        runner.reset()
    else:
        assert kind is Kind.RELEASE, f"a runner has no call {kind.name}"
        runner.close()


def _bytes(packed: np.ndarray | None) -> bytes | memoryview:
    return b"" if packed is None else np.ascontiguousarray(packed).data
