"""Rows of a step whose token is of no use: their requests end with an error, and the others go on."""

from collections.abc import Sequence

from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import ScheduledRow, StepResult


def wrong_rows(
    requests: Sequence[Request],
    rows: Sequence[ScheduledRow],
    result: StepResult,
    vocab_size: int,
    has_constraints: bool,
) -> list[Request]:
    """The requests, not ended yet, whose logits were not finite, whose token is none of the vocabulary, or whose constraint can't go on after it.

    Constraints of all others take in their tokens. has_constraints: whether there may be any.
    """
    token_ids, is_finite = result.token_ids, result.is_finite
    is_sound = (is_finite is None or all(is_finite)) and min(token_ids) >= 0 and max(token_ids) < vocab_size
    if is_sound and not has_constraints:
        return []
    wrong: list[Request] = []
    for index, (request, row) in enumerate(zip(requests, rows, strict=True)):
        if request.is_finished:
            continue
        is_wrong = row.does_sample and not 0 <= token_ids[index] < vocab_size
        is_wrong = is_wrong or (is_finite is not None and not is_finite[index])
        if not is_wrong and row.does_sample and request.constraint is not None:
            is_wrong = not request.constraint.accept(token_ids[index])
        if is_wrong:
            wrong.append(request)
    return wrong
