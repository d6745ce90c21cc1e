"""Three ways to cut one model over eight A100s, from the sharding table to numbers, on a machine without a GPU.

    python examples/sharding_strategies.py                  # llama2-70b on two hosts of four A100s: about two minutes
    python examples/sharding_strategies.py --no-compile     # by the cost model alone: seconds
    python examples/sharding_strategies.py --run            # and each strategy for real, with the demo model on 4 CPU devices

docs/sharding.md explains what comes out. Every part works in a notebook: `plan_strategy` is the whole experiment for one strategy.
"""

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sarathi_jax.gpu_defaults import use_cpu

if TYPE_CHECKING:
    from sarathi_jax.lab.plan_task import Planned
    from sarathi_jax.sharding.rules import Rules


@dataclass(frozen=True)
class Strategy:
    """A mesh, and what its sharding table says otherwise than Megatron's."""

    name: str
    mesh: dict[str, int]
    changes: "Rules" = field(default_factory=dict)


STRATEGIES = [
    Strategy("tensor parallel over both hosts", {"tensor": 8}),
    Strategy("a pipeline of two hosts", {"stage": 2, "tensor": 4}),
    # Every GPU computes all of the attention: one all-reduce a layer instead of two, paid for with memory.
    Strategy("a pipeline, attention not cut", {"stage": 2, "tensor": 4}, {"heads": None, "kv_heads": None}),
]


def plan_strategy(strategy: Strategy, model: str, *, does_compile: bool) -> "Planned":
    """Compile the model's steps for this mesh and table, and price them."""
    from sarathi_jax import EngineConfig
    from sarathi_jax.lab.plan_task import make_task

    engine = EngineConfig(model=model, rules=strategy.changes, token_budget=512)
    task = make_task(engine, device="a100-80g", num_hosts=2, gpus_per_host=4, batch_size=64, context=2048)
    return task.plan(strategy.mesh, does_compile=does_compile)


def describe(strategy: Strategy, planned: "Planned") -> str:
    """A strategy's numbers, in a few lines."""
    layout = planned.layout
    if layout.why_not or not layout.memory or not layout.decode or not layout.full:
        return f"{strategy.name}\n  can't be: {layout.why_not}"
    lines = [
        strategy.name,
        f"  a GPU holds {layout.memory.weight_bytes / 2**30:.1f} GiB of weights; a replica has KV of {layout.memory.kv_tokens:,} tokens",
        f"  a token takes {1e3 * layout.decode.latency_s:.0f} ms among decodes, {1e3 * layout.full.latency_s:.0f} ms in full steps;"
        f" {100 * layout.decode.talk_s / layout.decode.tick_s:.0f} % of a decode step is talk",
    ]
    if planned.compiled is not None:
        lines += [
            f"  {each.count:3} {each.kind} over {' and '.join(each.axes or ['some devices'])}, {each.num_bytes / 2**20:.2f} MiB each: {1e3 * each.count * each.seconds:.2f} ms"
            for each in planned.compiled.decode.traffic
        ]
    return "\n".join(lines)


def run_strategies() -> None:
    """The demo model under each strategy, on half as many CPU devices: a table changes where numbers are, never which tokens come out."""
    from sarathi_jax import LLM, SamplingParams

    prompts = ["12+30=", "sort(5,3,8)=", "Why are prompts split into chunks?"]
    for strategy in STRATEGIES:
        sizes = {axis: size // 2 if axis == "tensor" else size for axis, size in strategy.mesh.items()}
        mesh = ",".join(f"{axis}={size}" for axis, size in sizes.items())
        llm = LLM("demo", mesh=mesh, rules=strategy.changes, max_num_seqs=4, token_budget=64, max_model_len=256)
        outputs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=16))
        print(f"{strategy.name}: {[output.outputs[0].text for output in outputs]}")
        llm.close()


def main() -> None:
    """Command line: see the module's text."""
    parser = argparse.ArgumentParser(description="Compare three sharding strategies.")
    parser.add_argument("--model", default="llama2-70b")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--run", action="store_true", help="run each with the demo model too, on 4 CPU devices")
    args = parser.parse_args()
    use_cpu()
    if args.run:
        import jax

        jax.config.update("jax_num_cpu_devices", 4)
    for strategy in STRATEGIES:
        print(describe(strategy, plan_strategy(strategy, args.model, does_compile=args.compile)), flush=True)
    if args.run:
        run_strategies()


if __name__ == "__main__":
    main()
