"""Output tokens a second of this engine, for batches of equal requests that are all there at the start; transformers' figures, from a child before, beside them."""

import time
from collections.abc import Iterator
from functools import partial
from statistics import median

import numpy as np

from benchmarks.gpu.compare_cases import ComparePlan, plan_of
from benchmarks.gpu.order import Order, Row, attempt
from sarathi_jax import LLM, SamplingParams

OPTIONS = {"token_budget": 512, "max_num_seqs": 128, "max_model_len": 4096}
TINY_OPTIONS = {"token_budget": 16, "max_num_seqs": 4, "max_model_len": 64}


def rows(order: Order) -> Iterator[Row]:
    """A row a batch size."""
    plan = plan_of(is_tiny=order.is_tiny)
    options = TINY_OPTIONS if order.is_tiny else OPTIONS
    # Repeats bring the same prompts: a prefix cache would have read them all after the first.
    llm = LLM(order.model, load_format="dummy", progress=False, prefix_caching=False, **options)
    try:
        for batch in plan.batch_sizes:
            row: Row = {"kind": "compare", "case": plan.case(batch), "model": order.model_name, "batch": batch}
            yield attempt(row, partial(_measure, llm, plan, order, batch))
    finally:
        llm.close()


def _measure(llm: LLM, plan: ComparePlan, order: Order, batch: int) -> Row:
    rng = np.random.default_rng(batch)
    prompts = rng.integers(0, llm.model_config.vocab_size, (batch, plan.num_prompt_tokens)).tolist()
    params = SamplingParams(max_tokens=plan.num_output_tokens, temperature=0.0, ignore_eos=True)
    samples_s: list[float] = []
    for _ in range(1 + plan.num_repeats):  # the first one warms up
        started_s = time.perf_counter()
        llm.generate(prompts, params)
        samples_s.append(time.perf_counter() - started_s)
    ours = plan.tokens_per_s(batch, median(samples_s[1:]))
    theirs = order.beside.get(plan.case(batch), {}).get("output_tokens_per_s")
    return {
        "output_tokens_per_s": ours,
        "transformers_tokens_per_s": theirs,
        "ours_over_transformers": None if theirs is None else ours / theirs,
    }
