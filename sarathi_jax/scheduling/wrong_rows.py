"""Rows of a step whose token is of no use: their requests end with an error, and the others go on."""

from sarathi_jax.outputs import Fault
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import StepResult
from sarathi_jax.scheduling.step_rows import StepRows


def wrong_rows(
    rows: StepRows, result: StepResult, vocab_size: int, has_constraints: bool
) -> list[tuple[Request, Fault]]:
    """The requests, not ended yet, whose logits were not finite, whose token is none of the vocabulary, or whose constraint can't go on after it; and which it was.

    Constraints of all others take in their tokens. has_constraints: whether there may be any.
    """
    token_ids, is_finite = result.token_ids, result.is_finite
    are_ids_sound = result.are_ids_known or (min(token_ids) >= 0 and max(token_ids) < vocab_size)
    if are_ids_sound and (is_finite is None or all(is_finite)) and not has_constraints:
        return []
    wrong: list[tuple[Request, Fault]] = []
    for index, (request, row) in enumerate(zip(rows.requests, rows, strict=True)):
        if request.is_finished:
            continue
        is_wrong = row.does_sample and not 0 <= token_ids[index] < vocab_size
        if is_wrong or (is_finite is not None and not is_finite[index]):
            wrong.append((request, "numerical_error"))
        elif row.does_sample and request.constraint is not None and not request.constraint.accept(token_ids[index]):
            wrong.append((request, "grammar_limit"))
    return wrong
