"""Against Hugging Face transformers: logits of every prompt position, and 64 greedy tokens, of 21 tiny Llamas and Mistrals.

The golden files hold transformers' float32 answers (generate.py), each checked against its own float64 ones. The bound of 2e-4 is far above what two
right float32 programs differ by here (about 1e-5), and far below what any wrong detail costs. Greedy tokens need no rule for ties: generate.py chose weights
whose two best logits are never closer than 5e-3.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sarathi_jax.checkpoints.loader import load_params
from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.models import CausalLM, causal_lm_logits
from sarathi_jax.sharding.mesh import make_mesh
from sarathi_jax.sharding.model_state import abstract_model
from sarathi_jax.sharding.rules import MEGATRON

DATA = Path(__file__).parent / "data"
NAMES = sorted(path.name for path in DATA.iterdir() if path.is_dir())
LOGIT_BOUND = 2e-4
logits_of = jax.jit(causal_lm_logits)


def load(folder: Path) -> CausalLM:
    """The model of a folder, in float32."""
    config = read_model_config(folder)
    state = abstract_model(config, jnp.dtype("float32"), make_mesh({}), MEGATRON)
    return state.merge(state.flat(load_params(folder, config, state.parameters)))


@pytest.mark.parametrize("name", NAMES)
def test_dense_logits_and_tokens_are_those_of_transformers(name: str, make_golden: Callable[[str], Any]):
    golden = make_golden(name)
    model = load(golden.folder)
    for length in golden.lengths("logits"):
        logits = np.asarray(logits_of(model, jnp.asarray(golden.sequence(length))))
        np.testing.assert_allclose(logits[: int(length)], golden.arrays[f"logits/{length}"], rtol=0, atol=LOGIT_BOUND)
        if f"greedy/{length}" in golden.arrays:
            tokens = logits[int(length) - 1 : -1].argmax(-1)
            np.testing.assert_array_equal(tokens, golden.arrays[f"greedy/{length}"])


def test_the_golden_models_cover_what_they_must():
    """At least eight a family; every RoPE scaling and GQA ratios of 1, 3 and 8 in both; head_dim, windows, vocabularies as odd as promised."""
    for family in ("llama", "mistral"):
        configs = [read_model_config(DATA / name) for name in NAMES if name.startswith(family)]
        assert len(configs) >= 8
        assert {config.rope.kind for config in configs} == {"default", "linear", "dynamic", "llama3", "yarn"}
        assert {config.num_queries_per_kv for config in configs} >= {1, 3, 8}
        assert {config.is_head_tied for config in configs} == {True, False}
        assert any(config.head_dim * config.num_heads != config.hidden_size for config in configs)
        assert all(config.vocab_size % 8 for config in configs)
    assert {config.sliding_window for config in configs} >= {7, 16, 33, None}, "prompts are up to 70 tokens long"


def test_a_wrong_detail_is_seen(make_golden: Callable[[str], Any]):
    """The bound would catch a wrong norm epsilon, the smallest of details."""
    golden = make_golden("llama-wide-head")
    path = golden.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-5}))
    logits = logits_of(load(golden.folder), jnp.asarray(golden.arrays["prompt/5"]))
    assert np.abs(np.asarray(logits) - golden.arrays["logits/5"]).max() > 10 * LOGIT_BOUND
