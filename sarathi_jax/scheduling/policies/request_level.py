"""Request-level batching: FasterTransformer as Sarathi-Serve's authors compare with it (arXiv 2403.02310, figure 7).

A batch runs until the last of its requests has ended, and only then does the next one begin. No prompt ever stalls an output that has begun to grow, but the
batch shrinks while new requests wait.
"""

from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.policies.demands import demand_longest_request, demand_whole_prompts
from sarathi_jax.scheduling.policies.plan_round import PlanRound
from sarathi_jax.scheduling.policy import Plan, View


class RequestLevelPolicy:
    """A batch is whoever waits when nobody runs, as many as pages and slots hold, first come, first served. First all its prompts are read, then all decode.

    Theirs reads all prompts of a batch in one step, however long it gets. Here the token budget bounds a step, so the prompts, each whole, may take several;
    no decode runs in between, and who arrives in between is not of this batch. Requests that end leave it at once. Like theirs it reserves the pages of the
    longest request for each one, and so never preempts.
    """

    def check(self, limits: SchedulerLimits) -> None:
        demand_whole_prompts("request_level", limits)
        demand_longest_request("request_level", limits)

    def plan(self, view: View) -> Plan:
        step = PlanRound(view, does_split_prompts=False, does_reserve_max_len=True)
        if not view.running:
            step.add_waiting(view.waiting)
        elif view.was_prefill:
            began_s = min(each.first_scheduled_s for each in view.running if each.first_scheduled_s is not None)
            step.add_waiting(request for request in view.waiting if request.arrival_s <= began_s)
        if step.is_empty:
            step.add_decodes()
        return step.plan()
