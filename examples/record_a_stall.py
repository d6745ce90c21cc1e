"""A simulated run with a flight recorder: two streams of Mistral-7B on an A100 under the `vllm` policy, which reads a long prompt before all else.

    python examples/record_a_stall.py stalled.jsonl
    sarathi-jax explain stalled.jsonl chat --slo-ms 100
    sarathi-jax simulate replay stalled.jsonl

The scheduler and the loop are those that serve; the time is the cost model's. With policy="sarathi" and a token budget of 512 nothing is left out.
"""

import sys
from collections import deque
from pathlib import Path

from sarathi_jax import EngineConfig, SamplingParams
from sarathi_jax.clock import VirtualClock
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.engine.loop import StepLoop
from sarathi_jax.lab.plan_task import make_task
from sarathi_jax.scheduling.request import Request
from sarathi_jax.simulation.deployment import Deployment
from sarathi_jax.simulation.simulated_executor import SimulatedExecutor

# Name, arrival in seconds, prompt tokens, output tokens.
REQUESTS = [("notes", 0.0, 900, 40), ("chat", 0.02, 300, 30), ("article", 0.2, 5600, 12), ("memo", 0.205, 400, 12)]


def record(path: Path, policy: str = "vllm", token_budget: int = 8192) -> None:
    """Run the requests, and write what the flight recorder noted."""
    plan = make_task(EngineConfig(model="mistral-7b"), device="a100-80g", num_hosts=1, gpus_per_host=1).deployment
    cost_model = plan.cost_model(plan.place(tensor=1))
    deployment = Deployment(cost_model=cost_model, max_model_len=8192, policy=policy, token_budget=token_budget)
    clock, scheduler = VirtualClock(), deployment.scheduler()
    executor = SimulatedExecutor(clock, cost_model.stages_s, cost_model.host, deployment.pipeline())
    recorder = FlightRecorder(scheduler, clock, max_events=10_000, is_overlapped=True, model="mistral-7b")
    loop = StepLoop(scheduler, executor, clock, is_overlapped=True, recorder=recorder)
    waiting = deque(REQUESTS)
    while waiting or not loop.is_idle:
        while waiting and waiting[0][1] <= clock.now():
            recorder.arrived(scheduler.add(make_request(*waiting.popleft())))
        if loop.is_idle:
            clock.advance(waiting[0][1] - clock.now())
        else:
            loop.step()
    recorder.dump(path)


def make_request(name: str, arrival_s: float, num_prompt_tokens: int, num_output_tokens: int) -> Request:
    sampling = SamplingParams(temperature=0.0, ignore_eos=True)
    prompt = [len(name)] * num_prompt_tokens  # no other request's
    return Request(name, prompt, sampling, arrival_s=arrival_s, seed=0, max_tokens=num_output_tokens)


if __name__ == "__main__":
    record(Path(sys.argv[1]))
