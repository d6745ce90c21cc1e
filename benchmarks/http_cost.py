"""What HTTP costs: output tokens per second through the server's streams over the engine's alone, on the same cores, in one run.

    python -m benchmarks.http_cost --output benchmarks/results/http_cost.json

The demo model, `--streams` requests at a time, greedy, without an end of sequence. The sides take turns, `--repeats` times each after one warm-up, and the median
counts. The client counts events and looks at nothing else; its own processor time, on the same cores, is a part of what HTTP costs here. Processor seconds per
token of front, engine process and client come from the kernel's account of them.
"""

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any, cast

import uvloop

from benchmarks.server_process import ServerProcess, circumstances, cpu_s, flags_of, served
from sarathi_jax import LLM, SamplingParams
from sarathi_jax.cpu_defaults import claim_process

ENGINE = {"max_num_seqs": 16, "token_budget": 128}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    claim_process()  # as the server's engine does: both sides have as many threads
    with served(*flags_of(ENGINE)) as server:
        llm = LLM("demo", progress=False, **ENGINE)
        runs: list[dict[str, Any]] = []
        for _ in range(args.repeats + 1):
            offline = offline_rate(llm, args.streams, args.tokens)
            runs.append({"offline_tokens_per_s": offline, **http_run(server, args.streams, args.tokens)})
        llm.close()
    report = summary(runs[1:], args)
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def summary(runs: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    medians = {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0]}
    return {
        "what": "tokens per second through HTTP streams, over the engine alone",
        "http_over_offline": round(
            statistics.median(run["http_tokens_per_s"] / run["offline_tokens_per_s"] for run in runs), 4
        ),
        **medians,
        "runs": [{name: round(value, 4) for name, value in run.items()} for run in runs],
        "streams": args.streams,
        "tokens_each": args.tokens,
        **circumstances(),
    }


def offline_rate(llm: LLM, num_streams: int, num_tokens: int) -> float:
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    prompts = [f"story {place}: once" for place in range(num_streams)]
    start_s = time.perf_counter()
    llm.generate(prompts, params)
    return num_streams * num_tokens / (time.perf_counter() - start_s)


def http_run(server: ServerProcess, num_streams: int, num_tokens: int) -> dict[str, float]:
    pids = server.pid, server.engine_pid
    before = [*map(cpu_s, pids), time.process_time()]
    start_s = time.perf_counter()
    num_events = uvloop.run(all_streams(server.port, num_streams, num_tokens))
    seconds = time.perf_counter() - start_s
    after = [*map(cpu_s, pids), time.process_time()]
    num_total = num_streams * num_tokens
    front, engine, client = ((late - early) / num_total * 1e6 for early, late in zip(before, after, strict=True))
    return {
        "http_tokens_per_s": num_total / seconds,
        "events_per_token": num_events / num_total,
        "front_cpu_us_per_token": front,
        "engine_cpu_us_per_token": engine,
        "client_cpu_us_per_token": client,
    }


async def all_streams(port: int, num_streams: int, num_tokens: int) -> int:
    """Returns: how many events they had."""
    loop, streams = asyncio.get_running_loop(), [Stream(place, num_tokens) for place in range(num_streams)]
    for stream in streams:
        await loop.create_connection(lambda stream=stream: stream, "127.0.0.1", port)
    return sum([await stream.num_events for stream in streams])


class Stream(asyncio.Protocol):
    """Asks for one stream and counts its events. num_events: when it has ended."""

    def __init__(self, place: int, num_tokens: int) -> None:
        fields = {"temperature": 0, "ignore_eos": True, "stream": True, "max_tokens": num_tokens}
        body = json.dumps({"model": "demo", "prompt": f"story {place}: once", **fields}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._request = head.encode() + b"Connection: close\r\n\r\n" + body
        self._count, self._rest = 0, b""
        self.num_events: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        self._count += data.count(b"data: ")
        self._rest = data[-5:]  # no whole mark, perhaps a part of one

    def connection_lost(self, exc: Exception | None) -> None:
        self.num_events.set_result(self._count)


if __name__ == "__main__":
    main()
