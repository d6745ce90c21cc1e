"""The load that shows stalls: decodes that go on steadily, and long prompts that arrive one after the other while they do.

Prompts arrive when the decodes have come so many tokens further, not at times of a clock: every policy, on any machine, decides on the same state of affairs, and
the counts of a run are the same each time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sarathi_jax.engine.engine import Engine
from sarathi_jax.engine.records import StepRecord
from sarathi_jax.engine.stalls import ScheduleKeeper
from sarathi_jax.errors import ConfigError
from sarathi_jax.outputs import RequestMetrics
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.schedule import Schedule
from sarathi_jax.simulation.token_ids import TokenIds
from sarathi_jax.simulation.workloads import RequestShape


@dataclass(frozen=True, slots=True, kw_only=True)
class StallLoad:
    """The decodes' own prompts are short. Before the first long prompt they are alone for `num_quiet_tokens` tokens each, after the last one as long as between two.

    Raises: ConfigError, from the constructor, if a number is below 1.
    """

    num_decodes: int = 32
    num_prompts: int = 4
    prompt_tokens: int = 1500
    tokens_between: int = 24
    num_quiet_tokens: int = 32
    decode_prompt_tokens: int = 16
    prompt_output_tokens: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_decodes", "num_prompts", "prompt_tokens", "tokens_between", "num_quiet_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}: pass a positive number.")

    @property
    def arrivals(self) -> list[int]:
        """Tokens that every decode has when each prompt arrives."""
        return [self.num_quiet_tokens + index * self.tokens_between for index in range(self.num_prompts)]

    @property
    def decode_output_tokens(self) -> int:
        return self.arrivals[-1] + self.tokens_between

    def shapes(self) -> list[RequestShape]:
        """Decodes, then prompts; their times of arrival mean nothing."""
        decode = RequestShape(0.0, self.decode_prompt_tokens, self.decode_output_tokens)
        prompt = RequestShape(0.0, self.prompt_tokens, self.prompt_output_tokens)
        return [decode] * self.num_decodes + [prompt] * self.num_prompts

    @property
    def max_len(self) -> int:
        """Tokens of the longest request."""
        return max(shape.num_tokens for shape in self.shapes())

    @property
    def num_requests(self) -> int:
        return self.num_decodes + self.num_prompts


class StallRun(NamedTuple):
    """One run. schedules and records are of the same steps, in their order.

    decodes, prompts: metrics of each, in the order of their arrival. num_steps_before: steps that had been dispatched when each prompt arrived.
    """

    load: StallLoad
    schedules: Sequence[Schedule]
    records: Sequence[StepRecord]
    decodes: Sequence[RequestMetrics]
    prompts: Sequence[RequestMetrics]
    num_steps_before: Sequence[int]


DECODE, PROMPT = "decode", "prompt"  # request ids: "decode-0", ...


def run_stall_load(engine: Engine, keeper: ScheduleKeeper, load: StallLoad, vocab_size: int) -> StallRun:
    """Run it to its end, on an engine with nothing else to do. Raises: RequestError if a request can't be served; EngineError."""
    shapes = load.shapes()
    token_ids = TokenIds(shapes, vocab_size, load.seed).all_new_tokens()
    keeper.schedules.clear()
    engine.records.clear()
    for index in range(load.num_decodes):
        _add(engine, f"{DECODE}-{index}", token_ids[index], shapes[index])
    num_tokens = dict.fromkeys((f"{DECODE}-{index}" for index in range(load.num_decodes)), 0)
    metrics: dict[str, RequestMetrics] = {}
    num_steps_before: list[int] = []
    while engine.has_unfinished:
        for event in engine.step():
            if event.request_id in num_tokens:
                num_tokens[event.request_id] += len(event.token_ids)
            if event.output is not None:
                metrics[event.request_id] = event.output.metrics
        while (index := len(num_steps_before)) < load.num_prompts and min(num_tokens.values()) >= load.arrivals[index]:
            num_steps_before.append(len(keeper.schedules))
            place = load.num_decodes + index
            _add(engine, f"{PROMPT}-{index}", token_ids[place], shapes[place])
    return StallRun(
        load,
        list(keeper.schedules),
        list(engine.records),
        [metrics[f"{DECODE}-{index}"] for index in range(load.num_decodes)],
        [metrics[f"{PROMPT}-{index}"] for index in range(load.num_prompts)],
        num_steps_before,
    )


def _add(engine: Engine, request_id: str, token_ids: Sequence[int], shape: RequestShape) -> None:
    params = SamplingParams(max_tokens=shape.num_output_tokens, ignore_eos=True, temperature=0.0)
    engine.add_request(token_ids, params, request_id=request_id)
