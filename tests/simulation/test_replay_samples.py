"""A recorded run of prompts with several samples is replayed with the same decisions, also where the first one ended before it had hashed all of the prompt."""

import random
from typing import Any

from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.simulation.replay import replay


def test_samples_that_know_more_of_their_prompt_than_the_first_one(record_run: Any) -> None:
    """A first sample that is preempted while its first token is under way, and ends with that token, leaves the prompt's last block to the others."""
    limits: dict[str, Any] = {"num_pages": 40, "page_size": 8, "token_budget": 32, "max_num_seqs": 8}
    scheduler = Scheduler("sarathi", max_model_len=160, vocab_size=1000, preempt_every_steps=2, **limits)
    rng = random.Random(0)
    prompts = [[rng.randrange(1, 1000) for _ in range(num_tokens)] for num_tokens in (16, 24, 24, 40)]

    def make(number: int, arrival_s: float) -> Request:
        return Request(
            str(number),
            rng.choice(prompts),
            SamplingParams(temperature=0.0, n=rng.choice([1, 3])),
            arrival_s=arrival_s,
            seed=0,
            max_tokens=rng.randint(1, 20),
            eos_token_ids=rng.choice([(), (0,)]),  # all tokens are 0
        )

    record = record_run(scheduler, rng, 200, make, lambda work: [1e-3 + 2e-4 * work.num_tokens])
    blocks = {number: len(facts.blocks) for number, facts in record.requests.items()}
    leaders = {number: facts.leader for number, facts in record.requests.items() if facts.leader is not None}
    assert any(blocks[number] > blocks[leader] for number, leader in leaders.items())
    assert replay(record).difference is None
