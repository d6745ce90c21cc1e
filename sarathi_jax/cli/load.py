"""Sends requests into an engine at their times of arrival and runs it until all are done: the load of `bench`.

Arrivals don't wait for the engine, but for those of a conversation's later rounds, which follow an answer. A request counts as arrived at its own time, not
when the loop came round to sending it, so that a busy engine can't hide its queue.
"""

import time
from collections.abc import Sequence

from sarathi_jax.engine.replicas import AnyEngine
from sarathi_jax.outputs import RequestOutput
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.simulation.arrivals import ArrivalQueue
from sarathi_jax.simulation.workloads import RequestShape


def run_load(
    engine: AnyEngine, shapes: Sequence[RequestShape], prompts: Sequence[Sequence[int]]
) -> list[RequestOutput]:
    """Outputs of all requests, in the order they ended; the engine's step records are of this run alone.

    Args:
      shapes: each generates exactly its output tokens.
      prompts: token ids of each; of a later round, what is new in it.
    Raises: RequestError if one of them can't be served; EngineError."""
    engine.records.clear()
    queue, outputs = ArrivalQueue(shapes), []
    places: dict[str, int] = {}
    said: dict[int | None, list[int]] = {None: []}
    start_s = engine.clock.now()
    while queue or engine.has_unfinished:
        while start_s + queue.next_arrival_s <= engine.clock.now():
            arrival_s, place = queue.pop()
            shape, prompt = shapes[place], [*said[shapes[place].after], *prompts[place]]
            params = SamplingParams(max_tokens=shape.num_output_tokens, ignore_eos=True, temperature=0.0)
            places[engine.add_request(prompt, params, arrival_s=start_s + arrival_s)] = place
        if engine.has_unfinished:
            for output in [event.output for event in engine.step() if event.output is not None]:
                outputs.append(output)
                place = places.pop(output.request_id)
                said[place] = output.prompt_token_ids + output.outputs[0].token_ids
                queue.end(place, output.metrics.arrival_s + output.metrics.e2e_s - start_s)
        elif queue:
            time.sleep(max(0.0, start_s + queue.next_arrival_s - engine.clock.now()))
    return outputs
