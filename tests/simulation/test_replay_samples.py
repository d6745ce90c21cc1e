"""Recorded runs of prompts with several samples, that begin alike, go on after given output and are preempted all the time: replayed with the same decisions."""

import random
from typing import Any

import pytest

from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.policies import POLICIES
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.simulation.replay import replay

LIMITS: dict[str, Any] = {"page_size": 8, "max_model_len": 160, "vocab_size": 1000}
WHOLE_PROMPTS = {"vllm", "orca", "request_level"}  # need a budget for the longest
NEVER_PREEMPT = {"orca", "request_level"}
ENDS_AT_ONCE, GOES_ON = (0,), ()  # end-of-sequence ids, where every token that is drawn is 0


def some_prompts(rng: random.Random) -> list[list[int]]:
    """Of whole blocks, and of others; some begin like others."""
    prompts = [[rng.randrange(1, 1000) for _ in range(num_tokens)] for num_tokens in (16, 24, 24, 40, 13, 61)]
    return [*prompts, prompts[2][:17] + prompts[0], prompts[3][:32]]


def run_price(work: Any) -> list[float]:
    return [1e-3 + 2e-4 * work.num_tokens]


def test_samples_that_know_more_of_their_prompt_than_the_first_one(record_run: Any) -> None:
    """A first sample that is preempted while its first token is under way, and ends with that token, leaves the prompt's last block to the others."""
    scheduler = Scheduler("sarathi", num_pages=40, token_budget=32, max_num_seqs=8, preempt_every_steps=2, **LIMITS)
    rng = random.Random(0)
    prompts = some_prompts(rng)[:4]

    def make(number: int, arrival_s: float) -> Request:
        return Request(
            str(number),
            rng.choice(prompts),
            SamplingParams(temperature=0.0, n=rng.choice([1, 3])),
            arrival_s=arrival_s,
            seed=0,
            max_tokens=rng.randint(1, 20),
            eos_token_ids=rng.choice([GOES_ON, ENDS_AT_ONCE]),
        )

    record = record_run(scheduler, rng, 200, make, run_price)
    blocks = {number: len(facts.blocks) for number, facts in record.requests.items()}
    leaders = {number: facts.leader for number, facts in record.requests.items() if facts.leader is not None}
    assert any(blocks[number] > blocks[leader] for number, leader in leaders.items())
    assert replay(record).difference is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_whatever_comes_together_is_replayed(policy: str, seed: int, record_run: Any) -> None:
    rng = random.Random(seed)
    scheduler = Scheduler(
        policy,
        num_pages=rng.choice([24, 40]),
        token_budget=256 if policy in WHOLE_PROMPTS else 32,
        max_num_seqs=rng.choice([3, 8]),
        preempt_every_steps=None if policy in NEVER_PREEMPT else rng.choice([None, 2, 5]),
        is_prefix_caching=rng.random() < 0.7,
        **LIMITS,
    )
    prompts = some_prompts(rng)

    def make(number: int, arrival_s: float) -> Request:
        prompt, given = rng.choice(prompts), [0] * rng.choice([0, 0, 3, 9])
        return Request(
            str(number),
            prompt,
            SamplingParams(temperature=0.0, n=1 if given else rng.choice([1, 1, 3])),
            arrival_s=arrival_s,
            seed=0,
            max_tokens=len(given) + rng.randint(1, 30),
            output_token_ids=given,
            eos_token_ids=GOES_ON if given else rng.choice([GOES_ON, ENDS_AT_ONCE]),
            cache_salt=rng.choice(["", "", "a"]),
            priority=rng.choice([0, 0, 1]),
        )

    assert replay(record_run(scheduler, rng, 150, make, run_price)).difference is None
