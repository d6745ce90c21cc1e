"""What the engine process tells of its steps: sums a few times a second, and each step's rows while somebody watches."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sarathi_jax.engine.engine import Engine
from sarathi_jax.engine.executor import Executor, StepHandle
from sarathi_jax.engine.records import StepRecord
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.serve.messages import Step, StepRow, Steps

if TYPE_CHECKING:
    from sarathi_jax.execution.compile_ledger import CompileLedger

REPORT_EVERY_S = 0.25
WATCHED_EVERY_S = 0.05
MAX_WATCHED_STEPS = 64  # under way, and on their way into a report


class WatchedExecutor:
    """An executor that remembers the schedules of the latest steps."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.schedules: OrderedDict[int, Schedule] = OrderedDict()

    def submit(self, schedule: Schedule) -> StepHandle:
        self.schedules[schedule.step] = schedule
        if len(self.schedules) > MAX_WATCHED_STEPS:
            self.schedules.popitem(last=False)
        return self.executor.submit(schedule)

    def close(self) -> None:
        self.executor.close()


class StepReporter:
    """Takes the engines' step records, and sums up."""

    def __init__(self, engines: Sequence[Engine], ledger: "CompileLedger") -> None:
        self._engines = engines
        self._ledger = ledger
        self._records = engines[0].loop.records  # the same of all replicas
        self._watched: dict[int, WatchedExecutor] = {}
        self._last_s = 0.0
        self._was_busy = True

    def watch(self, is_on: bool) -> None:
        """Whether steps are reported with their rows."""
        for engine in self._engines:
            loop = engine.loop
            if is_on and loop.replica not in self._watched:
                loop.executor = self._watched[loop.replica] = WatchedExecutor(loop.executor)
            elif not is_on and loop.replica in self._watched:
                loop.executor = self._watched.pop(loop.replica).executor

    def is_due(self, *, is_busy: bool) -> bool:
        """Whether to report now. is_busy: whether there was anything to do; an idle engine says so once."""
        every_s = WATCHED_EVERY_S if self._watched else REPORT_EVERY_S
        became_idle, self._was_busy = self._was_busy and not is_busy, is_busy
        return became_idle or (is_busy and self._engines[0].clock.now() - self._last_s >= every_s)

    def report(self) -> Steps:
        """All since the last one."""
        self._last_s = self._engines[0].clock.now()
        steps = [self._step(self._records.popleft()) for _ in range(len(self._records))]
        schedulers = [engine.scheduler for engine in self._engines]
        num_pages = sum(scheduler.limits.num_pages for scheduler in schedulers)
        num_available = sum(scheduler.num_free_pages for scheduler in schedulers)
        num_cached = sum(scheduler.kv_pages.pool.num_idle for scheduler in schedulers)
        recorders = [engine.recorder for engine in self._engines if engine.recorder is not None]
        return Steps(
            now_s=self._last_s,
            steps=steps,
            num_running=sum(scheduler.num_running for scheduler in schedulers),
            num_waiting=sum(scheduler.num_waiting for scheduler in schedulers),
            num_used_pages=num_pages - num_available,
            num_cached_pages=num_cached,
            num_free_pages=num_available - num_cached,
            num_compiled_late=self._ledger.num_after_ready,
            num_stalls=sum(recorder.num_stalls for recorder in recorders) if recorders else None,
        )

    def _step(self, record: StepRecord) -> Step:
        watched = self._watched.get(record.replica)
        schedule = None if watched is None else watched.schedules.pop(record.step, None)
        rows = [] if schedule is None else schedule.rows
        return Step(
            record.step,
            record.start_s,
            record.end_s,
            record.bucket.name,
            record.bucket.num_tokens,
            record.num_decode_tokens,
            record.num_prefill_tokens,
            record.num_rows,
            record.num_preemptions,
            record.replica,
            [
                StepRow(
                    row.request_id,
                    row.start,
                    row.num_tokens,
                    row.start < row.num_prompt_tokens or row.num_tokens > 1,
                    row.does_sample,
                )
                for row in rows
            ],
            [] if schedule is None else list(schedule.preempted_request_ids),
        )
