"""Output tokens per second of this engine over Hugging Face transformers, on the same machine, in one run.

    python benchmarks/vs_transformers.py --oracle PATH/TO/oracle/bin/python

The oracle is an interpreter with PyTorch and transformers (tests/golden/generate.py says how to make one); it runs `vs_transformers_oracle.py` as a
child process. 32 requests of mixed lengths, all there at the start, greedy, without an end of sequence, float32. The sides take turns, `--repeats`
times each after one warm-up, and the median counts. Transformers' continuous batching and its plain `generate` in padded batches are both measured;
`generate` with the batch size that was better in the warm-up. Models: the demo, and a Llama with 100 million random parameters written into a temporary folder.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

import sarathi_jax
from sarathi_jax import LLM, SamplingParams

ROOT = Path(__file__).parents[1]
DEMO_FOLDER = ROOT / "sarathi_jax" / "assets" / "demo"
RESULTS = ROOT / "benchmarks" / "results" / "vs_transformers.json"
LLAMA_100M = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}
GENERATE_BATCH_SIZES = (8, 32)
MAX_ATTEMPTS = 8


@dataclass(frozen=True)
class Workload:
    """Requests: prompt token ids, and how many tokens to generate for each."""

    prompts: list[list[int]]
    max_tokens: list[int]


@dataclass(frozen=True)
class Run:
    """One side's turn. seconds: from the first request's arrival to the last token."""

    seconds: float
    token_ids: list[list[int]]

    @property
    def tokens_per_s(self) -> float:
        return sum(map(len, self.token_ids)) / self.seconds


def mixed_requests(num_requests: int, vocab_size: int, seed: int) -> Workload:
    """Prompts of 16 to 384 tokens and outputs of 16 to 192, both log-uniform: short questions beside long ones."""
    rng = random.Random(seed)

    def length(low: int, high: int) -> int:
        return round(low * (high / low) ** rng.random())

    prompts = [[rng.randrange(3, vocab_size) for _ in range(length(16, 384))] for _ in range(num_requests)]
    return Workload(prompts, [length(16, 192) for _ in range(num_requests)])


def write_random_llama(folder: Path) -> None:
    """A Hugging Face folder with the shapes of LLAMA_100M, normal weights of deviation 0.02, and a tokenizer of bytes."""
    rng = np.random.default_rng(0)
    embed, mlp, vocab = LLAMA_100M["hidden_size"], LLAMA_100M["intermediate_size"], LLAMA_100M["vocab_size"]
    queries = LLAMA_100M["num_attention_heads"] * LLAMA_100M["head_dim"]
    keys = LLAMA_100M["num_key_value_heads"] * LLAMA_100M["head_dim"]
    shapes = {
        "self_attn.q_proj": (queries, embed),
        "self_attn.k_proj": (keys, embed),
        "self_attn.v_proj": (keys, embed),
        "self_attn.o_proj": (embed, queries),
        "mlp.gate_proj": (mlp, embed),
        "mlp.up_proj": (mlp, embed),
        "mlp.down_proj": (embed, mlp),
    }

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02)

    weights = {"model.embed_tokens.weight": normal(vocab, embed), "model.norm.weight": np.ones(embed, np.float32)}
    for layer in range(LLAMA_100M["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        weights |= {f"{prefix}.{name}.weight": normal(*shape) for name, shape in shapes.items()}
        weights |= {
            f"{prefix}.{name}.weight": np.ones(embed, np.float32)
            for name in ("input_layernorm", "post_attention_layernorm")
        }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(LLAMA_100M))


class Oracle:
    """The transformers side: a child that answers one line of JSON with one."""

    def __init__(self, interpreter: str, folder: Path, num_threads: int) -> None:
        script = Path(__file__).with_name("vs_transformers_oracle.py")
        environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads), "TRANSFORMERS_VERBOSITY": "error"}
        self.errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 (it lives as long as the child)
        self.process = subprocess.Popen(
            [interpreter, str(script), str(folder), str(num_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )
        self.versions = self._answer()
        self.details: dict[str, str] = {}

    def run(self, mode: str, workload: Workload, batch_size: int = 0) -> Run:
        """mode: "continuous", or "generate" in batches of batch_size."""
        assert self.process.stdin is not None
        order = {"mode": mode, "batch_size": batch_size, **asdict(workload)}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.details[mode] = answer["detail"]
        return Run(answer["seconds"], answer["token_ids"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"The oracle ended:\n{self.errors.read()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


@contextmanager
def oracle_of(interpreter: str, folder: Path, num_threads: int) -> Iterator[Oracle]:
    """An oracle that ends with the block."""
    oracle = Oracle(interpreter, folder, num_threads)
    try:
        yield oracle
    finally:
        oracle.close()


def run_engine(llm: LLM, workload: Workload) -> Run:
    """The whole workload through `LLM.generate`."""
    params = [SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True) for tokens in workload.max_tokens]
    start = time.perf_counter()
    outputs = llm.generate(workload.prompts, params, progress=False)
    return Run(time.perf_counter() - start, [list(output.outputs[0].token_ids) for output in outputs])


def same_fraction(ours: Run, theirs: Run) -> float:
    """Part of all requests whose tokens agree to the last; greedy near-ties of random weights may part two right answers."""
    return statistics.mean(a == b for a, b in zip(ours.token_ids, theirs.token_ids, strict=True))


def busy_seconds(*pids: int) -> tuple[float, float]:
    """Processor seconds since the machine's start: of everything, and of these processes. Linux only."""
    ticks = os.sysconf("SC_CLK_TCK")
    user, nice, system, _idle, _wait, irq, soft = map(int, Path("/proc/stat").read_text().split()[1:8])
    texts = [Path(f"/proc/{pid}/stat").read_text() for pid in pids]
    own = sum(sum(map(int, text.rpartition(")")[2].split()[11:13])) for text in texts)
    return (user + nice + system + irq + soft) / ticks, own / ticks


def take_turn(name: str, side: Callable[[], Run], pids: Sequence[int], max_others: float) -> Run:
    """One side's run, again if other processes took more than this share of the machine meanwhile: they slow the sides unequally."""
    for attempt in range(MAX_ATTEMPTS):
        before, started = busy_seconds(*pids), time.perf_counter()
        run = side()
        after, seconds = busy_seconds(*pids), time.perf_counter() - started
        others = ((after[0] - before[0]) - (after[1] - before[1])) / (seconds * (os.cpu_count() or 1))
        print(f"  {name:12} {run.tokens_per_s:9.1f} output tokens/s   other processes: {others:4.0%}", flush=True)
        if others <= max_others:
            return run
        time.sleep(min(10 * 2**attempt, 120))
    raise RuntimeError(f"Other processes took more than {max_others:.0%} of the machine {MAX_ATTEMPTS} times.")


def compare(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All sides on one model. Returns: its part of the report."""
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    workload = mixed_requests(args.requests, vocab_size, args.seed)
    # Every turn brings the same prompts: a prefix cache would have read them all after the first.
    options = {"max_num_seqs": args.requests, "token_budget": args.token_budget, "max_model_len": 1024}
    llm = LLM(str(folder), **options, prefix_caching=False)
    with oracle_of(args.oracle, folder, args.threads) as oracle:
        sides: dict[str, Callable[[], Run]] = {
            "engine": lambda: run_engine(llm, workload),
            "continuous": lambda: oracle.run("continuous", workload),
        }
        for size in GENERATE_BATCH_SIZES:
            sides[f"generate-{size}"] = partial(oracle.run, "generate", workload, size)
        pids = os.getpid(), oracle.process.pid
        warm = {name: take_turn(name, side, pids, args.max_others) for name, side in sides.items()}
        generate = max((name for name in warm if name.startswith("generate")), key=lambda name: warm[name].tokens_per_s)
        names = ("engine", "continuous", generate)
        turns = [
            {name: take_turn(name, sides[name], pids, args.max_others) for name in names} for _ in range(args.repeats)
        ]
        details, versions = oracle.details, oracle.versions
    spread = {name: [round(turn[name].tokens_per_s, 1) for turn in turns] for name in names}
    rates = {name: statistics.median(each) for name, each in spread.items()}
    num_after_ready = llm.compile_ledger.num_after_ready
    llm.close()
    return {
        "num_prompt_tokens": sum(map(len, workload.prompts)),
        "num_output_tokens": sum(workload.max_tokens),
        "output_tokens_per_s": rates,
        "spread": spread,
        "warm_up": {name: round(run.tokens_per_s, 1) for name, run in warm.items()},
        "ratio_to_continuous": round(rates["engine"] / rates["continuous"], 2),
        "ratio_to_generate": round(rates["engine"] / rates[generate], 2),
        "same_outputs_as_continuous": same_fraction(turns[-1]["engine"], turns[-1]["continuous"]),
        "same_outputs_as_generate": same_fraction(turns[-1]["engine"], turns[-1][generate]),
        "compiles_after_ready": num_after_ready,
        "oracle": details,
        "oracle_versions": versions,
    }


def commit() -> str:
    """The commit that was measured, with a mark if files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The report over all models that were asked for."""
    report: dict[str, Any] = {
        "versions": {
            "sarathi_jax": sarathi_jax.__version__,
            "jax": jax.__version__,
            "python": platform.python_version(),
        },
        "commit": commit(),
        "num_cpus": os.cpu_count(),
        "dtype": "float32",
        "num_requests": args.requests,
        "models": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.models.split(","):
            folder = DEMO_FOLDER
            if name == "llama-100m":
                folder = Path(temporary)
                write_random_llama(folder)
            print(name)
            result = report["models"][name] = compare(folder, args)
            print(
                f"  {result['ratio_to_continuous']}x continuous batching, {result['ratio_to_generate']}x plain generate"
            )
    return report


def main() -> None:
    """Command line: see the module's text."""
    parser = argparse.ArgumentParser(description="Compare throughput with Hugging Face transformers.")
    parser.add_argument("--oracle", required=True, help="interpreter that has torch and transformers")
    parser.add_argument("--models", default="demo,llama-100m", help="comma-separated; these two are all there are")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--token-budget", type=int, default=512)
    parser.add_argument(
        "--threads", type=int, default=2, help="of the oracle; ours takes every core that the process may run on"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--max-others", type=float, default=0.05, help="share of the machine that other processes may take"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    report = measure(args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(args.output)


if __name__ == "__main__":
    main()
