"""This project's engine and server beside other engines on the CPU, in one run, with the same models and the same work.

    python -m benchmarks.vs_peers --openvino-python A/bin/python --vllm-python B/bin/python --transformers-python A/bin/python

Each peer is a child process in an environment of its own (docs/benchmarking.md says how to make one); one whose interpreter is not given is left out, and the report
says so. They take turns on the same cores, `--repeats` times each after a warm-up, and medians count. Models: the demo, and a Llama with 100 million random
parameters. Loads: sixteen requests at once, and twelve that decode while prompts of 1,000 tokens arrive. Greedy, without an end of sequence, so that everyone has the
same work; float32, and, as "default", with the precision that a peer chooses by itself.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import sarathi_jax
from benchmarks.peers.child import ROOT, Child, Turn
from benchmarks.peers.load import Answer, Order, Request, batch_load, mixed_load, warm_up
from benchmarks.peers.summary import Figures, agreement, batch_figures, medians, mixed_figures
from benchmarks.server_process import free_port
from benchmarks.vs_transformers import DEMO_FOLDER, commit, write_random_llama

RESULTS = ROOT / "benchmarks" / "results" / "vs_peers.json"
# Output tokens of each request of a load, a model: as many as take seconds.
OUTPUT_TOKENS = {"demo": 256, "llama-100m": 128}
PROMPT_IDS = 512  # that many are in the tokenizer, which is the demo's in both: servers refuse ids that it has not
PAGE_SIZE = 16

Interpreters = dict[str, str | None]
Started = tuple[dict[str, Child], dict[str, str]]
LoadTurns = dict[str, list[Turn]]


@dataclass(frozen=True)
class Peer:
    """environment: whose interpreter it needs; empty: this one. server: what its interpreter runs to serve a folder, if it is a server."""

    name: str
    module: str
    environment: str = ""
    precision: str = "float32"
    server: tuple[str, ...] = ()


PEERS = (
    Peer("engine", "with_engine"),
    Peer("server", "with_server", server=("-m", "sarathi_jax.cli.main", "serve")),
    Peer("openvino", "with_openvino", "openvino"),
    Peer("openvino-default", "with_openvino", "openvino", "default"),
    Peer("vllm", "with_vllm", "vllm"),
    Peer("vllm-default", "with_vllm", "vllm", "default"),
    Peer("vllm-server", "with_server", "vllm", server=("-m", "vllm.entrypoints.openai.api_server", "--model")),
    Peer("transformers", "with_transformers", "transformers"),
)
ENVIRONMENTS = tuple(dict.fromkeys(peer.environment for peer in PEERS if peer.environment))


def present(asked: Sequence[str], interpreters: Interpreters) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can be started, and why each of the others is left out."""
    found, skipped = [], {}
    for peer in PEERS:
        if peer.name not in asked:
            skipped[peer.name] = "--peers does not name it"
        elif peer.environment and not interpreters[peer.environment]:
            skipped[peer.name] = f"--{peer.environment}-python was not given"
        else:
            found.append(peer)
    return found, skipped


def start(peer: Peer, order: Order, interpreters: Interpreters) -> Child:
    """Raises: RuntimeError if it does not start."""
    interpreter = interpreters.get(peer.environment) or sys.executable
    if not peer.server:
        return Child(interpreter, peer.module, replace(order, precision=peer.precision))
    port = free_port()
    command = [interpreter, *peer.server, order.folder, f"--port={port}", "--host=127.0.0.1", *server_flags(order)]
    if not peer.environment:
        command.append(f"--num-pages={order.kv_tokens // PAGE_SIZE}")
    order = replace(order, precision=peer.precision, server=tuple(command), port=port)
    child = Child(sys.executable, peer.module, order)  # the client's interpreter
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/version") as answer:
        child.versions |= {"server": json.load(answer)["version"]}
    return child


def server_flags(order: Order) -> list[str]:
    """vLLM's, which ours takes too."""
    return [
        "--dtype=float32",
        f"--max-num-seqs={order.max_num_seqs}",
        f"--max-num-batched-tokens={order.token_budget}",
        f"--max-model-len={order.max_model_len}",
        "--no-enable-prefix-caching",
        "--disable-uvicorn-access-log",
    ]


def start_all(peers: Sequence[Peer], order: Order, interpreters: Interpreters, stack: ExitStack) -> Started:
    """All that start, until the stack is closed, and why the others do not."""
    children, failed = {}, {}
    for peer in peers:
        print(f"  starting {peer.name}", flush=True)
        try:
            children[peer.name] = start(peer, order, interpreters)
            stack.callback(children[peer.name].close)
        except RuntimeError as error:
            failed[peer.name] = str(error)
            print(error, flush=True)
    return children, failed


def take_turn(name: str, child: Child, load: list[Request], args: argparse.Namespace) -> Turn:
    """A peer's turn; again if others took much of the machine meanwhile, up to `--tries` times, of which the quietest counts."""
    turns: list[Turn] = []
    while len(turns) < args.tries and (not turns or turns[-1].others > args.max_others):
        turns.append(child.take_turn(load))
        rate = batch_figures(turns[-1].answers)["output_tokens_per_s"]
        print(f"  {name:17} {rate:9.1f} output tokens/s   other processes: {turns[-1].others:4.0%}", flush=True)
    return min(turns, key=lambda turn: turn.others)


def measure_load(name: str, load: list[Request], children: dict[str, Child], args: argparse.Namespace) -> LoadTurns:
    """Each peer's turns, after a warm-up."""
    print(f"  {name}", flush=True)
    for child in children.values():
        child.take_turn(warm_up(load))
    turns: LoadTurns = {peer: [] for peer in children}
    for _ in range(args.repeats):
        for peer, child in children.items():
            turns[peer].append(take_turn(peer, child, load, args))
    return turns


def compare(folder: Path, args: argparse.Namespace, interpreters: Interpreters) -> dict[str, Any]:
    """All peers on one model. Returns: its part of the report."""
    num_tokens = args.tokens or OUTPUT_TOKENS[folder.name]
    batch, mixed = batch_load(PROMPT_IDS, num_tokens), mixed_load(PROMPT_IDS, num_tokens)
    peers, skipped = present(args.peers.split(","), interpreters)
    order = Order(str(folder), "float32", args.threads, args.token_budget)
    with ExitStack() as stack:
        children, failed = start_all(peers, order, interpreters, stack)
        versions = {name: child.versions for name, child in children.items()}
        batch_turns = measure_load("batch", batch, children, args)
        mixed_turns = measure_load("mixed", mixed, children, args)
    reference = "transformers" if "transformers" in children else next(iter(children))
    return {
        "skipped": skipped | failed,
        "output_tokens_each": num_tokens,
        "versions": versions,
        "batch": {name: summed_up(turns, batch_figures) for name, turns in batch_turns.items()},
        "mixed": {name: summed_up(turns, partial(mixed_figures, mixed)) for name, turns in mixed_turns.items()},
        f"agreement_with_{reference}": {
            name: agreement(
                batch_turns[reference][-1].answers + mixed_turns[reference][-1].answers,
                batch_turns[name][-1].answers + mixed_turns[name][-1].answers,
            )
            for name in children
            if name != reference
        },
    }


def summed_up(turns: Sequence[Turn], figures_of: Callable[[list[Answer]], Figures]) -> dict[str, Any]:
    """A peer's figures on a load, with what can be known of how sure they are."""
    figures = [figures_of(turn.answers) for turn in turns]
    return {
        **medians(figures),
        "each_output_tokens_per_s": [round(each["output_tokens_per_s"], 1) for each in figures],
        "others": [round(turn.others, 3) for turn in turns],
    }


def processor() -> str:
    """Its name, and what of its instructions matters here."""
    lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    flags = fields.get("flags", "").split()
    names = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{fields.get('model name', platform.machine())} ({', '.join(names)})"


def prepare(name: str, folder: Path) -> None:
    """Write a model's folder, with nothing of what peers make of it, if it is not there."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if name == "llama-100m":
        write_random_llama(folder)
    for path in DEMO_FOLDER.glob("*.json" if name == "demo" else "tokenizer*.json"):
        shutil.copy(path, folder)
    if name == "demo":
        shutil.copy(DEMO_FOLDER / "model.safetensors", folder)


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Write the report over all models that were asked for, after each of them."""
    interpreters = {name: getattr(args, f"{name}_python") for name in ENVIRONMENTS}
    report: dict[str, Any] = {
        "what": "this engine and its server beside other engines on the CPU: the same models, requests and cores",
        "versions": {"sarathi_jax": sarathi_jax.__version__, "python": platform.python_version()},
        "commit": commit(),
        "processor": processor(),
        "num_cpus": os.cpu_count(),
        "threads": args.threads,
        "token_budget": args.token_budget,
        "load_before": os.getloadavg(),
        "models": {},
    }
    for name in args.models.split(","):
        print(name, flush=True)
        prepare(name, folder / name)
        report["models"][name] = compare(folder / name, args, interpreters)
        report["load_after"] = os.getloadavg()
        args.output.write_text(json.dumps(report, indent=1) + "\n")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ENVIRONMENTS:
        parser.add_argument(f"--{name}-python", help=f"interpreter that has {name}; unset: it is left out")
    parser.add_argument(
        "--models", default=",".join(OUTPUT_TOKENS), help="comma-separated; these two are all there are"
    )
    parser.add_argument("--peers", default=",".join(peer.name for peer in PEERS), help="which of them, comma-separated")
    parser.add_argument("--tokens", type=int, help=f"output tokens of each request; unset: {OUTPUT_TOKENS}")
    parser.add_argument(
        "--token-budget", type=int, default=256, help="most tokens of a step, of all that have such a limit"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of peers that ask for it")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--max-others", type=float, default=0.1, help="share of the machine that other processes may take"
    )
    parser.add_argument("--tries", type=int, default=3, help="of a turn, if others take more")
    parser.add_argument(
        "--folder", type=Path, help="keep the models there, and what peers make of them; unset: a temporary one"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


def main() -> None:
    args = arguments().parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        measure(args, (args.folder or Path(temporary)).resolve())
    print(args.output)


if __name__ == "__main__":
    main()
