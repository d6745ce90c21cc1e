"""A plan in the making: what is left of the budget, the slots and the pages after each chunk. Policies add to it; it changes no request and no page."""

from collections.abc import Iterable, Sequence

from sarathi_jax.scheduling.policy import Plan, View
from sarathi_jax.scheduling.request import Request, RequestState


class PlanRound:
    """The next step so far. A policy makes one for each plan, adds decodes and prefills in its own order, and takes the plan.

    Running requests are visited by priority, the lowest number first, and of one priority from the oldest on. When a decode finds no page, the last of them
    loses its own, whatever it is doing, the asking one included; so a victim is never one that this plan has passed already.

    does_split_prompts: whether a prompt may be read over several steps. If not, a waiting request comes in only where the budget holds all that it has.
    does_reserve_max_len: whether an admitted request takes the pages of the longest request there may be, so that it never asks for more; admissions then
      need no watermark.
    does_chain_chunks: whether a prompt's next chunk may go into a pipeline behind one that is under way. Each stage has computed the one before when it comes to it.
    victims: running requests that lose their pages whatever else is planned.
    """

    def __init__(
        self,
        view: View,
        *,
        does_split_prompts: bool = True,
        does_reserve_max_len: bool = False,
        does_chain_chunks: bool = False,
        victims: Sequence[Request] = (),
    ) -> None:
        self._view = view
        self._limits = limits = view.limits
        self._pages = view.ledger()
        self._victims = victims
        self._running = [each for each in view.running if each not in victims] if victims else view.running
        for victim in victims:
            self._pages.release(victim)
        self._num_tokens_left = limits.token_budget
        self._num_kept = len(self._running)
        self._num_free_slots = view.num_free_slots
        self._num_partial_prefills = 0
        self._does_split_prompts = does_split_prompts
        self._does_chain_chunks = does_chain_chunks
        self._num_reserved_tokens = limits.max_model_len if does_reserve_max_len else 0
        self._has_prefill = False
        self._decodes: list[Request] = []
        self._prefills: list[tuple[Request, int]] = []
        self._admitted: list[Request] = []

    @property
    def is_empty(self) -> bool:
        """Whether the step has no chunk yet."""
        return not self._decodes and not self._prefills

    @property
    def decodes(self) -> list[Request]:
        """Those that were added."""
        return self._decodes

    @property
    def may_admit(self) -> bool:
        """Whether anybody may come in: nobody has to go, and there are a slot and a page. Whoever just lost its pages would be next; letting anyone in now
        would undo the preemption."""
        return self._num_kept == len(self._view.running) and self._num_free_slots > 0 and self._pages.num_available > 0

    def limit_tokens(self, num_tokens: int) -> None:
        """Let the step hold at most so many tokens, the decodes' included; before prefills are added."""
        self._num_tokens_left = min(self._num_tokens_left, num_tokens - len(self._decodes))

    def plan(self) -> Plan:
        preempted = self._running[self._num_kept :][::-1]
        if self._victims:
            preempted = sorted((*preempted, *self._victims), key=lambda request: request.order, reverse=True)
        return Plan(
            self._prefills, self._admitted, preempted, self._num_reserved_tokens, self._has_prefill, self._decodes
        )

    def add_decodes(self) -> list[Request]:
        """One token for every decode. Returns: running requests that still read their prompt."""
        running, under_way, prefilling, left_out = self._running, self._view.under_way, list[Request](), list[int]()
        # Only these need a look: they read, need a page, have their last token in flight, or are under way. All others just go on.
        apart = [place for place, each in enumerate(running) if each.num_computed_tokens >= each.smooth_until]
        if under_way:
            apart = sorted({*apart, *[place for place, each in enumerate(running) if each in under_way]})
        max_decodes = self._max_decodes(apart) if self._limits.num_microbatches > 1 else self._limits.token_budget
        for place in apart:
            if place >= self._num_kept:
                break
            request = running[place]
            is_reading, is_under_way = request.num_computed_tokens < request.num_prefill_tokens, request in under_way
            if is_reading and (self._does_chain_chunks or not is_under_way):
                prefilling.append(request)
            # Not if it is another microbatch's, or its last token is in flight.
            may_decode = not is_reading and not is_under_way and request.num_tokens < request.max_num_tokens
            has_room = place - len(left_out) < max_decodes
            has_page = request.num_computed_tokens < request.num_reserved_tokens
            if not (may_decode and has_room and (has_page or self._found_page(place))):
                left_out.append(place)
        self._decodes += running[: self._num_kept]
        for place in reversed(left_out):
            del self._decodes[place : place + 1]  # one that found no page is gone already
        del self._decodes[max_decodes:]
        self._num_tokens_left -= len(self._decodes)
        return prefilling

    def _max_decodes(self, apart: Sequence[int]) -> int:
        """Decodes of one step of a pipeline: an even share for each microbatch, so that none holds up the others. apart: places of those that may be none."""
        others = [self._running[place] for place in apart]
        num_others = sum([each.is_prefilling or each.num_remaining_tokens == 0 for each in others])
        share = -(-(len(self._running) - num_others) // self._limits.num_microbatches)
        return min(share, self._limits.token_budget)

    def _found_page(self, place: int) -> bool:
        """Take a page for the decode at this place, preempting from the last one on. Returns: False if it had to go itself."""
        pages = self._pages
        while not pages.num_available:
            self._num_kept -= 1
            pages.release(self._running[self._num_kept])
            if self._num_kept == place:
                return False
        pages.num_available -= 1
        return True

    def prefilling(self) -> list[Request]:
        """Running requests that still read their prompt, and are in no microbatch under way."""
        under_way = self._view.under_way
        return [
            request for request in self._running[: self._num_kept] if request.is_prefilling and request not in under_way
        ]

    def add_partial_prefills(self, prefilling: Iterable[Request]) -> None:
        """What is left of the budget goes to them in this order."""
        for request in prefilling:
            self._add_prefill(request, request.num_tokens - request.num_computed_tokens)

    def add_waiting(self, waiting: Iterable[Request]) -> None:
        """Admit requests, in this order, while budget, slots and pages last. With the budget gone no older prefill can be behind a newer one."""
        if not self.may_admit:
            return
        for request in waiting:
            if self._num_tokens_left <= 0 or len(self._admitted) >= self._num_free_slots:
                break
            if not self._admit(request) and self._limits.is_head_of_line_blocking:
                break

    def add_prompts(self, requests: Sequence[Request]) -> None:
        """Go on with partial prefills and admit requests, all in this one order. Where one that waits does not fit, those that wait behind it may have to as well."""
        may_admit, is_limited = self.may_admit, self._limits.max_num_partial_prefills is not None
        if is_limited:  # those that are still to come count too
            self._num_partial_prefills += sum(each.state is RequestState.RUNNING for each in requests)
        for request in requests:
            if self._num_tokens_left <= 0:
                break
            if request.state is RequestState.RUNNING:
                self._num_partial_prefills -= is_limited
                self._add_prefill(request, request.num_tokens - request.num_computed_tokens)
            elif may_admit and len(self._admitted) < self._num_free_slots:
                may_admit = self._admit(request) or not self._limits.is_head_of_line_blocking

    def _admit(self, request: Request) -> bool:
        """Plan a waiting request's first chunk if it may run and fits. Returns: whether it does."""
        # Nothing running: nobody needs room to grow, and a request of the pool's size has to get in some time.
        needs_watermark = (self._num_kept or self._admitted) and not self._num_reserved_tokens
        num_free_pages = self._pages.num_available - (self._limits.num_watermark_pages if needs_watermark else 0)
        # At least one page is new, whatever is cached: a full pool spares looking for a long prompt's pages at every step.
        if request.num_late_rows or num_free_pages < 1:
            return False
        prefix = self._view.find_prefix(request)
        num_remaining_tokens = request.num_tokens - len(prefix) * self._limits.page_size
        if not self._may_add_prefill(num_remaining_tokens):
            return False
        num_tokens = max(request.num_tokens, self._num_reserved_tokens)
        num_new_pages = self._limits.num_pages_for(num_tokens) - len(prefix)
        if num_new_pages + self._pages.num_idle(prefix) > num_free_pages:
            return False
        self._pages.claim(prefix)
        self._pages.take(num_new_pages)
        self._admitted.append(request)
        self._add_prefill(request, num_remaining_tokens)
        return True

    def _may_add_prefill(self, num_remaining_tokens: int) -> bool:
        is_partial = self._chunk_tokens(num_remaining_tokens) < num_remaining_tokens
        if not self._does_split_prompts:
            return not is_partial
        limit = self._limits.max_num_partial_prefills
        return not is_partial or limit is None or self._num_partial_prefills < limit

    def _chunk_tokens(self, num_remaining_tokens: int) -> int:
        threshold = self._limits.long_prefill_token_threshold if self._does_split_prompts else None
        return min(num_remaining_tokens, self._num_tokens_left, threshold or num_remaining_tokens)

    def _add_prefill(self, request: Request, num_remaining_tokens: int) -> None:
        num_tokens = self._chunk_tokens(num_remaining_tokens)
        self._num_partial_prefills += num_tokens < num_remaining_tokens
        if num_tokens > 0:
            self._prefills.append((request, num_tokens))
            self._num_tokens_left -= num_tokens
            self._has_prefill = True
