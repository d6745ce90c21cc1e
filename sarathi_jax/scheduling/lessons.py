"""Tells a policy that learns what came of its plans, and how long each step took. Nothing happens here for any other policy."""

from sarathi_jax.scheduling.kv_pages import KVPages
from sarathi_jax.scheduling.policy import LearningPolicy, Policy
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.scheduling.step_rows import StepRows


class Lessons:
    """Args:

    has_times: whether a step's time can be told from when the one before it was done. In a pipeline, others' time is in it.
    """

    def __init__(self, policy: Policy, kv_pages: KVPages, *, has_times: bool) -> None:
        self._learner = policy if isinstance(policy, LearningPolicy) else None
        self._kv_pages = kv_pages
        self._has_times = has_times
        self._scheduled_s: dict[int, float] = {}
        self._completed_s = float("-inf")

    def arrived(self, request: Request) -> None:
        """A request was queued; what it would find in the prefix cache now is noted with it."""
        if self._learner is not None:
            request.num_expected_hit_tokens = len(self._kv_pages.find_prefix(request)) * self._kv_pages.page_size
            self._learner.arrived(request)

    def scheduled(self, schedule: Schedule, rows: StepRows, now_s: float) -> None:
        """rows: the schedule's."""
        if self._learner is not None:
            self._scheduled_s[schedule.step] = now_s
            self._learner.scheduled(schedule, rows.requests, now_s)

    def completed(self, schedule: Schedule, now_s: float) -> None:
        """A step's time runs from when it was scheduled, or from when the step before it was done if that is later."""
        if self._learner is not None:
            start_s = max(self._scheduled_s.pop(schedule.step), self._completed_s)
            self._completed_s = now_s
            self._learner.completed(schedule, now_s - start_s if self._has_times else None, now_s)

    def lost(self) -> None:
        """All steps in flight were given up."""
        if self._learner is not None:
            self._scheduled_s.clear()
            self._learner.lost()
