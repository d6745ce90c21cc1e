"""Chunked prefills without hybrid batches: half of Sarathi-Serve (arXiv 2403.02310, table 4), as its authors took it apart.

Steps that read prompts and steps that decode take turns, so that a decode waits for one chunk at most. What that costs beside `sarathi` is the gain of hybrid
batches: every chunk delays all decodes, and every decode all prompts.
"""

from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.policies.plan_round import PlanRound
from sarathi_jax.scheduling.policy import Plan, View


class AlternatingPolicy:
    """After a step that read prompts one token of every decode; after any other, prompts up to the budget: partial ones by arrival, then new ones.

    A kind that has nothing to do leaves its turn to the other one. Theirs admits nobody in a step that goes on with a partial prompt, however much of the
    budget is left; here, as in `sarathi`, the budget is filled, so that hybrid batches are all that differs.
    """

    def check(self, limits: SchedulerLimits) -> None:
        """Any limits will do."""

    def plan(self, view: View) -> Plan:
        step = PlanRound(view)
        if not view.was_prefill:
            _add_prompts(step, view)
        if step.is_empty:
            step.add_decodes()
        if step.is_empty and view.was_prefill:
            _add_prompts(step, view)
        return step.plan()


def _add_prompts(step: PlanRound, view: View) -> None:
    step.add_partial_prefills(step.prefilling())
    step.add_waiting(view.waiting)
