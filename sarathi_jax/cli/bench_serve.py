"""Put a load on an OpenAI-compatible server and measure it: TTFT, TBT, TPOT, throughput, goodput at goals, capacity. What each means: docs/benchmarking.md.

Requests arrive by themselves, at one rate or at several one after another (--request-rate 1,2,4), at rates that are searched for the highest which keeps the
goals (--sweep), or so many at a time (--concurrency). Without any of these they come at once, or at a trace's own times. Lengths are drawn or read as by
`bench throughput`; prompts are random. Ctrl-C ends the load and reports what there is.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sarathi_jax.cli.options import Parser, UsageError
from sarathi_jax.cli.serve_report import describe_server, describe_sweep, describe_trial, run_json, sweep_trial
from sarathi_jax.cli.serve_trials import Goals, Trial, is_idle, trial_json
from sarathi_jax.cli.server_options import add_key_argument, open_client
from sarathi_jax.cli.timeline import check_plotting
from sarathi_jax.cli.workload import add_workload_arguments, workload
from sarathi_jax.client.connection import HttpClient
from sarathi_jax.client.load import Load, LoadRun
from sarathi_jax.client.openai_api import Asking, only_model
from sarathi_jax.client.probe import as_prompt, find_stream_options, measure_text
from sarathi_jax.client.prompts import DEFAULT_VOCAB_SIZE, FIRST_ID, TextLength, id_prompts, probe_text, text_prompts
from sarathi_jax.simulation.arrivals import at_rate
from sarathi_jax.simulation.rate_search import Trial as RateTrial
from sarathi_jax.simulation.rate_search import find_capacity
from sarathi_jax.simulation.workloads import RequestShape

EXAMPLES = """  sarathi-jax bench serve --url http://127.0.0.1:8000 --num-requests 64 --request-rate 4
  sarathi-jax bench serve --url http://127.0.0.1:8000 --chat --concurrency 16 --json
  sarathi-jax bench serve --url http://127.0.0.1:8000 --lengths sharegpt --request-rate 1,2,4,8 --tbt-slo-ms 100 --plot rates.png
  sarathi-jax bench serve --url http://127.0.0.1:8000 --sweep --tbt-slo-ms 100 --ttft-slo-ms 1000 --out sweep.json"""

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_GRANULARITY = 0.1
SEED_STEP = 7919  # prompts of each trial are new ones: a prefix cache must not know them


def needs_jax(args: argparse.Namespace) -> bool:
    """Never: the model is the server's."""
    return False


def add_arguments(parser: Parser) -> None:
    server = parser.add_argument_group("server")
    server.add_argument("--url", default=DEFAULT_URL, help=f"where it is (default: {DEFAULT_URL})")
    server.add_argument("--model", metavar="NAME", help="of its models (default: the first it lists)")
    add_key_argument(server)
    server.add_argument("--chat", action="store_true", help="chat completions in place of completions")
    server.add_argument(
        "--prompts", choices=("ids", "text"), help="how prompts are sent (default: ids; of chats always text)"
    )
    server.add_argument(
        "--vocab-size",
        type=int,
        default=DEFAULT_VOCAB_SIZE,
        metavar="N",
        help=f"prompts' ids are below it (default: {DEFAULT_VOCAB_SIZE}, which every model has)",
    )
    server.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="ask for outputs of exactly their length, which is an addition to OpenAI's API (default: yes)",
    )
    server.add_argument(
        "--extra-body", metavar="JSON", help="fields for every request, over those it has; null leaves one out"
    )
    server.add_argument("--timeout-s", type=float, default=600.0, metavar="X", help="for an answer (default: 600)")
    load = parser.add_argument_group("load")
    load.add_argument("--request-rate", type=_numbers(float), metavar="X,X,...", help="arrivals a second")
    load.add_argument("--concurrency", type=_numbers(int), metavar="N,N,...", help="so many requests at a time")
    load.add_argument(
        "--sweep", action="store_true", help="search the highest rate that keeps the goals, from --request-rate or 1 on"
    )
    load.add_argument(
        "--granularity",
        type=float,
        default=DEFAULT_GRANULARITY,
        metavar="X",
        help=f"of --sweep: how far above the rate that holds the one that fails may be (default: {DEFAULT_GRANULARITY})",
    )
    goals = parser.add_argument_group("goals")
    goals.add_argument("--ttft-slo-ms", type=float, metavar="X", help="most that TTFT may be, in milliseconds")
    goals.add_argument("--tbt-slo-ms", type=float, metavar="X", help="most that P99 TBT may be, in milliseconds")
    goals.add_argument(
        "--max-median-ttft-s", type=float, default=2.0, metavar="X", help="of a rate that holds (default: 2)"
    )
    add_workload_arguments(parser, has_rate=False)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument("--out", type=Path, metavar="FILE", help="write that JSON object to a file, too")
    output.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="draw latencies by load, TBT, and who waited when"
    )


def run(args: argparse.Namespace) -> int:
    goals, rates = read_goals(args), args.request_rate
    fields = read_fields(args)
    args.request_rate = 1.0 if rates or args.sweep else None  # scaled in each trial
    shapes = workload(args)
    if not args.chat and any(shape.after is not None for shape in shapes):
        raise UsageError("conversations need the chat API, got --lengths chats or their trace without it: add --chat.")
    if args.plot:
        check_plotting(args.plot)
    if args.out and not args.out.parent.is_dir():
        raise UsageError(f"the folder of --out must exist, got {args.out.parent}: make it first.")
    client = open_client(args.url, args.api_key)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        try:
            server = runner.run(meet(client, args, fields))
            bench = Bench(runner, client, server, shapes, args, goals)
            code = bench.run_all(rates)
        finally:
            runner.run(client.close())
    report = run_json(server.facts, bench.trials, goals, bench.capacity)
    if args.json:
        print(json.dumps(report))
    elif len(bench.trials) > 1 or args.sweep:
        print(describe_sweep(report))
    if args.out:
        args.out.write_text(json.dumps(report) + "\n", encoding="utf-8")
    if args.plot and bench.trials:
        from sarathi_jax.cli.serve_plot import plot_trials

        plot_trials(bench.trials, [trial_json(each, goals) for each in bench.trials], args.plot)
    if code == 0 and not any(trial.completed for trial in bench.trials):
        return 1
    return code


@dataclass(frozen=True, slots=True)
class Server:
    """What was found out before the load. facts: for the report."""

    asking: Asking
    length: TextLength
    has_text_prompts: bool
    facts: dict[str, Any]


async def meet(client: HttpClient, args: argparse.Namespace, fields: dict[str, Any]) -> Server:
    """Ask the server a few small things. Raises: ConfigError if it does not answer them."""
    asking = Asking(model=args.model or await only_model(client), is_chat=args.chat, fields=fields)
    has_text = args.chat or args.prompts == "text"
    probe = as_prompt(asking, probe_text(8)) if has_text else list(range(FIRST_ID, FIRST_ID + 8))
    asking, reply = await find_stream_options(client, asking, probe, args.timeout_s)
    length = await measure_text(client, asking, args.timeout_s) if has_text else TextLength()
    counted = "one a chunk" if reply.num_output_tokens is None else "usage"
    facts = {
        "url": f"{client.url.scheme}://{client.url.netloc.rpartition('@')[2]}{client.url.path}",
        "model": asking.model,
        "endpoint": asking.path,
        "prompts": "text" if has_text else "ids",
        "tokens_counted_by": "usage of each chunk" if reply.has_continuous_usage else counted,
        "num_requests": 0,
    }
    return Server(asking, length, has_text, facts)


class _Settled(Exception):
    """A search has seen what no other rate can change."""

    def __init__(self, requests_per_s: float) -> None:
        self.requests_per_s = requests_per_s


class Bench:
    """The trials of one command, one after another. capacity: requests a second, of a search or of the rates that were tried; None if there is nothing to say."""

    def __init__(
        self,
        runner: asyncio.Runner,
        client: HttpClient,
        server: Server,
        shapes: Sequence[RequestShape],
        args: argparse.Namespace,
        goals: Goals,
    ) -> None:
        self.trials: list[Trial] = []
        self.capacity: float | None = None
        self._runner, self._client, self._server = runner, client, server
        self._shapes, self._args, self._goals = shapes, args, goals
        server.facts["num_requests"] = len(shapes)

    def run_all(self, rates: Sequence[float] | None) -> int:
        """Returns: an exit code: 130 if it was interrupted."""
        if not self._args.json:
            print(describe_server(self._server.facts))
        try:
            if self._args.sweep:
                self.capacity = self._search(rates[0] if rates else 1.0)
                return 0
            for rate in rates or ():
                self.run_trial(rate=rate)
            for concurrency in self._args.concurrency or ():
                self.run_trial(concurrency=concurrency)
            if not rates and not self._args.concurrency:
                self.run_trial()
        except KeyboardInterrupt:
            return 130
        if rates and self._goals.are_given:
            held = [trial.rate or 0.0 for trial in self.trials if trial_json(trial, self._goals)["does_hold"]]
            self.capacity = max(held, default=0.0)
        return 0

    def _search(self, guess: float) -> float:
        """The capacity; infinity if all requests may come at once."""
        held: list[bool] = []

        def try_rate(rate: float) -> RateTrial:
            trial = self.run_trial(rate=rate)
            report = trial_json(trial, self._goals)
            held.append(report["does_hold"])
            if not any(held) and is_idle(trial):
                raise _Settled(0.0)
            if all(held) and trial.run.most_running == trial.num_requests:
                raise _Settled(float("inf"))
            return sweep_trial(report)

        try:
            return find_capacity(try_rate, guess=guess, granularity=self._args.granularity).requests_per_s
        except _Settled as settled:
            return settled.requests_per_s

    def run_trial(self, *, rate: float | None = None, concurrency: int | None = None) -> Trial:
        """Send the whole workload once. Raises: KeyboardInterrupt, with the trial so far kept."""
        shapes = self._shapes if rate is None else at_rate(self._shapes, rate)
        load = Load(self._client, self._server.asking, shapes, self._prompts(), self._args.timeout_s)
        trial = Trial(rate=rate, concurrency=concurrency, num_requests=len(shapes), run=LoadRun(), cpu_share=0.0)
        cpu_s, wall_s, is_interrupted = time.process_time(), time.perf_counter(), True
        try:
            with tqdm(total=len(shapes), desc=trial.name, unit="request", disable=not sys.stderr.isatty()) as bar:
                self._runner.run(load.send(trial.run, concurrency=concurrency, on_end=bar.update))
            is_interrupted = False
        finally:
            cpu_share = (time.process_time() - cpu_s) / max(time.perf_counter() - wall_s, 1e-9)
            trial = replace(trial, cpu_share=cpu_share, is_interrupted=is_interrupted)
            self.trials.append(trial)
            if not self._args.json:
                print(describe_trial(trial.name, trial_json(trial, self._goals)), flush=True)
        return trial

    def _prompts(self) -> Sequence[str | list[int]]:
        seed = self._args.workload_seed + SEED_STEP * len(self.trials)
        if self._server.has_text_prompts:
            return text_prompts(self._shapes, self._server.length, seed)
        return id_prompts(self._shapes, self._args.vocab_size, seed)


def read_goals(args: argparse.Namespace) -> Goals:
    """Goals, once it holds that the options of the load go together. Raises: ConfigError."""
    if args.concurrency and (args.request_rate or args.sweep):
        raise UsageError(
            "requests come at a rate or so many at a time, got both: leave out --concurrency or the rates."
        )
    if args.sweep and args.request_rate and len(args.request_rate) > 1:
        raise UsageError("--sweep begins at one rate, got several: pass one with --request-rate, or leave out --sweep.")
    if args.sweep and args.ttft_slo_ms is None and args.tbt_slo_ms is None:
        raise UsageError("--sweep needs a goal to keep, got none: add --tbt-slo-ms or --ttft-slo-ms.")
    if not 0 < args.granularity <= 1:
        raise UsageError(f"--granularity must be above 0 and at most 1, got {args.granularity}: it is a share.")
    for flag, values in (("--request-rate", args.request_rate), ("--concurrency", args.concurrency)):
        if values and not all(0 < value < float("inf") for value in values):
            raise UsageError(f"{flag} must be above 0, got {values}: leave it out to send all at once.")
    if not args.timeout_s > 0:
        raise UsageError(f"--timeout-s must be above 0, got {args.timeout_s}: leave it out.")
    if args.vocab_size <= FIRST_ID:
        raise UsageError(f"--vocab-size must be above {FIRST_ID}, got {args.vocab_size}: the ids below are special.")
    if args.chat and args.prompts == "ids":
        raise UsageError("prompts of chats are text, got --prompts ids: leave it out.")
    return Goals(
        ttft_slo_s=None if args.ttft_slo_ms is None else args.ttft_slo_ms / 1e3,
        tbt_slo_s=None if args.tbt_slo_ms is None else args.tbt_slo_ms / 1e3,
        max_median_ttft_s=args.max_median_ttft_s,
    )


def read_fields(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of every request beside prompt, length and model. Raises: UsageError if --extra-body is no JSON object."""
    fields: dict[str, Any] = {"temperature": 0.0, **({"ignore_eos": True} if args.ignore_eos else {})}
    if args.extra_body is None:
        return fields
    try:
        extra = json.loads(args.extra_body)
    except ValueError as error:
        raise UsageError(f"--extra-body must be JSON, got {args.extra_body!r} ({error}): correct it.") from error
    if not isinstance(extra, dict):
        raise UsageError(f"--extra-body must be a JSON object, got {args.extra_body!r}: put it into {{}}.")
    return fields | extra


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop halves what a chunk costs; where it isn't, asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _numbers[Number: (int, float)](read: type[Number]) -> Callable[[str], list[Number]]:
    def read_list(text: str) -> list[Number]:
        return [read(part) for part in text.split(",")]

    read_list.__name__ = f"list of {read.__name__}"  # argparse says "invalid list of int value: '...'"
    return read_list
