"""What one step runs: a self-contained list of rows that an executor needs nothing else to run, and what comes back.

A row is a chunk of one request: `num_tokens` tokens from position `start` on. A decode is a chunk of one token. A schedule can be logged, replayed,
priced by a cost model, or sent to another process; it holds token ids, block tables and sampling options, and no reference to queues.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from sarathi_jax.outputs import TokenLogprobs
from sarathi_jax.sampling_params import SamplingParams


class ScheduledRow(NamedTuple):
    """One chunk of one request.

    token_ids: the tokens at positions start .. start + num_tokens - 1; None when the row's single token is the one that a step still in flight
      samples: the device has it (`scheduling.request`, "pending"), in history[batch_slot, start].
    block_table: i32[>= ceil((start + num_tokens) / page_size)] page ids in order; a view that is never written to.
    batch_slot: which of the max_num_seqs device-side slots (token history, sampling state) is the request's own while it runs.
    does_sample: whether the chunk reaches the last token, so that the step samples the request's next one.
    is_first: the first chunk after an admission: slot state has to be set up before the step.
    context_token_ids: on is_first rows, the tokens before `start` (prefix hit), which the slot's history must hold for penalties; else ().
    num_prompt_tokens, num_output_tokens: of the request before this step; pending ones count as output.
    token_mask: u32[ceil(V / 32)] on rows that sample and may not sample every token: token i may come if bit i % 32 of word i // 32 is set; never written to.
    next_token_id: the token after the chunk where it is known: what a prompt log-probability of the chunk's last token is of.
    """

    request_id: str
    start: int
    num_tokens: int
    token_ids: Sequence[int] | None
    block_table: np.ndarray
    batch_slot: int
    does_sample: bool
    is_first: bool
    context_token_ids: Sequence[int]
    num_prompt_tokens: int
    num_output_tokens: int
    sampling: SamplingParams
    seed: int
    next_token_id: int | None = None
    token_mask: np.ndarray | None = None


class RowColumns(NamedTuple):
    """Some fields of a step's rows: i32[rows] each, never written to."""

    starts: np.ndarray
    num_tokens: np.ndarray
    batch_slots: np.ndarray


@runtime_checkable
class HasColumns(Protocol):
    """Rows that have their columns, and need not be made for them."""

    @property
    def columns(self) -> RowColumns: ...


def row_columns(rows: Sequence[ScheduledRow]) -> RowColumns:
    """The columns of any rows."""
    if isinstance(rows, HasColumns):
        return rows.columns
    fields = [(row.start, row.num_tokens, row.batch_slot) for row in rows]
    return RowColumns(*np.array(fields, np.int32).reshape(-1, 3).T)


class Schedule(NamedTuple):
    """One step. Rows of one token (decodes) come before longer chunks; each group is in the policy's order."""

    step: int
    rows: Sequence[ScheduledRow]
    num_tokens: int
    num_decode_rows: int
    preempted_request_ids: tuple[str, ...] = ()

    @property
    def is_decode_only(self) -> bool:
        return self.num_decode_rows == len(self.rows)


class StepResult(NamedTuple):
    """What a step sampled; every list is aligned with the schedule's rows.

    token_ids: the sampled token; 0 where the row did not sample (look at `does_sample`).
    is_finite: False where the row's logits held NaN or infinity: its token means nothing and the request has to end with an error.
    logprobs, prompt_logprobs: None unless some row asked; None for rows that did not. Prompt log-probabilities are of tokens
      start + 1 .. start + num_tokens that belong to the prompt.
    are_ids_known: whether the token ids are known to be of the vocabulary, as a simulator's are; else each is looked at.
    """

    token_ids: list[int]
    is_finite: list[bool] | None = None
    logprobs: list[TokenLogprobs | None] | None = None
    prompt_logprobs: list[list[TokenLogprobs] | None] | None = None
    are_ids_known: bool = False
