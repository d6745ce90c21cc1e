"""Greedy tokens of a small model, in float32 and with random weights, by an engine over the GPU's kernels and by one over the plain ones: the same, one by one.

Prompts are read in chunks beside running decodes, and some are long enough for their rows to be cut. Products are computed in whole float32: where the device rounds
their numbers to fewer bits, two engines may part for no fault of a kernel. They may still part at a token whose two most probable choices are equally probable
up to rounding; that is told from a fault by the logits of a plain forward pass without pages.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.checks import Array
from benchmarks.gpu.compiled_model import CompiledModel, compile_model, make_engine
from benchmarks.gpu.order import TINY_MODEL, Order, Row, SkippedError
from sarathi_jax.config import EngineConfig
from sarathi_jax.kernels import registry
from sarathi_jax.models import causal_lm_logits
from sarathi_jax.sampling_params import SamplingParams

TIE = 1e-4  # of logits


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensPlan:
    """model: its config.json. options: the engine's. prompts: their lengths."""

    model: dict[str, Any]
    options: dict[str, Any]
    prompts: tuple[int, ...]
    num_output_tokens: int


FULL = TokensPlan(
    model={
        **TINY_MODEL,
        "vocab_size": 1000,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 2048,
    },
    options={"token_budget": 32, "max_num_seqs": 4, "max_model_len": 1024, "num_pages": 256},
    prompts=(3, 17, 33, 600, 100, 5),
    num_output_tokens=24,
)
TINY = TokensPlan(
    model={**TINY_MODEL, "num_hidden_layers": 2, "head_dim": 16},
    options={"token_budget": 16, "max_num_seqs": 4, "max_model_len": 64, "num_pages": 32},
    prompts=(3, 21, 5),
    num_output_tokens=6,
)


def measure(order: Order) -> Row:
    """Raises: SkippedError where the GPU's kernels can't run."""
    plan, device = TINY if order.is_tiny else FULL, jax.devices()[0]
    use = registry.use_on(device, "float32", plan.model["head_dim"])
    if obstacle := registry.OPERATIONS["ragged_paged_attention"]["triton"].obstacle(use):
        raise SkippedError(f"triton can't run: {obstacle}")
    return compare("triton", "xla", plan)


def compare(kernels: str, plain: str, plan: TokensPlan) -> Row:
    """Both engines' tokens; `failed` if they part where one choice is better than the other."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, plan.model["vocab_size"], length).tolist() for length in plan.prompts]
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(plan.model), encoding="utf-8")
            ours, _ = _generate(folder, kernels, prompts, plan)
            theirs, compiled = _generate(folder, plain, prompts, plan)
        model = compiled.programs.model_state.merge(compiled.params)
        return judge_tokens(
            prompts, ours, theirs, lambda ids: np.asarray(causal_lm_logits(model, jnp.asarray(ids))[-1])
        )
    finally:
        jax.config.update("jax_default_matmul_precision", precision)


def _generate(
    folder: str, kernels: str, prompts: Sequence[Sequence[int]], plan: TokensPlan
) -> tuple[list[list[int]], CompiledModel]:
    """The tokens of each prompt."""
    config = EngineConfig(model=folder, load_format="dummy", dtype="float32", kernels=kernels, **plan.options)
    compiled = compile_model(config)
    engine = make_engine(compiled, compiled.programs.executor(compiled.params), config)
    params = SamplingParams(max_tokens=plan.num_output_tokens, temperature=0.0, ignore_eos=True)
    try:
        request_ids, done = [engine.add_request(prompt, params) for prompt in prompts], dict[str, list[int]]()
        while engine.has_unfinished:
            for event in engine.step():
                if event.output is not None:
                    done[event.request_id] = event.output.outputs[0].token_ids
        return [done[request_id] for request_id in request_ids], compiled
    finally:
        engine.close()


def judge_tokens(
    prompts: Sequence[list[int]],
    ours: Sequence[list[int]],
    theirs: Sequence[list[int]],
    logits_of: Callable[[list[int]], Array],
) -> Row:
    """Outputs beside those that are right. logits_of: f32[V] after these tokens, by another way than both."""
    gaps = list[float]()
    for prompt, tokens, right in zip(prompts, ours, theirs, strict=True):
        if (at := first_difference(tokens, right)) is not None:
            logits = logits_of([*prompt, *right[:at]])
            gaps.append(abs(float(logits[tokens[at]] - logits[right[at]])))
    largest = max(gaps, default=0.0)
    found: Row = {
        "error": largest,
        "bound": TIE,
        "share_of_bound": largest / TIE,
        "why": "where tokens part, both are as probable",
        "num_tokens": sum(map(len, theirs)),
        "num_parted": len(gaps),
    }
    if largest > TIE:
        found["failed"] = f"{len(gaps)} of {len(prompts)} outputs differ"
    return found


def first_difference(tokens: Sequence[int], right: Sequence[int]) -> int | None:
    """Where two outputs of one length part; None if they are the same."""
    return next((at for at, pair in enumerate(zip(tokens, right, strict=True)) if pair[0] != pair[1]), None)
