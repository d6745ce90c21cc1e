"""The first process of a group: tells the others what to run, hears from each of them, and ends the group when one is lost."""

import contextlib
import json
import queue
import threading
import time
from collections.abc import Collection
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sarathi_jax.errors import GroupError
from sarathi_jax.group.admission import Admitted
from sarathi_jax.group.link import Link
from sarathi_jax.group.loss import Loss
from sarathi_jax.group.member import BEAT_S, LEADER_PATIENCE_S, START_PATIENCE_S, STEP_LIMIT_S, Member
from sarathi_jax.group.messages import NUMBER, Kind, Message, MessageError, Opener, Sealer
from sarathi_jax.group.silence import WATCH_S, Silence, repeat

CLOSE_LIMIT_S = 10.0
TELL_LIMIT_S = 0.5


@dataclass(frozen=True)
class _Follower:
    """One of the others. values: what it exchanges; None: the group is lost. has_left: it has taken leave."""

    member: Member
    link: Link
    opener: Opener
    values: "queue.Queue[dict[str, Any] | None]" = field(default_factory=queue.Queue)
    has_left: threading.Event = field(default_factory=threading.Event)


class _Step(NamedTuple):
    """A step under way. sent_s: when. processes: who has not run it. words: as `start_step`'s."""

    sent_s: float
    processes: set[int]
    words: "Future[bytes] | None"


class Leader:
    """Process 0's hold on its group. Each call goes to all followers, in one order.

    step_limit_s: a step that has not run everywhere by then ends the group.
    """

    def __init__(
        self,
        admitted: Admitted,
        *,
        patience_s: float = LEADER_PATIENCE_S,
        step_limit_s: float = STEP_LIMIT_S,
    ) -> None:
        self.members, self.me = admitted.members, admitted.members[0]
        self.loss = Loss()
        self._sealer, self._sealing = Sealer(admitted.session, 0), threading.Lock()
        self._followers = [
            _Follower(self.members[each], link, Opener(admitted.session, each))
            for each, link in sorted(admitted.links.items())
        ]
        self._silence = Silence(admitted.links, START_PATIENCE_S)
        self._patience_s, self._step_limit_s = patience_s, step_limit_s
        self._steps: dict[int, _Step] = {}
        self._counting = threading.Lock()
        self._is_over = threading.Event()
        for each in self._followers:
            threading.Thread(target=self._listen, args=(each,), name=f"group {each.member}", daemon=True).start()
        repeat(BEAT_S, self._beat, self._is_over, "group beat")
        repeat(WATCH_S, self._watch, self._is_over, "group watch")

    def call(
        self,
        kind: Kind,
        payload: bytes | memoryview = b"",
        *,
        runner: int = 0,
        bucket: int = 0,
        step: "_Step | None" = None,
    ) -> int:
        """Send one message to all followers. step: who runs it. Returns: its number. Raises: GroupError if the group has ended."""
        self.loss.check()
        with self._sealing:
            number, sealed = self._sealer.seal(kind, payload, runner=runner, bucket=bucket)
            if step is not None:
                with self._counting:
                    self._steps[number] = step
            for each in self._followers:
                try:
                    each.link.send(sealed)
                except OSError:
                    if not self._is_over.is_set():
                        self.lose(each.member, "its connection is closed")
        self.loss.check()
        return number

    def start_step(
        self,
        payload: bytes | memoryview,
        words: "Future[bytes] | None",
        processes: Collection[int],
        *,
        runner: int,
        bucket: int,
    ) -> int:
        """Send a step to all followers.

        Args:
          words: what gets the step's words, from the first process to say them; None: this process has them itself.
          processes: those that run it.
        Returns: its number, for `end_step`. Raises: GroupError if the group has ended.
        """
        step = _Step(time.monotonic(), set(processes), words)
        return self.call(Kind.STEP, payload, runner=runner, bucket=bucket, step=step)

    def end_step(self, number: int, process_id: int = 0, words: bytes = b"") -> None:
        """A process has run a step."""
        with self._counting:
            step = self._steps.get(number)
            if step is None:
                return
            step.processes.discard(process_id)
            if not step.processes:
                del self._steps[number]
        if step.words is not None and words:
            self.loss.resolve(step.words, words)

    def exchange(self, topic: str, value: Any) -> list[Any]:
        """See `Group`."""
        self.loss.check()
        values = [value]
        for each in self._followers:
            theirs = each.values.get()
            self.loss.check()
            assert theirs is not None
            if theirs["topic"] != topic:
                self.lose(each.member, f"it must tell its {topic}, got its {theirs['topic']}")
                self.loss.check()
            values.append(theirs["value"])
        self.call(Kind.VALUES, json.dumps({"topic": topic, "value": values}).encode())
        return values

    def mark_ready(self) -> None:
        """From here on requests may wait, and silence is short."""
        self.call(Kind.READY)
        self._silence.shorten(self._patience_s)

    def lose(self, member: Member, reason: str) -> None:
        """End the group because of one process, and tell the others. Only the first reason counts."""
        error = GroupError(
            f"A group lives as long as all its processes, got no more of {member}: {reason.rstrip('.')}. Start the group again."
        )
        if self.loss.set(error, lambda: self._tell(str(error))):
            for each in self._followers:
                each.values.put(None)  # whoever waits for it finds the error

    def fail(self, error: BaseException) -> None:
        """End the group because of this process."""
        self.lose(self.me, str(error) or type(error).__name__)

    def close(self) -> None:
        """Let the followers end, and wait until they take leave, for a while. Does nothing once the group has ended; idempotent."""
        if self.loss.error is None and not self._is_over.is_set():
            self.call(Kind.CLOSE)
            give_up_at_s = time.monotonic() + CLOSE_LIMIT_S
            for each in self._followers:
                each.has_left.wait(max(give_up_at_s - time.monotonic(), 0.0))
        self._is_over.set()

    def _listen(self, follower: _Follower) -> None:
        process_id = follower.member.process_id
        while not follower.has_left.is_set():
            try:
                message = follower.opener.open(follower.link.receive())
            except (EOFError, OSError):
                if not self._is_over.is_set():
                    self.lose(follower.member, "its connection is closed")
                follower.has_left.set()
                return
            except MessageError as error:
                self.lose(follower.member, str(error))
                return
            self._silence.hear(process_id)
            self._take(follower, message)

    def _take(self, follower: _Follower, message: Message) -> None:
        match message.kind:
            case Kind.DONE:
                (number,) = NUMBER.unpack_from(message.payload)
                self.end_step(number, follower.member.process_id, message.payload[NUMBER.size :])
            case Kind.VALUES:
                follower.values.put(message.json())
            case Kind.FAILED:
                self.lose(follower.member, message.payload.decode())
            case Kind.CLOSE:
                follower.has_left.set()
            case _:
                assert message.kind is Kind.BEAT, f"a follower does not say {message.kind.name}"

    def _tell(self, text: str) -> None:
        """Tell all followers of the end, and wait a little: one of them may not be able to listen."""
        last = self._sealer.seal_last(text)
        threads = [threading.Thread(target=_send_last, args=(each.link, last), daemon=True) for each in self._followers]
        give_up_at_s = time.monotonic() + TELL_LIMIT_S
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(give_up_at_s - time.monotonic(), 0.0))

    def _beat(self) -> None:
        if self.loss.error is None:
            with contextlib.suppress(GroupError):
                self.call(Kind.BEAT)

    def _watch(self) -> None:
        for process_id, silent_s in self._silence.overdue():
            if not self._is_over.is_set() and not self._has_left(process_id):
                self.lose(self.members[process_id], f"nothing was heard of it for {silent_s:.1f} s")
        with self._counting:
            number, step = next(iter(self._steps.items()), (0, None))
            is_late = step is not None and time.monotonic() - step.sent_s > self._step_limit_s
            late = self.members[max(step.processes)] if step is not None and is_late else None
        if late is not None:
            self.lose(
                late, f"step message {number} must run everywhere within {self._step_limit_s:.0f} s, and has not there"
            )

    def _has_left(self, process_id: int) -> bool:
        return any(each.has_left.is_set() for each in self._followers if each.member.process_id == process_id)


def _send_last(link: Link, last: bytes) -> None:
    with contextlib.suppress(OSError):
        link.send(last, TELL_LIMIT_S)
