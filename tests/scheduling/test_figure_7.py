"""F5, F27: figure 7 of the Sarathi-Serve paper under every policy. A and B decode; C, which is long, and then D arrive.

Each table is derived by hand from the policy's rule, not from its output. A line is a step: a name and the number of its tokens in it. Prompts: A 4, B 4, C 28,
D 8 tokens; outputs: A 4, B 6, C 3, D 3. C and D arrive after the second step. A prompt's last chunk brings the first output token.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sarathi_jax.scheduling.policies import POLICIES
from sarathi_jax.scheduling.schedule import Schedule

Make = Callable[..., Any]
OUTPUTS = {"A": 4, "B": 6, "C": 3, "D": 3}

# Budget 16. Decodes first, so that C gets 14 tokens beside A and B, twice; then there is room for D.
SARATHI = """
    A4 B4
    A1 B1
    A1 B1 C14
    A1 B1 C14
    B1 C1 D8
    B1 C1 D1
    D1
"""
# As many prompts as there are, while A and B stall; then all decode.
VLLM = """
    A4 B4
    A1 B1
    C28 D8
    A1 B1 C1 D1
    A1 B1 C1 D1
    B1
    B1
"""
# Prompts whole, beside A and B, whose tokens come as late as the long step ends.
ORCA = """
    A4 B4
    A1 B1
    A1 B1 C28 D8
    A1 B1 C1 D1
    B1 C1 D1
    B1
"""
# C and D wait until A and B have ended, and B is alone for two steps.
REQUEST_LEVEL = """
    A4 B4
    A1 B1
    A1 B1
    A1 B1
    B1
    B1
    C28 D8
    C1 D1
    C1 D1
"""
# Budget 16. Every other step is for prompts: C's 28 tokens as 16 and 12, so that 4 of D's 8 go with the second chunk. The last two have nobody to read for.
ALTERNATING = """
    A4 B4
    A1 B1
    C16
    A1 B1
    C12 D4
    A1 B1 C1
    D4
    B1 C1 D1
    B1 D1
"""
WHOLE, CHUNKED = 64 + 8, 16
FIGURE_7 = {
    # A step of 16 tokens is far within the goal; and C, though longer than what is typical, was first.
    "slo": (CHUNKED, SARATHI),
    "sarathi": (CHUNKED, SARATHI),
    "vllm": (WHOLE, VLLM),
    "orca": (WHOLE, ORCA),
    "request_level": (WHOLE, REQUEST_LEVEL),
    "alternating": (CHUNKED, ALTERNATING),
}


def step_text(schedule: Schedule) -> str:
    return " ".join(f"{row.request_id}{row.num_tokens}" for row in schedule.rows)


def schedules(make_stepper: Make, make_request: Make, policy: str, token_budget: int) -> Iterator[str]:
    def request(name: str, num_prompt_tokens: int) -> Any:
        return make_request(name, num_prompt_tokens, max_tokens=OUTPUTS[name])

    sizes = {"token_budget": token_budget, "max_model_len": 64, "is_prefix_caching": False}
    stepper = make_stepper(request("A", 4), request("B", 4), policy=policy, **sizes)
    yield step_text(stepper.step()[0])
    yield step_text(stepper.step()[0])
    stepper.scheduler.add(request("C", 28))
    stepper.scheduler.add(request("D", 8))
    yield from map(step_text, stepper.drain())


@pytest.mark.parametrize("policy", FIGURE_7)
def test_f5_f27_figure_7(policy: str, make_stepper: Make, make_request: Make) -> None:
    token_budget, table = FIGURE_7[policy]
    assert list(schedules(make_stepper, make_request, policy, token_budget)) == table.strip().split("\n    ")


def test_f5_figure_7_of_hybrid_batches_without_chunks(make_stepper: Make, make_request: Make) -> None:
    """`sarathi` with a budget that holds everything: Orca's order, without its reservation."""
    assert list(schedules(make_stepper, make_request, "sarathi", WHOLE)) == ORCA.strip().split("\n    ")


def test_f5_every_baseline_of_the_paper_is_in_the_figure() -> None:
    assert {"sarathi", "vllm", "orca", "request_level", "alternating"} < FIGURE_7.keys() == POLICIES.keys()
