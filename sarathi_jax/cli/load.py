"""Sends requests into an engine at their times of arrival and runs it until all are done: the open loop of `bench`.

Arrivals don't wait for the engine. A request counts as arrived at its own time, not when the loop came round to sending it, so that a busy engine
can't hide its queue.
"""

import time
from collections import deque
from collections.abc import Sequence

from sarathi_jax.engine.replicas import AnyEngine
from sarathi_jax.outputs import RequestOutput
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.simulation.workloads import RequestShape


def run_load(
    engine: AnyEngine, shapes: Sequence[RequestShape], prompts: Sequence[Sequence[int]]
) -> list[RequestOutput]:
    """Outputs of all requests, in the order they ended; the engine's step records are of this run alone.

    Args:
      shapes: by arrival; each generates exactly its output tokens.
      prompts: token ids of each.
    Raises: RequestError if one of them can't be served; EngineError."""
    engine.records.clear()
    waiting, outputs = deque(zip(shapes, prompts, strict=True)), []
    start_s = engine.clock.now()
    while waiting or engine.has_unfinished:
        while waiting and start_s + waiting[0][0].arrival_s <= engine.clock.now():
            shape, prompt = waiting.popleft()
            params = SamplingParams(max_tokens=shape.num_output_tokens, ignore_eos=True, temperature=0.0)
            engine.add_request(prompt, params, arrival_s=start_s + shape.arrival_s)
        if engine.has_unfinished:
            outputs += [event.output for event in engine.step() if event.output is not None]
        elif waiting:
            time.sleep(max(0.0, start_s + waiting[0][0].arrival_s - engine.clock.now()))
    return outputs
