"""One request on its way: its tokens, how far it is computed, and its legal states. Knows nothing of queues or of the device.

    WAITING --admit--> RUNNING --finish--> FINISHED
       ^                  |                   ^
       |--- preempt ------'                   |
       '------------------ finish ------------'

A request is only `num_tokens - num_computed_tokens` behind. In the overlapped loop a step is scheduled while the one before is in flight; a token
that such a step samples is *pending*: it counts in `num_tokens`, stands on the device, and its value is not known here yet.

A request that runs and reads no more is one token behind at every step: a *decode*.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from enum import Enum

import numpy as np

from sarathi_jax.outputs import FinishReason
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.constraint import Constraint
from sarathi_jax.scheduling.prefix_cache import Block
from sarathi_jax.scheduling.service_levels import INTERACTIVE

# More tokens than any request has.
NEVER = 2**62
_NO_PAGES = np.empty(0, np.int32)
_NO_PAGES.flags.writeable = False


class RequestState(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


_LEGAL_NEXT = {
    RequestState.WAITING: {RequestState.RUNNING, RequestState.FINISHED},
    RequestState.RUNNING: {RequestState.WAITING, RequestState.FINISHED},
    RequestState.FINISHED: set[RequestState](),
}


class Request:
    """One sample of one prompt. Only the scheduler changes it; policies and engines read it.

    Args:
      prompt_token_ids: what to start from; at least one id (`Scheduler.add` checks).
      output_token_ids: output that it had elsewhere, and goes on after, as after a preemption. max_tokens counts it.
      max_tokens: most tokens to generate, resolved (never None).
      seed: of this sample; a token's key depends on it and on the token's position only.
      eos_token_ids: ids that end the output unless `sampling.ignore_eos`.
      cache_salt: requests share cached pages only with requests of the same salt.
      priority: the lower number is admitted first, and loses its pages last.
      constraint: which tokens may come next in its output; None: all. It goes on with each token that the request gets.
      slo_class, client: what it was promised (`scheduling.service_levels`) and who asks, for policies that look at them; `slo` does.

    order: what running requests are sorted by: priority, number of the arrival, sample.
    num_tokens: prompt and output tokens, pending ones included.
    num_given_tokens: those that it came with.
    num_computed_tokens: tokens whose keys and values are written by the steps scheduled so far.
    num_prefill_tokens: tokens there were at the last admission; until they are computed the request reads, then it decodes.
    num_reserved_tokens: tokens that its pages hold. min_reserved_tokens: those that they had to hold from its last admission on.
    next_block_end: tokens to be computed until the prefix cache is told of another page; NEVER if it is told of none.
    smooth_until: while fewer tokens are computed, a decode needs nothing but its next token: no page to be found, none that is full, no end. 0 while it reads.
    num_late_rows: scheduled rows whose result had not arrived when it stopped running, and has not yet.
    num_expected_hit_tokens: that the prefix cache held when it was queued; known where the policy learns.
    samples: where a prompt has several, all of them, the *leader* first, which reads the prompt; else ().
    parked_samples: of a leader: those in no queue yet, until the prompt's pages can be shared.
    """

    __slots__ = (
        "arrival_s",
        "batch_slot",
        "block_chain",
        "block_table",
        "cache_salt",
        "client",
        "constraint",
        "eos_token_ids",
        "finish_reason",
        "finished_s",
        "first_scheduled_s",
        "first_token_s",
        "max_num_tokens",
        "max_tokens",
        "min_reserved_tokens",
        "next_block_end",
        "num_computed_tokens",
        "num_expected_hit_tokens",
        "num_given_tokens",
        "num_late_rows",
        "num_preemptions",
        "num_prefill_tokens",
        "num_prefix_hit_tokens",
        "num_prompt_logprobs",
        "num_prompt_tokens",
        "num_registered_blocks",
        "num_reserved_tokens",
        "num_tokens",
        "order",
        "page_buffer",
        "page_view",
        "parked_samples",
        "priority",
        "request_id",
        "sample_index",
        "samples",
        "sampling",
        "seed",
        "slo_class",
        "smooth_until",
        "state",
        "stop_token_ids",
        "token_ids",
    )

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: SamplingParams,
        *,
        arrival_s: float,
        seed: int,
        max_tokens: int,
        output_token_ids: Sequence[int] = (),
        eos_token_ids: Collection[int] = (),
        cache_salt: str = "",
        priority: int = 0,
        slo_class: str = INTERACTIVE,
        client: str = "",
        constraint: Constraint | None = None,
        sample_index: int = 0,
    ) -> None:
        self.request_id = request_id
        self.sampling = sampling
        self.arrival_s = arrival_s
        self.seed = seed
        self.max_tokens = max_tokens
        self.eos_token_ids = tuple(eos_token_ids)
        self.cache_salt = cache_salt
        self.priority = priority
        self.slo_class = slo_class
        self.client = client
        self.constraint = constraint
        self.sample_index = sample_index
        self.token_ids = [*prompt_token_ids, *output_token_ids]
        self.stop_token_ids = frozenset(sampling.stop_token_ids).union(() if sampling.ignore_eos else eos_token_ids)

        self.state = RequestState.WAITING
        self.order: tuple[int, int, int] = (priority, 0, sample_index)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.num_tokens = self.num_given_tokens = len(self.token_ids)
        self.max_num_tokens = self.num_prompt_tokens + max_tokens
        self.num_computed_tokens = self.num_prefill_tokens = self.smooth_until = 0
        self.num_late_rows = 0

        self.samples: tuple[Request, ...] = ()
        self.parked_samples: list[Request] = []

        self.batch_slot: int | None = None
        self.block_table = self.page_buffer = self.page_view = _NO_PAGES
        self.num_reserved_tokens = self.min_reserved_tokens = 0
        self.block_chain: list[Block] = []
        self.num_registered_blocks = 0
        self.next_block_end = NEVER

        self.finish_reason: FinishReason | None = None
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.finished_s: float | None = None
        self.num_expected_hit_tokens = 0
        self.num_prefix_hit_tokens = 0
        self.num_preemptions = self.num_prompt_logprobs = 0

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.state.value}, {self.num_computed_tokens} of {self.num_tokens} tokens "
            f"computed, {self.num_pending_tokens} pending)"
        )

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.token_ids[: self.num_prompt_tokens]

    @property
    def output_token_ids(self) -> list[int]:
        """The output tokens known so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_pending_tokens(self) -> int:
        return self.num_tokens - len(self.token_ids)

    @property
    def num_remaining_tokens(self) -> int:
        """How far the request is behind: tokens still to compute, 0 if all it may ever have is computed or in flight."""
        if self.num_tokens >= self.max_num_tokens:
            return 0
        return self.num_tokens - self.num_computed_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether a running request still reads what it had at its admission (prompt, and after a preemption its output)."""
        return self.num_computed_tokens < self.num_prefill_tokens

    @property
    def is_finished(self) -> bool:
        return self.state is RequestState.FINISHED

    @property
    def needs_prompt_logprobs(self) -> bool:
        """Whether prompt positions have to be computed even if a cache holds them."""
        return self.sampling.prompt_logprobs is not None and self.num_prompt_logprobs < self.num_prompt_tokens - 1

    def sibling(self, index: int) -> "Request":
        """Sample `index` of the same prompt: an own id and seed; the prompt's log-probabilities are the first sample's alone."""
        return Request(
            f"{self.request_id}-{index}",
            self.token_ids[: self.num_prompt_tokens],
            replace(self.sampling, prompt_logprobs=None),
            arrival_s=self.arrival_s,
            seed=(self.seed + index) % 2**63,
            max_tokens=self.max_tokens,
            eos_token_ids=self.eos_token_ids,
            cache_salt=self.cache_salt,
            priority=self.priority,
            slo_class=self.slo_class,
            client=self.client,
            constraint=None if self.constraint is None else self.constraint.copy(),
            sample_index=index,
        )

    def enter(self, state: RequestState) -> None:
        """Change state. Raises: AssertionError if the drawing above has no such arrow."""
        assert state in _LEGAL_NEXT[self.state], (
            f"{self.request_id}: a {self.state.value} request can't become {state.value}"
        )
        self.state = state

    def hold_pages(self, page_ids: Sequence[int], page_size: int) -> None:
        """Append pages to the block table. Views handed out before stay as they are."""
        num_pages = len(self.block_table)
        if num_pages == 0:
            # A buffer of its own for each admission: schedules in flight may still hold views of the last one.
            num_tokens = max(self.max_num_tokens, self.min_reserved_tokens)
            self.page_buffer = np.empty(-(-num_tokens // page_size), np.int32)
            self.page_view = self.page_buffer.view()
            self.page_view.setflags(write=False)
        end = num_pages + len(page_ids)
        self.page_buffer[num_pages:end] = page_ids
        self.block_table = self.page_view[:end]
        self.num_reserved_tokens = end * page_size

    def go_on_in(self, page_id: int, page_size: int) -> None:
        """A decode's next token begins a page: append it to those that it holds, and look ahead. What both do for any request, in less time."""
        num_pages, num_reserved_tokens = len(self.block_table), self.num_reserved_tokens + page_size
        self.page_buffer[num_pages] = page_id
        self.block_table = self.page_view[: num_pages + 1]
        self.num_reserved_tokens = num_reserved_tokens
        last = self.max_num_tokens - 1
        self.smooth_until = num_reserved_tokens if num_reserved_tokens < last else last

    def drop_pages(self) -> list[int]:
        """Empty the block table and forget what was computed. Returns: the pages it held, in order."""
        page_ids: list[int] = self.block_table.tolist()
        self.block_table = self.page_buffer = self.page_view = _NO_PAGES
        self.num_reserved_tokens = self.num_computed_tokens = self.num_prefill_tokens = self.smooth_until = 0
        self.num_registered_blocks = 0
        self.next_block_end = NEVER
        return page_ids

    def look_ahead(self, page_size: int) -> None:
        """What it had is computed: find how far it decodes until a page is full, or its last token is due."""
        page_end = -(-self.num_computed_tokens // page_size) * page_size
        self.smooth_until = min(page_end, self.max_num_tokens - 1)

    def end_reason(self) -> FinishReason | None:
        """Why the token that came last ends the output, or None."""
        num_output_tokens = len(self.token_ids) - self.num_prompt_tokens
        if self.token_ids[-1] in self.stop_token_ids and num_output_tokens > self.sampling.min_tokens:
            return "stop"
        if self.constraint is not None and self.constraint.is_ended:
            return "stop"
        return "length" if num_output_tokens >= self.max_tokens else None

    def token_mask(self) -> np.ndarray:
        """Which tokens may come next, of a request with a constraint."""
        assert self.constraint is not None and not self.num_pending_tokens, (
            f"{self!r}: its constraint needs all tokens before the next one"
        )
        return self.constraint.mask()

    def forget_pending(self) -> None:
        """Steps in flight were lost: what they would have sampled does not come."""
        self.num_tokens = len(self.token_ids)
        self.num_late_rows = 0
