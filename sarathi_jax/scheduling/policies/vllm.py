"""Prefill first, whole prompts: vLLM (Kwon et al., SOSP 2023) as Sarathi-Serve's authors compare with it (arXiv 2403.02310, figure 7).

Whoever waits is let in before anyone decodes. So the batch grows fast, and every prompt that arrives stalls all running requests for as long as it is read.
"""

from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.policies.demands import demand_whole_prompts
from sarathi_jax.scheduling.policies.plan_round import PlanRound
from sarathi_jax.scheduling.policy import Plan, View


class VllmPolicy:
    """As many whole prompts as budget, pages and slots take, first come, first served; only if there are none, one token of every decode.

    Decodes take their pages on demand, preempting the youngest of the highest priority number, which then computes its prompt and output again.
    """

    def check(self, limits: SchedulerLimits) -> None:
        demand_whole_prompts("vllm", limits)

    def plan(self, view: View) -> Plan:
        step = PlanRound(view, does_split_prompts=False)
        step.add_waiting(view.waiting)
        if step.is_empty:
            step.add_decodes()
        return step.plan()
