"""Where each live request is: waiting, running in a slot, or parked with its leader. Knows nothing of pages, plans or tokens."""

from bisect import insort
from collections import Counter
from collections.abc import Sequence

from sarathi_jax.scheduling.request import Request, RequestState
from sarathi_jax.scheduling.waiting_queue import WaitingQueue


class RequestQueues:
    """Live requests by id, the waiting ones in queue order, the running ones by priority and of one priority by arrival, and the batch slots.

    do_slots_rest: whether a slot stays its request's until the row in flight has landed, as in a pipeline, where a step reads slots when it ends.
    """

    def __init__(self, max_num_seqs: int, *, do_slots_rest: bool = False) -> None:
        self._max_num_seqs = max_num_seqs
        self._by_id: dict[str, Request] = {}
        self._waiting = WaitingQueue()
        self._running: list[Request] = []
        self._free_slots = list(range(max_num_seqs - 1, -1, -1))
        self._do_slots_rest = do_slots_rest
        self._resting_slots: dict[Request, int] = {}
        self._num_arrived = 0

    def __len__(self) -> int:
        """Live requests, parked ones included."""
        return len(self._by_id)

    @property
    def waiting(self) -> WaitingQueue:
        return self._waiting

    @property
    def running(self) -> Sequence[Request]:
        return self._running

    @property
    def num_free_slots(self) -> int:
        return len(self._free_slots)

    def get(self, request_id: str) -> Request | None:
        return self._by_id.get(request_id)

    def arrive(self, samples: Sequence[Request]) -> None:
        """A prompt's samples are live from now on: the first one at the end of its priority's queue, the others parked with it."""
        self._num_arrived += 1
        for sample in samples:
            sample.order = (sample.priority, self._num_arrived, sample.sample_index)
            self._by_id[sample.request_id] = sample
        self._waiting.put_last(samples[0])
        if len(samples) > 1:
            samples[0].parked_samples = list(samples[1:])
            for sample in samples:
                sample.samples = tuple(samples)

    def unpark(self, leader: Request) -> list[Request]:
        """A leader's parked samples enter at the front of their priority's queue, in order. Returns: them."""
        parked, leader.parked_samples = leader.parked_samples, []
        for sample in reversed(parked):
            self._waiting.put_first(sample)
        return parked

    def start(self, request: Request) -> None:
        """Waiting to running, with a slot."""
        request.enter(RequestState.RUNNING)
        self._waiting.discard(request)
        insort(self._running, request, key=lambda running: running.order)
        request.batch_slot = self._free_slots.pop()

    def stop(self, request: Request) -> None:
        """Running to the front of those who wait with its priority."""
        request.enter(RequestState.WAITING)
        self._leave_slot(request)
        self._waiting.put_first(request)

    def leave(self, request: Request) -> None:
        """An end, from wherever the request is. A leader's parked samples go on without it."""
        if request.state is RequestState.RUNNING:
            self._leave_slot(request)
        request.enter(RequestState.FINISHED)
        del self._by_id[request.request_id]
        self._waiting.discard(request)
        if request.samples and request in request.samples[0].parked_samples:
            request.samples[0].parked_samples.remove(request)
        self.unpark(request)

    def _leave_slot(self, request: Request) -> None:
        assert request.batch_slot is not None, f"{request!r} ran without a slot"
        self._running.remove(request)
        if self._do_slots_rest and request.num_late_rows:
            self._resting_slots[request] = request.batch_slot
        else:
            self._free_slots.append(request.batch_slot)
        request.batch_slot = None

    def free_rested_slots(self) -> None:
        """Slots whose requests have no row in flight any more are free again."""
        if self._resting_slots:
            for request in [each for each in self._resting_slots if not each.num_late_rows]:
                self._free_slots.append(self._resting_slots.pop(request))

    def check_integrity(self) -> None:
        """Raises: AssertionError, with a sentence, if a request is in no place or in two, or a slot is."""
        parked = [sample for request in self._by_id.values() for sample in request.parked_samples]
        places = Counter(request.request_id for request in (*self._waiting, *self._running, *parked))
        assert places == Counter(list(self._by_id)), (
            "a live request is in no queue or in two, or an ended one is in a queue"
        )
        assert all(request.state is RequestState.RUNNING for request in self._running), (
            "a request that does not run is among those that do"
        )
        assert all(request.state is RequestState.WAITING for request in (*self._waiting, *parked)), (
            "a request in a queue does not wait"
        )
        orders = [request.order for request in self._running]
        assert orders == sorted(orders), "running requests are not in their order"
        taken = [request.batch_slot for request in self._running if request.batch_slot is not None]
        assert all(request.num_late_rows for request in self._resting_slots), "a slot rests for nothing"
        assert sorted([*taken, *self._free_slots, *self._resting_slots.values()]) == list(range(self._max_num_seqs)), (
            "a batch slot is lost or given twice"
        )
