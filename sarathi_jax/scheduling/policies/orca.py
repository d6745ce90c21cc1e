"""Hybrid batches of whole prompts: Orca (Yu et al., OSDI 2022) as Sarathi-Serve's authors compare with it (arXiv 2403.02310, figure 7).

No decode is left out of a step, but a step with a long prompt is long for all of them. Memory is reserved for the longest request there may be, so few run.
"""

from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.policies.demands import demand_longest_request, demand_whole_prompts
from sarathi_jax.scheduling.policies.plan_round import PlanRound
from sarathi_jax.scheduling.policy import Plan, View


class OrcaPolicy:
    """One token of every decode and all whole prompts that budget, pages and slots take, first come, first served; nobody is ever preempted.

    Their Orca bounds a batch by its requests alone (16 of them, or 8), never by tokens: a token budget of max_num_seqs * max_model_len is that.
    """

    def check(self, limits: SchedulerLimits) -> None:
        demand_whole_prompts("orca", limits, with_decodes=True)
        demand_longest_request("orca", limits)

    def plan(self, view: View) -> Plan:
        step = PlanRound(view, does_split_prompts=False, does_reserve_max_len=True)
        step.add_decodes()
        step.add_waiting(view.waiting)
        return step.plan()
