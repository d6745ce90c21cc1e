"""Token ids of prompts."""

from sarathi_jax.simulation.token_ids import random_prompts


def test_random_prompts_have_their_lengths_and_ids_in_the_vocabulary() -> None:
    prompts = random_prompts([3, 200], vocab_size=13, seed=0)
    assert [len(prompt) for prompt in prompts] == [3, 200]
    assert set(prompts[1]) == set(range(13))
