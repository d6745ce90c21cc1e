"""Every scheduling policy there is, over the same compiled programs, weights and requests: latencies, throughput and stalls, side by side.

The requests have long prompts, so that a prompt in the way of running decodes shows. All policies get the same Poisson load, at a share of the rate that the first of
them reaches offline. Policies that split prompts run with a budget for chunks; one that is not in `budgets` gets one that holds the longest request whole beside all decodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu.compiled_model import CompiledModel, compile_model, make_engine
from benchmarks.gpu.order import Order, Row, attempt
from benchmarks.gpu.serving import Load, latencies, send, throughput, warm_up
from sarathi_jax.cli.report import step_mix
from sarathi_jax.config import EngineConfig
from sarathi_jax.engine.engine import Engine
from sarathi_jax.engine.stalls import ScheduleKeeper, count_stalls
from sarathi_jax.execution.executor import JaxExecutor
from sarathi_jax.outputs import RequestOutput
from sarathi_jax.scheduling.policies import POLICIES
from sarathi_jax.scheduling.schedule import Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class PoliciesPlan:
    """budgets: tokens of a step, by policy; others take the largest. load_share: of the offline rate."""

    max_num_seqs: int
    max_model_len: int
    budgets: dict[str, int]
    load: Load
    load_share: float

    @property
    def max_budget(self) -> int:
        return self.max_model_len + self.max_num_seqs


FULL = PoliciesPlan(
    max_num_seqs=128,
    max_model_len=2304,
    budgets={"sarathi": 512, "alternating": 512},
    load=Load(num_requests=256, prompt_tokens=2048, output_tokens=256, lengths="uniform", seed=3),
    load_share=0.8,
)
TINY = PoliciesPlan(
    max_num_seqs=4,
    max_model_len=20,
    budgets={"sarathi": 8, "alternating": 8},
    load=Load(num_requests=6, prompt_tokens=12, output_tokens=6, lengths="uniform", seed=3),
    load_share=0.8,
)


class PoliciesBench:
    """Compiled programs, one executor, and an engine of its own for each run."""

    def __init__(self, order: Order) -> None:
        self.plan = TINY if order.is_tiny else FULL
        self._config = EngineConfig(
            model=order.model,
            load_format="dummy",
            token_budget=self.plan.max_budget,
            max_num_seqs=self.plan.max_num_seqs,
            max_model_len=self.plan.max_model_len,
        )
        self._compiled: CompiledModel = compile_model(self._config)
        self.executor: JaxExecutor = self._compiled.programs.executor(self._compiled.params)
        self._offered_per_s: float | None = None

    def measure(self, policy: str) -> Row:
        """One policy under the load that all of them get. Raises: what the policy raises."""
        if self._offered_per_s is None:
            outputs, _, _ = self._run(policy, None)
            self._offered_per_s = self.plan.load_share * throughput(outputs)["requests_per_s"]
        outputs, schedules, engine = self._run(policy, self._offered_per_s)
        mix = step_mix(list(engine.records))
        return {
            "token_budget": self._budget(policy),
            "offered_requests_per_s": self._offered_per_s,
            **throughput(outputs),
            **latencies(outputs),
            "num_stalls": count_stalls(schedules),
            "num_preemptions": mix.num_preemptions,
            "bucket_fill": mix.bucket_fill,
        }

    def _budget(self, policy: str) -> int:
        return self.plan.budgets.get(policy, self.plan.max_budget)

    def _run(self, policy: str, requests_per_s: float | None) -> tuple[list[RequestOutput], list[Schedule], Engine]:
        keeper, budget = ScheduleKeeper(self.executor), self._budget(policy)
        engine = make_engine(self._compiled, keeper, self._config, policy=policy, token_budget=budget)
        warm_up(engine)
        keeper.schedules.clear()
        outputs = send(engine, self.plan.load, self._compiled.config.vocab_size, requests_per_s)
        return outputs, keeper.schedules, engine


def rows(order: Order) -> Iterator[Row]:
    """A row a policy."""
    bench = PoliciesBench(order)
    try:
        for policy in POLICIES:
            row: Row = {"kind": "policy", "case": policy, "model": order.model_name}
            yield attempt(row, partial(bench.measure, policy))
    finally:
        bench.executor.close()
