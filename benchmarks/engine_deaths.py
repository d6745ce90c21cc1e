"""What becomes of streams when the engine is killed: SIGKILL, again and again, in the middle of 16 streams of the demo model.

    python -m benchmarks.engine_deaths --output benchmarks/results/engine_deaths.json

The reference is the same requests on the same server before anything was killed, asked `--quiet-rounds` times: a sample whose text differs even then draws on a
border of rounding (docs/decisions/007) and is counted apart. Each round kills at a random moment, then looks at /health every 10 ms.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.server_process import ServerProcess, children, circumstances, served
from sarathi_jax.client.connection import HttpClient
from sarathi_jax.client.openai_api import Asking, ask

NUM_STREAMS = 16
NUM_TOKENS = 400
POLL_S = 0.01
LIMIT_S = 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--quiet-rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with served("--max-num-seqs=16", "--token-budget=128", f"--max-restarts={args.kills}") as server:
        report = asyncio.run(measured(server, args))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({name: value for name, value in report.items() if name != "rounds"}))


async def measured(server: ServerProcess, args: argparse.Namespace) -> dict[str, Any]:
    client, moments = HttpClient(server.url), random.Random(args.seed)
    quiet = [await texts(client) for _ in range(args.quiet_rounds)]
    borderline = [place for place in range(NUM_STREAMS) if len({each[place] for each in quiet}) > 1]
    rounds = [await one_round(server, client, quiet[0], moments.uniform(0.2, 1.0)) for _ in range(args.kills)]
    await until(lambda: server.info()["kv_pages"]["used"] == 0)
    found = Counter(outcome for each in rounds for outcome in each["outcomes"])
    wrong = [place for each in rounds for place, outcome in enumerate(each["outcomes"]) if outcome == "other text"]
    report = {
        "what": "SIGKILL of the engine process in mid-stream",
        "kills": args.kills,
        "streams": NUM_STREAMS,
        "tokens_each": NUM_TOKENS,
        "unhealthy_after_s": spread([each["unhealthy_s"] for each in rounds]),
        "ready_after_s": spread([each["ready_s"] for each in rounds]),
        "outcomes": dict(found),
        "streams_with_other_text": wrong,
        "streams_that_differ_without_kills": borderline,
        "kv_pages_used_afterwards": server.info()["kv_pages"]["used"],
        "engine_processes_afterwards": sum(is_engine(pid) for pid in children(server.pid)),
        "rounds": rounds,
        **circumstances(),
    }
    await client.close()
    return report


async def one_round(server: ServerProcess, client: HttpClient, expected: list[str], wait_s: float) -> dict[str, Any]:
    pid = server.engine_pid
    asking = asyncio.create_task(texts(client))
    await asyncio.sleep(wait_s)
    start_s = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    unhealthy_s = await until(lambda: server.status() == 503, start_s)
    ready_s = await until(lambda: server.status("/ready") == 200, start_s)
    found = await asking
    outcomes = [outcome(got, text) for got, text in zip(found, expected, strict=True)]
    return {"killed_after_s": wait_s, "unhealthy_s": unhealthy_s, "ready_s": ready_s, "outcomes": outcomes}


async def texts(client: HttpClient) -> list[str]:
    """Of each stream; after a NUL, the kind of its failure."""
    return await asyncio.gather(*(text(client, place) for place in range(NUM_STREAMS)))


async def text(client: HttpClient, place: int) -> str:
    fields = {"seed": place, "temperature": 0.0 if place % 2 else 1.0, "ignore_eos": True}
    reply = await ask(client, Asking(model="demo", is_chat=False, fields=fields), f"story {place}: once", NUM_TOKENS)
    return reply.text if reply.failure is None else f"{reply.text}\0{reply.failure.kind}"


def outcome(got: str, expected: str) -> str:
    if got == expected:
        return "same text"
    return "error event" if got.endswith("\0error_event") else "cut" if "\0" in got else "other text"


async def until(is_true: Any, start_s: float | None = None) -> float:
    """Returns: seconds since start_s. Raises: TimeoutError."""
    start_s = time.perf_counter() if start_s is None else start_s
    while not await asyncio.to_thread(is_true):
        if time.perf_counter() - start_s > LIMIT_S:
            raise TimeoutError("it has not come true")
        await asyncio.sleep(POLL_S)
    return time.perf_counter() - start_s


def is_engine(pid: int) -> bool:
    return b"engine_process" in Path(f"/proc/{pid}/cmdline").read_bytes()


def spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


if __name__ == "__main__":
    main()
