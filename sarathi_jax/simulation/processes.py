"""Independent pieces of work side by side, each in a process of its own: what a simulation needs to use more than one core."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from sarathi_jax.errors import ConfigError, EngineError


def num_cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes[Task, Done](
    function: Callable[[Task], Done],
    tasks: Sequence[Task],
    *,
    num_processes: int,
    on_done: Callable[[int, Done], object] | None = None,
) -> list[Done]:
    """What the function makes of each task, in the tasks' order; they are begun in that order too, so that the longest are best put first.

    Args:
      function: of a module; a process is started fresh and imports what it needs. With one process the work is done here.
      on_done: told of each task's number and result as it comes.
    Raises: what the function raises; ConfigError; EngineError if a process is lost.
    """
    if num_processes < 1:
        raise ConfigError(f"processes must be at least 1, got {num_processes}: pass a positive number.")
    results: dict[int, Done] = {}

    def take(number: int, result: Done) -> None:
        results[number] = result
        if on_done is not None:
            on_done(number, result)

    if num_processes == 1:
        for number, task in enumerate(tasks):
            take(number, function(task))
    else:
        _run_pool(function, tasks, num_processes, take)
    return [results[number] for number in range(len(tasks))]


def _run_pool[Task, Done](
    function: Callable[[Task], Done], tasks: Sequence[Task], num_processes: int, take: Callable[[int, Done], None]
) -> None:
    # Spawned, not forked: this process may hold threads and devices.
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        try:
            numbers = {pool.submit(function, task): number for number, task in enumerate(tasks)}
            for future in as_completed(numbers):
                take(numbers[future], future.result())
        except BrokenProcessPool as error:
            raise EngineError(
                "Every process must live until its work is done, got one that was ended from outside, perhaps for want of memory: use fewer."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
