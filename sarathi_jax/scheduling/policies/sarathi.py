"""Stall-free batching with chunked prefills: Sarathi-Serve (arXiv 2403.02310), algorithm 3.

Every step holds one token of every running request that decodes; what is left of the token budget goes to partial prefills by priority and arrival,
and only then to new requests. So a prompt of any length never holds up a decode. With a budget that holds the longest prompt beside all decodes no prompt is
split: the paper's "hybrid batching only".
"""

from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.policies.plan_round import PlanRound
from sarathi_jax.scheduling.policy import Plan, View


class SarathiPolicy:
    """First come, first served within a priority. All pages of a prompt are reserved at admission, decodes take theirs on demand, as `PlanRound` preempts."""

    def check(self, limits: SchedulerLimits) -> None:
        """Any limits will do."""

    def plan(self, view: View) -> Plan:
        step = PlanRound(view)
        prefilling = step.add_decodes()
        step.add_partial_prefills(prefilling)
        step.add_waiting(view.waiting)
        return step.plan()
