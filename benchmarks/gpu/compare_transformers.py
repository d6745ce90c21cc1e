# ruff: noqa: TID251
# pyright: reportMissingImports=false
"""Hugging Face transformers on the same GPU: plain `generate` of the same model shape with random bfloat16 weights, and the same batches.

Runs in a process of its own that ends before jax takes the GPU's memory. Every prompt of a batch is equally long, so nothing is padding.
"""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
import transformers

from benchmarks.gpu.compare_cases import ComparePlan, plan_of
from benchmarks.gpu.order import Order, Row, attempt
from sarathi_jax.checkpoints.model_source import find_model
from sarathi_jax.models.config import ModelConfig

CONFIG_CLASSES = {"llama": "LlamaConfig", "mistral": "MistralConfig"}


def rows(order: Order) -> Iterator[Row]:
    """A row a batch size."""
    if not torch.cuda.is_available():
        yield {"kind": "transformers", "case": "all", "skipped": "PyTorch sees no GPU"}
        return
    plan = plan_of(is_tiny=order.is_tiny)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.bfloat16)
    config = find_model(order.model, is_dummy=True).config
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(_transformers_config(config))
    model = model.to(torch.bfloat16).eval()
    for batch in plan.batch_sizes:
        row: Row = {"kind": "transformers", "case": plan.case(batch), "transformers": transformers.__version__}
        yield attempt(row, lambda batch=batch: _measure(model, config.vocab_size, plan, batch))
        torch.cuda.empty_cache()


def _transformers_config(config: ModelConfig) -> Any:
    return getattr(transformers, CONFIG_CLASSES[config.family])(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope.theta,
        tie_word_embeddings=config.is_head_tied,
        **({"sliding_window": config.sliding_window} if config.family == "mistral" else {}),
    )


def _measure(model: Any, vocab_size: int, plan: ComparePlan, batch: int) -> Row:
    ids = torch.randint(vocab_size, (batch, plan.num_prompt_tokens), device="cuda")
    options = {
        "max_new_tokens": plan.num_output_tokens,
        "min_new_tokens": plan.num_output_tokens,
        "do_sample": False,
        "pad_token_id": 0,
        "attention_mask": torch.ones_like(ids),
    }
    samples_s, out = list[float](), ids
    for _ in range(1 + plan.num_repeats):  # the first one warms up
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        out = model.generate(ids, **options)
        torch.cuda.synchronize()
        samples_s.append(time.perf_counter() - started_s)
    assert out.shape[1] == plan.num_prompt_tokens + plan.num_output_tokens, "no output ended early"
    return {"output_tokens_per_s": plan.tokens_per_s(batch, median(samples_s[1:]))}
