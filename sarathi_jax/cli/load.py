"""Sends requests into an engine at their times of arrival and runs it until all are done: the open loop of `bench`.

Arrivals don't wait for the engine. A request counts as arrived at its own time, not when the loop came round to sending it, so that a busy engine
can't hide its queue.
"""

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sarathi_jax.cli.workload import RequestShape
from sarathi_jax.outputs import RequestOutput
from sarathi_jax.sampling_params import SamplingParams

if TYPE_CHECKING:
    from sarathi_jax.llm import LLM


def run_load(llm: "LLM", shapes: Sequence[RequestShape], prompts: Sequence[Sequence[int]]) -> list[RequestOutput]:
    """Outputs of all requests, in the order they ended.

    Args:
      shapes: by arrival; each generates exactly its output tokens.
      prompts: token ids of each."""
    waiting = deque(zip(shapes, prompts, strict=True))
    engine, outputs = llm.engine, []
    start_s = engine.clock.now()
    while waiting or engine.has_unfinished:
        now_s = engine.clock.now() - start_s
        while waiting and waiting[0][0].arrival_s <= now_s:
            shape, prompt = waiting.popleft()
            params = SamplingParams(max_tokens=shape.num_output_tokens, ignore_eos=True, temperature=0.0)
            engine.add_request(prompt, params, arrival_s=start_s + shape.arrival_s)
        if engine.has_unfinished:
            outputs += [output for output in engine.step() if output.is_finished]
        elif waiting:
            time.sleep(max(0.0, start_s + waiting[0][0].arrival_s - engine.clock.now()))
    return outputs
