"""The committed demo model against Hugging Face transformers: prompts as tokens, logits of every prompt position, 64 greedy tokens.

`data/demo.npz` holds transformers' float64 logits (generate.py --demo). Of every position it has the largest ones, and the logarithm of the sum of the
exponentials of all: no logit that matters can be wrong without moving one of them. Greedy tokens are compared up to the first position where the two best
logits are closer than twice the bound; after an end of sequence a trained model knows nothing, and says it with small gaps.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sarathi_jax import LLM, SamplingParams, load_model
from sarathi_jax.checkpoints.hub import resolve_model_folder
from sarathi_jax.models import causal_lm_logits

GOLDEN = dict(np.load(Path(__file__).parent / "data" / "demo.npz"))
INDICES = [int(name.split("/")[1]) for name in GOLDEN if name.startswith("prompt/")]
PROMPTS = [GOLDEN[f"prompt/{index}"].tolist() for index in INDICES]
CHAT = json.loads(str(GOLDEN["chat"]))
LOGIT_BOUND = 2e-4


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    """The demo model in steps of 128 tokens, so that the longest prompt comes in nine chunks."""
    llm = LLM("demo", token_budget=128, max_num_seqs=8, max_model_len=1280)
    yield llm
    llm.close()


def test_the_golden_file_is_of_these_weights():
    weights = (resolve_model_folder("demo") / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == str(GOLDEN["sha256"]), "run tests/golden/generate.py --demo"


def test_logits_of_every_prompt_position():
    model, logits_of = load_model("demo"), jax.jit(causal_lm_logits)
    for index, prompt in zip(INDICES, PROMPTS, strict=True):
        logits = np.asarray(logits_of(model, jnp.asarray(prompt, jnp.int32)), np.float64)
        top = np.take_along_axis(logits, GOLDEN[f"top_ids/{index}"], axis=-1)
        sums = np.log(np.exp(logits).sum(axis=-1))
        np.testing.assert_allclose(top, GOLDEN[f"top_logits/{index}"], rtol=0, atol=LOGIT_BOUND)
        np.testing.assert_allclose(sums, GOLDEN[f"logsumexp/{index}"], rtol=0, atol=LOGIT_BOUND)
        np.testing.assert_allclose(logits[-1], GOLDEN[f"last_logits/{index}"], rtol=0, atol=LOGIT_BOUND)


def test_greedy_tokens_of_the_engine(llm: LLM):
    outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True))
    num_compared = 0
    for index, output in zip(INDICES, outputs, strict=True):
        is_close = GOLDEN[f"gaps/{index}"] < 2 * LOGIT_BOUND
        count = int(is_close.argmax()) if is_close.any() else 64
        assert output.outputs[0].token_ids[:count] == GOLDEN[f"greedy/{index}"][:count].tolist()
        num_compared += count
    assert num_compared >= 0.9 * 64 * len(INDICES)


def test_log_probabilities_of_the_engine(llm: LLM):
    """Prompt log-probabilities of a prompt in chunks are the golden logits less their log-sum-exp, and the ids are in the same order."""
    index = max(INDICES, key=lambda index: len(PROMPTS[index]))
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=1)
    given = llm.generate([PROMPTS[index]], params)[0].prompt_logprobs
    assert given is not None and given[0] is None and len(given) == len(PROMPTS[index])
    top = GOLDEN[f"top_logits/{index}"][:, 0] - GOLDEN[f"logsumexp/{index}"]
    values = [each.top[0][1] for each in given[1:] if each is not None]
    np.testing.assert_allclose(values, top[:-1], rtol=0, atol=2 * LOGIT_BOUND)


def test_prompts_are_the_same_tokens(llm: LLM):
    assert llm.tokenizer is not None
    texts = [str(text) for text in GOLDEN["texts"]]
    assert [llm.tokenizer.encode(text) for text in texts] == PROMPTS[: len(texts)]
    assert llm.chat(CHAT, SamplingParams(max_tokens=1)).prompt_token_ids == PROMPTS[-1]
