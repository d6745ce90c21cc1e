"""A line now and then on what the engine does, while it does anything."""

import asyncio
import logging
from typing import Any

from sarathi_jax.serve.front import Front
from sarathi_jax.serve.messages import Steps

logger = logging.getLogger("sarathi_jax.stats")


async def log_stats(front: Front, every_s: float) -> None:
    """Until cancelled. every_s: above 0."""
    num_steps = num_told = 0

    def count(message: Steps) -> None:
        nonlocal num_steps
        num_steps += len(message.steps)

    front.client.on_steps.append(count)
    while True:
        await asyncio.sleep(every_s)
        if num_steps > num_told or front.admission.num_open:
            num_told = num_steps
            fields = stats(front)
            logger.info("%s", line(fields), extra={"fields": fields})


def stats(front: Front) -> dict[str, Any]:
    """Rates and latencies are of the last while (`RecentLatency`), all else is of now."""
    recent, steps = front.latency.summary(), front.client.steps
    num_pages = 0 if steps is None else steps.num_used_pages + steps.num_cached_pages + steps.num_free_pages
    return {
        "prompt_tokens_per_s": recent["prompt_tokens_per_s"],
        "output_tokens_per_s": recent["output_tokens_per_s"],
        "running": 0 if steps is None else steps.num_running,
        "waiting": 0 if steps is None else steps.num_waiting,
        "kv_usage": 0.0 if steps is None or not num_pages else steps.num_used_pages / num_pages,
        "prefix_hit_rate": recent["prefix_hit_rate"],
        "ttft_p50_s": recent["ttft_s"]["p50"],
        "ttft_p99_s": recent["ttft_s"]["p99"],
        "tbt_p50_s": recent["tbt_s"]["p50"],
        "tbt_p99_s": recent["tbt_s"]["p99"],
    }


def line(fields: dict[str, Any]) -> str:
    """As people read it."""
    hits = "-" if fields["prefix_hit_rate"] is None else f"{fields['prefix_hit_rate']:.0%}"
    return (
        f"{fields['prompt_tokens_per_s']:.0f} prompt + {fields['output_tokens_per_s']:.0f} output tokens/s, "
        f"{fields['running']} running, {fields['waiting']} waiting, KV {fields['kv_usage']:.0%}, prefix hits {hits}, "
        f"TTFT p50 {_ms(fields['ttft_p50_s'])} p99 {_ms(fields['ttft_p99_s'])}, "
        f"TBT p50 {_ms(fields['tbt_p50_s'])} p99 {_ms(fields['tbt_p99_s'])}"
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.0f} ms"
