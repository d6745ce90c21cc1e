"""A process of a group that does what the first one says: takes its calls, tells when steps have run, and ends when the group does."""

import contextlib
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from sarathi_jax.errors import GroupError
from sarathi_jax.group.admission import Admitted
from sarathi_jax.group.loss import Loss
from sarathi_jax.group.member import BEAT_S, FOLLOWER_PATIENCE_S, START_PATIENCE_S
from sarathi_jax.group.messages import NUMBER, Kind, Message, MessageError, Opener, Sealer
from sarathi_jax.group.silence import WATCH_S, Silence, repeat

END_S = 1.0
CALLS = (Kind.STEP, Kind.SLOT, Kind.MASKS, Kind.RESET, Kind.RELEASE, Kind.CLOSE)


def end_process(error: GroupError) -> None:
    """Say why, and end at once: whatever waits for a device would wait for ever."""
    sys.stderr.write(f"sarathi-jax: error: {error}\n")
    sys.stderr.flush()
    os._exit(1)


class Follower:
    """This process's hold on a group that process 0 leads.

    Args:
      on_loss: called, from any thread, when the group has ended by another process's fault.
    """

    def __init__(
        self,
        admitted: Admitted,
        process_id: int,
        *,
        patience_s: float = FOLLOWER_PATIENCE_S,
        on_loss: Callable[[GroupError], None] = end_process,
    ) -> None:
        self.members, self.me = admitted.members, admitted.members[process_id]
        self.loss = Loss()
        self._link, self._opener = admitted.links[0], Opener(admitted.session, 0)
        self._sealer, self._sealing = Sealer(admitted.session, process_id), threading.Lock()
        self._silence = Silence([0], START_PATIENCE_S)
        self._patience_s, self._on_loss = patience_s, on_loss
        self._calls: queue.Queue[Message | None] = queue.Queue()
        self._values: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._is_over = threading.Event()
        threading.Thread(target=self._listen, name="group leader", daemon=True).start()
        repeat(BEAT_S, lambda: self._say(Kind.BEAT), self._is_over, "group beat")
        repeat(WATCH_S, self._watch, self._is_over, "group watch")

    def exchange(self, topic: str, value: Any) -> list[Any]:
        """See `Group`."""
        self._say(Kind.VALUES, json.dumps({"topic": topic, "value": value}).encode())
        values = self._values.get()
        self.loss.check()
        assert values is not None and values["topic"] == topic, "all processes exchange the same things in one order"
        return values["value"]

    def next_call(self) -> Message:
        """Wait for the leader's next call, of a runner, or CLOSE. Raises: GroupError if the group has ended."""
        message = self._calls.get()
        self.loss.check()
        assert message is not None
        return message

    def end_step(self, number: int, words: bytes = b"") -> None:
        """Tell that a step has run. words: what came of it, if the leader has no part in it."""
        self._say(Kind.DONE, NUMBER.pack(number) + words)

    def fail(self, error: BaseException) -> None:
        """End the group because of this process."""
        text = str(error) or type(error).__name__
        if self._end(GroupError(text)):
            with contextlib.suppress(OSError):
                self._link.send(self._sealer.seal_last(text), 1.0)
        else:
            time.sleep(END_S)  # `on_loss` has said why already, and is ending this process

    def leave(self) -> None:
        """Take leave of the leader, who has closed the group."""
        self._is_over.set()
        self._say(Kind.CLOSE)

    def _say(self, kind: Kind, payload: bytes = b"") -> None:
        with self._sealing:
            try:
                self._link.send(self._sealer.seal(kind, payload)[1])
            except OSError:
                self._lose_leader("its connection is closed")

    def _listen(self) -> None:
        while True:
            try:
                message = self._opener.open(self._link.receive())
            except (EOFError, OSError):
                return self._lose_leader("its connection is closed")
            except MessageError as error:
                return self._lose_leader(str(error))
            self._silence.hear(0)
            if message.kind is Kind.FAILED:
                return self._lose(GroupError(message.payload.decode()))
            self._take(message)

    def _take(self, message: Message) -> None:
        if message.kind in CALLS:
            self._calls.put(message)
        elif message.kind is Kind.VALUES:
            self._values.put(message.json())
        elif message.kind is Kind.READY:
            self._silence.shorten(self._patience_s)

    def _watch(self) -> None:
        for _, silent_s in self._silence.overdue():
            self._lose_leader(f"nothing was heard of it for {silent_s:.1f} s")

    def _lose_leader(self, reason: str) -> None:
        self._lose(
            GroupError(
                f"A group lives as long as all its processes, got no more of {self.members[0]}: {reason}. Start the group again."
            )
        )

    def _lose(self, error: GroupError) -> None:
        if not self._is_over.is_set() and self._end(error):
            self._on_loss(error)

    def _end(self, error: GroupError) -> bool:
        is_first = self.loss.set(error)
        if is_first:
            self._calls.put(None)
            self._values.put(None)
        return is_first
