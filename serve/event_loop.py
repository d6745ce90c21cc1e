"""How late the front's event loop is: a task that asks to be woken, and looks when it was."""

import asyncio
import time
from collections.abc import Callable

EVERY_S = 0.1


async def measure_lag(take: Callable[[float], None]) -> None:
    """Tell `take` again and again how many seconds late the loop was. Until cancelled."""
    while True:
        due_s = time.perf_counter() + EVERY_S
        await asyncio.sleep(EVERY_S)
        take(max(time.perf_counter() - due_s, 0.0))
