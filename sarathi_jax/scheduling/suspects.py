"""Which request makes steps fail: after a second failure its suspects are halved, again and again, until one is left. Knows nothing of queues or of the device.

A request that was in a failed step is under suspicion until it has brought a token. If it is in one that fails again, a *hunt* begins: half of those who were in
both are tried, and all other suspects wait, as does whoever has not shown that it does no harm. A group that fails is halved; of one whose members all bring a
token nobody was it, so the other half is tried next. Whoever fails with no other suspect beside it is *accused*, and waits until all others have been tried.
It ends once a step without it has gone well, which shows that the device works; if one without it failed as well, it is tried again first.

Chance is not to cost anybody its request: nobody is accused before it was in MIN_FAILURES failures that no other one is accused for; and who was in steps that
went well, as with the first chunks of its prompt, only at the NUM_TRIES-th failure of a step in which it is the only suspect.

If every step fails, whoever is in it, the hunt is given up, and nobody ends. A request that is alone has nobody to show that the device works: it ends, and the
hunt is given up if the next one fares no better.

While a hunt is on, only one step may be in flight, so that it is known who was in the one that failed.
"""

from collections.abc import Iterable, Sequence

from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.token_output import TokenOutput

MAX_FAILURES_IN_A_ROW = 3  # without a hunt; one has room for several that are to blame
MIN_FAILURES = 4  # since the last token
NUM_TRIES = 4


class Suspects:
    """Told of every step that failed or went well.

    is_hunting: whether `may_run` holds anybody back. is_hopeless: the failure before was one too many; everything is forgotten then.
    """

    def __init__(self) -> None:
        self.is_hunting = False
        self.is_hopeless = False
        # In these failures, and no token since; in the order of suspicion. Of failures that another one is accused for, nobody else is suspected.
        self._unproven: dict[Request, set[int]] = {}
        self._num_all_failures = 0
        self._proven: set[Request] = set()
        self._tried: list[Request] = []
        self._rest: list[Request] = []  # the other half: it was one of them if none of those tried
        self._later: list[list[Request]] = []
        self._accused: list[Request] = []
        self._again: list[Request] = []  # were accused, and then a step without them failed, too
        self._num_tries = 0
        self._was_well = False  # those that are tried were in a step that went well
        self._num_failures = 0
        self._max_failures = MAX_FAILURES_IN_A_ROW
        self._is_doubtful = False  # the last one that ended had nobody to show that the device works

    @property
    def is_watching(self) -> bool:
        """Whether steps that go well matter."""
        return bool(self._num_failures or self._unproven or self.is_hunting or self._is_doubtful)

    def may_run(self, request: Request) -> bool:
        """Whether a hunt lets this one be planned."""
        if not self.is_hunting:
            return True
        if self._tried:
            return request in self._tried or request in self._proven
        return request not in self._accused and request not in self._again

    def failed(self, requests: Sequence[Request], live: Iterable[Request]) -> list[Request]:
        """A step failed. requests: who was in it, or in one behind it. live: who may still run, all in all. Returns: who has to end for it."""
        self.is_hopeless = False
        self._num_failures += 1
        present = [request for request in requests if not request.is_finished]
        repeated = [request for request in self._unproven if request in present]
        self._num_all_failures += 1
        for request in repeated:
            self._unproven[request].add(self._num_all_failures)
        if self.is_hunting:
            self._narrow(present)
        elif repeated:
            self.is_hunting = True
            self._split(repeated)
        else:
            self._proven.difference_update(present)
        fresh = [request for request in present if request not in self._proven and request not in self._unproven]
        self._unproven |= {request: {self._num_all_failures} for request in fresh}
        if self.is_hunting:
            needed = MAX_FAILURES_IN_A_ROW + 2 + 4 * (len(self._unproven) - 1).bit_length()
            self._max_failures = max(self._max_failures, needed)
        if self._accused and all(request in self._accused for request in live):
            if len(self._accused) == 1 and not self._is_doubtful:
                return self._end_lone()
            self._give_up()
        elif self._num_failures >= self._max_failures:
            self._give_up()
        return []

    def succeeded(self, requests: Sequence[Request], outputs: Iterable[TokenOutput]) -> list[Request]:
        """A step went well; to be told while `is_watching`. requests: who was in it. outputs: what it brought.

        Returns: who has to end, since it goes well without them.
        """
        self._num_failures, self._is_doubtful = 0, False
        self._was_well = self._was_well or any(request in requests for request in self._tried)
        for request in [output.request for output in outputs if output.token_id is not None]:
            self._unproven.pop(request, None)
            if not request.is_finished:
                self._proven.add(request)
        self._tried = [request for request in self._tried if request in self._unproven]
        guilty: list[Request] = []
        if not (self._tried or self._rest or any(self._later)):
            guilty, self._accused = self._accused, []
            for request in guilty:
                self._unproven.pop(request, None)
        self._settle()
        return guilty

    def left(self, request: Request) -> None:
        """It has ended."""
        self._unproven.pop(request, None)
        self._proven.discard(request)
        for group in (self._tried, self._rest, self._accused, self._again, *self._later):
            if request in group:
                group.remove(request)

    def advance(self, live: Iterable[Request]) -> None:
        """Before a step is planned: try the next ones, if there are none to be tried. live: as in `failed`."""
        if self.is_hunting and not self._tried:
            self._take_next()
            blamed = [*self._again, *self._accused]
            if not self._tried and blamed and all(request in blamed for request in live):
                self._try([(self._again or self._accused).pop(0)])  # nobody else can show that the device works
            self._settle()

    def _narrow(self, present: Sequence[Request]) -> None:
        """A step of a hunt failed."""
        suspects = [request for request in self._tried if request in present]
        if not suspects:  # those who did no harm do now
            self._proven.difference_update(present)
            self._later.append(list(present))
            self._doubt()
            return
        self._later += [[request for request in self._tried if request not in suspects], self._rest]
        num_tries = self._num_tries + 1 if len(self._tried) == 1 else 1
        is_chance = len(self._unproven[suspects[0]]) < MIN_FAILURES or (self._was_well and num_tries < NUM_TRIES)
        self._tried, self._rest = [], []
        self._doubt()
        if len(suspects) > 1:
            self._split(suspects)
        elif is_chance:
            self._try(suspects, num_tries)
        else:
            self._accuse(suspects[0])
            self._take_next()

    def _accuse(self, request: Request) -> None:
        self._accused = [request]
        explained = self._unproven[request]
        self._unproven |= {other: each - explained for other, each in self._unproven.items() if other is not request}

    def _doubt(self) -> None:
        """A step without those who are accused failed: it need not have been them."""
        self._again += self._accused
        self._accused = []

    def _split(self, group: Sequence[Request]) -> None:
        half = (len(group) + 1) // 2
        self._try(group[:half])
        self._rest = list(group[half:])

    def _try(self, group: Sequence[Request], num_tries: int = 0) -> None:
        self._tried, self._num_tries, self._was_well = list(group), num_tries, False

    def _take_next(self) -> None:
        self._later = [group for group in self._later if group]
        if self._rest:
            self._split(self._rest)
        elif self._later and (self._accused or self._again):
            self._try(self._later.pop())  # the smallest first: what matters is one that goes well
        elif self._later:
            self._try([request for group in self._later for request in group])
            self._later = []
        elif self._again and not self._accused:
            self._try([self._again.pop(0)])

    def _settle(self) -> None:
        """The hunt ends when nobody is left to be tried."""
        groups = (self._tried, self._rest, self._accused, self._again, *self._later)
        if self.is_hunting and not any(groups):
            self.is_hunting, self._max_failures = False, MAX_FAILURES_IN_A_ROW
        if not self.is_hunting and not self._unproven:
            self._proven.clear()

    def _end_lone(self) -> list[Request]:
        guilty = self._accused
        self._forget()
        self._is_doubtful = True
        return guilty

    def _give_up(self) -> None:
        self._forget()
        self.is_hopeless, self._is_doubtful = True, False

    def _forget(self) -> None:
        self.is_hunting, self._num_failures, self._max_failures = False, 0, MAX_FAILURES_IN_A_ROW
        self._unproven, self._proven = {}, set()
        self._tried, self._rest, self._later, self._accused, self._again = [], [], [], [], []
