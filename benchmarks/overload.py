"""What a server does with ten times the load it can carry, for a minute; and what a hundred clients that leave do to one that stays.

    python -m benchmarks.overload --output benchmarks/results/overload.json

A round is the peak, the overload and the peak again, because a shared machine's speed drifts by more than what is to be seen. Peak: as many requests at a time as
the engine runs, for `--peak-s` seconds. Overload: requests arrive at `--times` the rate that ended, whatever becomes of them, for `--seconds`. A round's ratio has
the mean of its two peaks below; the report's is the median. Goodput is output tokens per second of answers that came whole, within the time of the load. The
client runs on the same cores, so it takes a part of what the server could have had; its processor time is in the report.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.server_process import ServerProcess, circumstances, cpu_s, flags_of, resident_mb, served
from sarathi_jax.client.connection import HttpClient
from sarathi_jax.client.openai_api import Asking, Failure, Reply, ask

ENGINE = {"max_num_seqs": 16, "token_budget": 128}
MAX_QUEUED = 32
ASKING = Asking(model="demo", is_chat=False, fields={"temperature": 0.0, "ignore_eos": True})
NUM_TOKENS = 128
REJECTION_GOAL_S = 0.2
MEMORY_EVERY_S = 5.0
NUM_LEAVERS = 100


class Answer(NamedTuple):
    """Of one request. failure: None if it came whole. ttft_s, end_s: after it was sent; after the load began."""

    failure: Failure | None
    ttft_s: float
    seconds: float
    end_s: float


class Sender:
    """Sends requests that are all alike, and keeps what came of each."""

    def __init__(self, client: HttpClient) -> None:
        self.answers: list[Answer] = []
        self._client = client
        self._start_s = time.perf_counter()
        self._num_sent = 0

    @property
    def now_s(self) -> float:
        """Since the load began."""
        return time.perf_counter() - self._start_s

    async def send(self) -> None:
        self._num_sent += 1
        sent_s = time.perf_counter()
        reply = await ask(self._client, ASKING, f"story {self._num_sent}: once", NUM_TOKENS, timeout_s=120.0)
        end_s = time.perf_counter()
        ttft_s = (reply.token_times_s[0] if reply.token_times_s else end_s) - sent_s
        self.answers.append(Answer(reply.failure, ttft_s, end_s - sent_s, self.now_s))

    async def closed_loop(self, seconds: float) -> None:
        """As many requests at a time as the engine runs."""

        async def one_after_another() -> None:
            while self.now_s < seconds:
                await self.send()

        await asyncio.gather(*(one_after_another() for _ in range(ENGINE["max_num_seqs"])))

    async def open_loop(self, rate: float, seconds: float) -> None:
        """Poisson arrivals, `rate` a second."""
        gaps, next_s = random.Random(0), 0.0
        async with asyncio.TaskGroup() as tasks:
            while (next_s := next_s + gaps.expovariate(rate)) < seconds:
                if next_s > self.now_s:
                    await asyncio.sleep(next_s - self.now_s)
                tasks.create_task(self.send())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--peak-s", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with served(*flags_of(ENGINE), f"--max-queued-requests={MAX_QUEUED}") as server:
        report = asyncio.run(measured(server, args))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


async def measured(server: ServerProcess, args: argparse.Namespace) -> dict[str, Any]:
    client = HttpClient(server.url)
    await Sender(client).closed_loop(3.0)  # to warm up
    peaks = [await peak(server, client, args.peak_s)]
    overloads: list[dict[str, Any]] = []
    for _ in range(args.rounds):
        rate, sender = args.times * peaks[-1]["whole"] / args.peak_s, Sender(client)
        load = await loaded(server, sender, partial(sender.open_loop, rate), args.seconds)
        peaks.append(await peak(server, client, args.peak_s))
        around = statistics.mean(each["goodput_tokens_per_s"] for each in peaks[-2:])
        ratio = round(load["goodput_tokens_per_s"] / around, 4)
        overloads.append({"goodput_over_peak": ratio, "requests_per_s": round(rate, 1), **load})
    report = {
        "what": f"{args.times:g} times the load that the server can carry, for {args.seconds:g} s",
        "goodput_over_peak": statistics.median(each["goodput_over_peak"] for each in overloads),
        "rejected_late": sum(each["rejected_late"] for each in overloads),
        "max_queued_requests": MAX_QUEUED,
        "peaks": peaks,
        "overloads": overloads,
        "beside_clients_that_leave": await beside_leavers(client),
        "kv_pages_used_afterwards": server.info()["kv_pages"]["used"],
        **circumstances(),
    }
    await client.close()
    return report


async def peak(server: ServerProcess, client: HttpClient, seconds: float) -> dict[str, Any]:
    sender = Sender(client)
    return await loaded(server, sender, sender.closed_loop, seconds)


async def loaded(
    server: ServerProcess, sender: Sender, load: Callable[[float], Awaitable[None]], seconds: float
) -> dict[str, Any]:
    """What a load came to, and what it took of processors and memory."""
    memory: list[tuple[float, float]] = []
    watching = asyncio.create_task(watch_memory(server, memory))
    before = used_cpu_s(server)
    await load(seconds)
    cores = {name: round((after - before[name]) / sender.now_s, 3) for name, after in used_cpu_s(server).items()}
    watching.cancel()
    failures = [(each.failure, each.seconds) for each in sender.answers if each.failure is not None]
    whole = [each for each in sender.answers if each.failure is None]
    num_whole = sum(each.end_s <= seconds for each in whole)
    rejected_s = [took_s for failure, took_s in failures if failure.is_rejection]
    return {
        "goodput_tokens_per_s": round(num_whole * NUM_TOKENS / seconds, 1),
        "sent": len(sender.answers),
        "whole": num_whole,
        "failures": dict(Counter(failure.kind for failure, _ in failures)),
        "rejected_after_ms": percentiles_ms(rejected_s),
        "rejected_late": sum(took_s > REJECTION_GOAL_S for took_s in rejected_s),
        "ttft_ms": percentiles_ms([each.ttft_s for each in whole]),
        "cores": cores,
        "front_mb": [round(front, 1) for front, _ in memory],
        "engine_mb": [round(engine, 1) for _, engine in memory],
    }


async def beside_leavers(client: HttpClient) -> dict[str, Any]:
    """One request alone, then with others around it, each of which leaves after a random while."""
    moments = random.Random(1)

    async def leave(place: int) -> None:
        await asyncio.sleep(moments.uniform(0.0, 0.5))
        await ask(client, ASKING, f"leaver {place}:", 1000, timeout_s=moments.uniform(0.05, 1.0))

    async def stay() -> Reply:
        return await ask(client, ASKING, "one that stays", 4 * NUM_TOKENS)

    alone = await stay()
    async with asyncio.TaskGroup() as tasks:
        staying = tasks.create_task(stay())
        await asyncio.sleep(0.05)
        for place in range(NUM_LEAVERS):
            tasks.create_task(leave(place))
    reply = staying.result()
    return {
        "leavers": NUM_LEAVERS,
        "same_text": reply.failure is None and reply.text == alone.text,
        "gap_ms_alone": percentiles_ms(np.diff(alone.token_times_s)),
        "gap_ms_beside_leavers": percentiles_ms(np.diff(reply.token_times_s)),
    }


async def watch_memory(server: ServerProcess, memory: list[tuple[float, float]]) -> None:
    """MB of front and engine, now and then, until cancelled."""
    while True:
        memory.append((resident_mb(server.pid), resident_mb(server.engine_pid)))
        await asyncio.sleep(MEMORY_EVERY_S)


def used_cpu_s(server: ServerProcess) -> dict[str, float]:
    return {"front": cpu_s(server.pid), "engine": cpu_s(server.engine_pid), "client": time.process_time()}


def percentiles_ms(seconds: Any) -> dict[str, float]:
    if not len(seconds):
        return {}
    values = np.percentile(np.asarray(seconds) * 1000, [50, 99, 100])
    return {name: round(float(value), 2) for name, value in zip(("p50", "p99", "most"), values, strict=True)}


if __name__ == "__main__":
    main()
