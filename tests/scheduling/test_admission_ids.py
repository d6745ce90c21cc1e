"""Requests whose options contradict each other are refused, with the reason."""

import pytest

from sarathi_jax.errors import RequestError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.scheduler import Scheduler


def request(params: SamplingParams) -> Request:
    return Request("r", [1, 2], params, arrival_s=0.0, seed=0, max_tokens=4, eos_token_ids=(7,))


def test_only_stop_tokens_allowed_before_min_tokens_is_refused() -> None:
    scheduler = Scheduler("sarathi", num_pages=8, max_model_len=32, vocab_size=16)
    with pytest.raises(RequestError, match="allowed_token_ids must hold an id that does not end the output") as caught:
        scheduler.add(request(SamplingParams(max_tokens=4, min_tokens=2, allowed_token_ids=(7,))))
    assert caught.value.param == "allowed_token_ids" and not scheduler.has_unfinished


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(max_tokens=4, allowed_token_ids=(7,)),
        SamplingParams(max_tokens=4, min_tokens=2, allowed_token_ids=(7, 8)),
        SamplingParams(max_tokens=4, min_tokens=2, allowed_token_ids=(7,), ignore_eos=True),
    ],
)
def test_allowed_ids_that_leave_a_choice_are_taken(params: SamplingParams) -> None:
    scheduler = Scheduler("sarathi", num_pages=8, max_model_len=32, vocab_size=16)
    assert len(scheduler.add(request(params))) == 1
