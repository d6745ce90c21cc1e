"""A random life of the scheduler against a device that keeps real pages: whatever happens, every request gets the tokens that it would get alone.

I numbers, in the fixture that is the world, are the invariants in the project's reference on reliability.
"""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sarathi_jax.scheduling.policies import POLICIES

MakeWorld = Callable[..., Any]
other_policies = pytest.mark.parametrize("policy", sorted(POLICIES.keys() - {"sarathi"}))


def random_world(make_world: MakeWorld, policy: str, random: Random, **options: Any) -> Any:
    """A small one: most faults need pressure. options: in place of random ones."""
    max_num_seqs, num_microbatches = random.randint(1, 6), random.choice([1, 1, 1, 2, 3])
    sizes: dict[str, Any] = {
        "max_in_flight": random.choice([0, 0, 1, 1, 2]) + num_microbatches - 1,
        "num_microbatches": num_microbatches,
        "page_size": random.choice([1, 2, 4]),
        "num_pages": random.randint(8, 40),
        "token_budget": max_num_seqs + random.randint(0, 12),
        "max_num_seqs": max_num_seqs,
        "is_prefix_caching": random.random() < 0.7,
        "watermark": random.choice([0.0, 0.01, 0.2]),
        "max_num_partial_prefills": random.choice([None, None, 1, 2]),
        "long_prefill_token_threshold": random.choice([None, None, 3]),
        "preempt_every_steps": random.choice([None, None, 1, 3]),
        "is_head_of_line_blocking": random.random() < 0.7,
    }
    return make_world(policy, **(sizes | options))


def random_prompt(random: Random) -> list[int]:
    """One of three beginnings, of any length, and sometimes an end of its own."""
    family = random.randrange(3)
    prompt = [(family + position) % 7 + 3 for position in range(random.randint(1, 24))]
    return prompt + [random.randrange(50) for _ in range(random.choice([0, 0, 1, 5]))]


def act(world: Any, random: Random) -> None:
    """One random action, and all checks after it."""
    draw = random.random()
    if draw < 0.18 and len(world.live) < 14:
        num_samples = random.choice([1, 1, 1, 2, 3])
        salt, min_tokens = random.choice(["", "", "x"]), random.randint(0, 4)
        world.add(random_prompt(random), random.randint(1, 14), num_samples, salt, min_tokens)
    elif draw < 0.21 and world.live:
        world.end(random.randrange(100), is_abort=random.random() < 0.6)
    elif draw < 0.215 and world.in_flight:
        world.fail(random.randrange(100))
    elif draw < 0.25 and world.in_flight:
        world.complete(poisoned={random.randrange(4)})
    elif draw < 0.6 and world.in_flight:
        world.complete()
    else:
        world.step()
    world.check()


def walk(make_world: MakeWorld, policy: str, first_seed: int, num_actions: int, **options: Any) -> Counter[str]:
    """Worlds of 400 actions each. Returns: what happened, to show that the walk went through what it is for."""
    seen: Counter[str] = Counter()
    for seed in range(first_seed, first_seed + num_actions // 400):
        random = Random(seed)
        world = random_world(make_world, policy, random, **options)
        for _ in range(400):
            act(world, random)
        world.drain()
        seen += Counter(samples=len(world.num_scheduled), tokens=world.num_scheduled.total(), failures=world.has_failed)
        seen += Counter(passed=world.num_passed, spared=world.num_spared, chained=world.num_chained)
    return seen


def test_20_000_random_actions_keep_every_invariant(make_world: MakeWorld) -> None:
    seen = walk(make_world, "sarathi", first_seed=0, num_actions=20_000)
    assert seen["samples"] > 2_000 and seen["tokens"] > 30_000 and seen["failures"] > 5


@other_policies
def test_f27_random_actions_keep_every_invariant_under_every_policy(
    make_world: MakeWorld, claims_of: Any, policy: str
) -> None:
    seen = walk(make_world, policy, first_seed=500, num_actions=8_000)
    assert seen["samples"] > 800 and seen["tokens"] > 12_000
    assert (seen["chained"] > 50) is claims_of(policy).does_chain


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_random_priorities_keep_every_invariant(make_world: MakeWorld, claims_of: Any, policy: str) -> None:
    options: dict[str, Any] = {"priorities": (0, 0, -3, 7), "preempt_every_steps": None, "watermark": 0.0}
    options |= {"max_num_seqs": 6, "token_budget": 16, "page_size": 2, "num_pages": 24}
    seen = walk(make_world, policy, first_seed=700, num_actions=4_000, **options)
    assert seen["passed"] > 20
    assert seen["spared"] > 20 or claims_of(policy).is_reserving  # nobody is preempted there


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_many_random_priorities_keep_every_invariant(make_world: MakeWorld, policy: str, part: int) -> None:
    walk(make_world, policy, first_seed=1_000 * (part + 20), num_actions=40_000, priorities=(0, 0, -3, 7))


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(6))
def test_240_000_random_actions_keep_every_invariant(make_world: MakeWorld, part: int) -> None:
    seen = walk(make_world, "sarathi", first_seed=1_000 * (part + 1), num_actions=40_000)
    assert seen["samples"] > 4_000 and seen["tokens"] > 60_000 and seen["failures"] > 10


@pytest.mark.nightly
@other_policies
@pytest.mark.parametrize("part", range(3))
def test_f27_120_000_random_actions_keep_every_invariant(make_world: MakeWorld, part: int, policy: str) -> None:
    """Requests take longer than under `sarathi`: there are fewer of them."""
    seen = walk(make_world, policy, first_seed=1_000 * (part + 1), num_actions=40_000)
    assert seen["samples"] > 3_000 and seen["tokens"] > 45_000 and seen["failures"] > 10


class SchedulerMachine(RuleBasedStateMachine):
    """The same world, driven by Hypothesis, which shortens what it finds."""

    make_world: MakeWorld

    @initialize(policy=st.sampled_from(sorted(POLICIES)), random=st.randoms(use_true_random=False))
    def begin(self, policy: str, random: Random) -> None:
        self.world = random_world(self.make_world, policy, random)

    @rule(length=st.integers(1, 20), family=st.integers(0, 2), max_tokens=st.integers(1, 10), samples=st.integers(1, 3))
    def add(self, length: int, family: int, max_tokens: int, samples: int) -> None:
        if len(self.world.live) < 14:
            self.world.add([family + 3] * length, max_tokens, samples, salt="", min_tokens=0)

    @rule()
    def step(self) -> None:
        self.world.step()

    @precondition(lambda self: self.world.in_flight)
    @rule()
    def complete(self) -> None:
        self.world.complete()

    @precondition(lambda self: self.world.live)
    @rule(index=st.integers(0, 13), is_abort=st.booleans())
    def end(self, index: int, is_abort: bool) -> None:
        self.world.end(index, is_abort)

    @precondition(lambda self: self.world.in_flight)
    @rule(index=st.integers(0, 2))
    def fail(self, index: int) -> None:
        self.world.fail(index)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


def test_hypothesis_keeps_every_invariant(make_world: MakeWorld) -> None:
    class Machine(SchedulerMachine):
        pass

    Machine.make_world = staticmethod(make_world)
    run_state_machine_as_test(Machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
