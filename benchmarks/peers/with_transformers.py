# ruff: noqa: TID251
# pyright: reportMissingImports=false
"""Hugging Face transformers' plain `generate`: one left-padded batch to its end, and only then what came meanwhile. The floor."""

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from benchmarks.peers.load import Answer, Order, Request
from benchmarks.peers.play import Play, serve_loads

NO_TOKEN = -1


class TokenTimes(StoppingCriteria):
    """Looks at the clock after each token of a batch, and stops nothing."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.times_s.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def play(model: Any, requests: list[Request]) -> list[Answer]:
    """A load, in two batches if some of it arrives late."""
    begin_s = time.perf_counter()
    answers: list[Answer] = []
    for batch in (
        [each for each in requests if not each.after_tokens],
        [each for each in requests if each.after_tokens],
    ):
        if batch:
            rows, times_s = generate(model, batch)
            times_s = [each - begin_s for each in times_s]
            for request, row in zip(batch, rows, strict=True):
                arrival_s = answers[0].token_times_s[request.after_tokens - 1] if request.after_tokens else 0.0
                answers.append(Answer(arrival_s, row[: request.max_tokens], times_s[: request.max_tokens]))
    return answers


def generate(model: Any, batch: list[Request]) -> tuple[list[list[int]], list[float]]:
    """Each row to the longest of them. Returns: tokens of each, and when each step's were there."""
    width, clock = max(len(each.prompt) for each in batch), TokenTimes()
    ids = torch.tensor([[0] * (width - len(each.prompt)) + each.prompt for each in batch])
    mask = torch.tensor([[0] * (width - len(each.prompt)) + [1] * len(each.prompt) for each in batch])
    config = GenerationConfig(
        max_new_tokens=max(each.max_tokens for each in batch),
        do_sample=False,
        eos_token_id=NO_TOKEN,
        pad_token_id=0,
    )
    out = model.generate(
        ids, attention_mask=mask, generation_config=config, stopping_criteria=StoppingCriteriaList([clock])
    )
    return [row[width:].tolist() for row in out], clock.times_s


def start(order: Order) -> Play:
    torch.set_num_threads(order.num_threads)
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(order.folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    return lambda requests: play(model, requests)


if __name__ == "__main__":
    serve_loads(start, ["torch", "transformers"])
