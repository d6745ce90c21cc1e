"""Requests of a flight record, made again: token ids that are alike where the recorded ones were, and mean nothing.

A record says of each full KV block which others begin with the same tokens up to its end. Here a block's tokens are all the block's number. So two requests share
a block of theirs and all before it exactly if they did when they were recorded, whether the tokens were a prompt's or an output's.
"""

from sarathi_jax.engine.flight_record import FlightRecord, RequestFacts
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.scheduler import Scheduler

STOP = 0  # what ends an output; no block's number
VOCAB_SIZE = 2**31 - 1  # whatever fits the int32 of a token id


class RecordedRequests:
    """Makes the requests of one record, and knows their tokens."""

    def __init__(self, record: FlightRecord) -> None:
        self._record = record
        self._page_size = int(record.header.limits["page_size"] or 1)
        self._num_numbers = 1 + max((block for each in record.requests.values() for block in each.blocks), default=-1)
        self._others: dict[tuple[int, int], int] = {}
        self._numbers: dict[str, int] = {}

    def facts(self, number: int) -> RequestFacts:
        return self._record.requests[number]

    def number(self, request_id: str) -> int:
        """Of the last request of this id that arrived."""
        return self._numbers[request_id]

    def token(self, number: int, position: int) -> int:
        """The token of a request at a position of prompt and output."""
        index = position // self._page_size
        blocks = self.facts(number).blocks
        # A block that nobody looked for or filled is like no other.
        block = blocks[index] if index < len(blocks) else self._own_number(number, index)
        return 1 + block

    def add(self, scheduler: Scheduler, numbers: list[int]) -> None:
        """Queue a prompt with its samples. Raises: RequestError, as the scheduler does."""
        facts = self.facts(numbers[0])
        num_tokens = facts.num_prompt_tokens + facts.num_resumed_tokens
        token_ids = [self.token(numbers[0], position) for position in range(num_tokens)]
        request = Request(
            facts.id,
            token_ids[: facts.num_prompt_tokens],
            SamplingParams(
                temperature=0.0, n=facts.num_samples, prompt_logprobs=0 if facts.has_prompt_logprobs else None
            ),
            arrival_s=facts.arrival_s,
            seed=0,
            max_tokens=facts.max_tokens,
            output_token_ids=token_ids[facts.num_prompt_tokens :],
            eos_token_ids=(STOP,),
            cache_salt=str(facts.salt) if facts.salt else "",
            priority=facts.priority,
            slo_class=facts.slo_class,
            client=str(facts.client) if facts.client else "",
        )
        for number, sample in zip(numbers, scheduler.add(request), strict=True):
            self._numbers[sample.request_id] = number
            # Each by its own blocks: the prompt's last tokens may share one with the output, and the first sample may have ended before it hashed all of the prompt.
            sample.token_ids[:] = [self.token(number, place) for place in range(num_tokens)]

    def _own_number(self, number: int, index: int) -> int:
        key = number, index
        if key not in self._others:
            self._others[key] = self._num_numbers + len(self._others)
        return self._others[key]
