"""Against Hugging Face transformers: logits of every prompt position, and 64 greedy tokens, of tiny models of every family.

The golden files hold transformers' float32 answers (generate.py), each checked against its own float64 ones. The bound of 2e-4 is far above what two
right float32 programs differ by here (about 1e-5), and far below what any wrong detail costs. Greedy tokens need no rule for ties: generate.py chose weights
whose two best logits are never closer than 5e-3.

The same tokens are asked of the engine, by way of `LLM` for one tiny model, and for the others over an executor with just the two programs
that they need: pages of 4 tokens and steps of 16, so that prompts come in chunks, and windows and block tables cross many pages.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sarathi_jax import LLM, SamplingParams, load_model
from sarathi_jax.checkpoints.model_config import read_model_config
from sarathi_jax.engine.engine import Engine
from sarathi_jax.models import FAMILIES, causal_lm_logits

DATA = Path(__file__).parent / "data"
NAMES = sorted(path.name for path in DATA.iterdir() if path.is_dir())
# What paging could get wrong is in these; the rest differ from them in what the dense test sees too.
ENGINE_ALWAYS = {
    *("llama-biases", "llama-dynamic", "llama-gqa8-head12", "llama-llama3", "llama-tied"),
    *("mistral-linear-old", "mistral-window", "mistral-yarn"),
    *("qwen2-listed-window", "qwen3-upper-window-old"),
    *("gemma2-linear-old", "gemma3_text-linear-old"),
    "phi3-longrope-partial-old",
    *("falcon-7b", "falcon-grouped", "falcon-sequential"),
}
ENGINE_ALWAYS |= {"mixtral-5x3-window-old", "qwen3_moe-6x2-step2"}
ENGINE_NAMES = [
    pytest.param(name, marks=[] if name in ENGINE_ALWAYS else [pytest.mark.nightly], id=name) for name in NAMES
]
# Experts, cut; `tests/meshes` has every family on every mesh, against one device.
ON_MESHES = [
    pytest.param("mixtral-8x2", {"stage": 2, "expert": 2, "tensor": 2}, id="mixtral"),
    pytest.param("qwen3_moe-16x3", {"expert": 4}, id="qwen3_moe", marks=pytest.mark.nightly),
]
ALL_ROPE_KINDS = {"default", "linear", "dynamic", "llama3", "yarn"}
# Families that have not all of them, always tie their heads, have no windows, whose heads always fill the hidden size.
ROPE_KINDS = {"phi3": {"default", "longrope"}}
ALWAYS_TIED: set[str] = set()
WITHOUT_WINDOW = {"llama", "falcon"}
WITHOUT_HEAD_DIM = {"falcon"}
# Families that are another one in a folder of another kind; a few golden models show that it is read.
SAME_TEXT_MODEL = {"gemma3"}
GREEDY = SamplingParams(max_tokens=64, temperature=0.0, ignore_eos=True)
LOGIT_BOUND = 2e-4
logits_of = jax.jit(causal_lm_logits)


@pytest.mark.parametrize("name", NAMES)
def test_dense_logits_and_tokens_are_those_of_transformers(name: str, make_golden: Callable[[str], Any]):
    golden = make_golden(name)
    model = load_model(str(golden.folder))
    for length in golden.lengths("logits"):
        logits = np.asarray(logits_of(model, jnp.asarray(golden.sequence(length))))
        np.testing.assert_allclose(logits[: int(length)], golden.arrays[f"logits/{length}"], rtol=0, atol=LOGIT_BOUND)
        if f"greedy/{length}" in golden.arrays:
            tokens = logits[int(length) - 1 : -1].argmax(-1)
            np.testing.assert_array_equal(tokens, golden.arrays[f"greedy/{length}"])


@pytest.mark.parametrize("name", ENGINE_NAMES)
def test_engine_tokens_are_those_of_transformers(
    name: str, make_golden: Callable[[str], Any], make_engine: Callable[..., Engine]
):
    assert_same_tokens(make_golden(name), make_engine)


@pytest.mark.parametrize(("name", "mesh"), ON_MESHES)
def test_engine_tokens_on_a_mesh_are_those_of_transformers(
    name: str, mesh: dict[str, int], make_golden: Callable[[str], Any], make_engine: Callable[..., Engine]
):
    assert_same_tokens(make_golden(name), make_engine, mesh)


def assert_same_tokens(golden: Any, make_engine: Callable[..., Engine], mesh: dict[str, int] | None = None) -> None:
    engine, outputs = make_engine(golden.folder, mesh), {}
    for length in golden.lengths("greedy"):
        engine.add_request(golden.arrays[f"prompt/{length}"].tolist(), GREEDY, request_id=length)
    while engine.has_unfinished:
        outputs |= {event.request_id: event.output for event in engine.step() if event.output is not None}
    assert len(outputs) == 2
    for length, output in outputs.items():
        assert output.outputs[0].token_ids == golden.arrays[f"greedy/{length}"].tolist()


def test_llm_tokens_are_those_of_transformers(make_golden: Callable[[str], Any]):
    golden = make_golden("mistral-gqa8-head24")
    llm = LLM(str(golden.folder), token_budget=16, max_num_seqs=2, page_size=4, overlap=False)
    lengths = golden.lengths("greedy")
    outputs = llm.generate([golden.arrays[f"prompt/{length}"].tolist() for length in lengths], GREEDY)
    llm.close()
    for length, output in zip(lengths, outputs, strict=True):
        assert output.outputs[0].token_ids == golden.arrays[f"greedy/{length}"].tolist()


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - SAME_TEXT_MODEL))
def test_the_golden_models_cover_what_they_must(family: str):
    """At least six a family: heads that stand alone and heads that share, every RoPE scaling, odd widths, vocabularies and windows."""
    configs = [read_model_config(DATA / name) for name in NAMES if name.split("-")[0] == family]
    assert len(configs) >= 6
    assert len({config.num_queries_per_kv for config in configs}) >= 3
    assert {config.rope.kind for config in configs} == ROPE_KINDS.get(family, ALL_ROPE_KINDS)
    assert family in ALWAYS_TIED or {config.is_head_tied for config in configs} == {True, False}
    assert family in WITHOUT_HEAD_DIM or any(
        config.head_dim * config.num_heads != config.hidden_size for config in configs
    )
    assert all(config.vocab_size % 8 for config in configs)
    windows = {config.sliding_window for config in configs}
    assert family in WITHOUT_WINDOW or any(window and window < 70 for window in windows), "prompts have up to 70 tokens"


def test_llamas_and_mistrals_cover_more():
    """What families share is looked at closest in these two."""
    for family in ("llama", "mistral"):
        configs = [read_model_config(DATA / name) for name in NAMES if name.split("-")[0] == family]
        assert len(configs) >= 8
        assert {config.num_queries_per_kv for config in configs} >= {1, 3, 8}
    windows = {read_model_config(DATA / name).sliding_window for name in NAMES}
    assert windows >= {7, 16, 33, None}


@pytest.mark.parametrize(
    ("name", "length", "wrong"),
    [
        ("llama-wide-head", "5", {"rms_norm_eps": 1e-5}),
        ("qwen2-listed-window", "70", {"sliding_window": 20}),
        ("gemma2-linear-old", "70", {"attn_logit_softcapping": 4.04}),
        ("gemma3_text-linear-old", "70", {"rope_local_base_freq": 2020.0}),
        ("phi3-longrope-within", "70", {"original_max_position_embeddings": 139}),
    ],
)
def test_a_wrong_detail_is_seen(name: str, length: str, wrong: dict[str, Any], make_golden: Callable[[str], Any]):
    """The bound would catch the smallest of details of a configuration.

    In the code, what each family adds was broken by hand, and dense tests of the family failed, with logits off by 1e-3 (GELU by erf in place of tanh), 5e-2
    (LongRoPE's other factors for a short prompt) or, in all other cases, more than 0.1: a bias left out or one too many; a window in other layers, in all, or
    unused; norms of queries and keys exchanged, after the rotation, over values too; embeddings not scaled, norms without the 1 that is added, without those
    after attention, or exchanged; no cap, the cap before the scale, the scale of head_dim; one rotary embedding for all layers, the two exchanged, the scaling
    in both; rotated pairs not put first, values put in that order too, all of a head rotated; one set of LongRoPE's factors, multiplied by, no factor on cos
    and sin; gate and up, or keys and values, exchanged in joined tensors.
    """
    golden = make_golden(name)
    path = golden.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    logits = np.asarray(logits_of(load_model(str(golden.folder)), jnp.asarray(golden.arrays[f"prompt/{length}"])))
    assert np.abs(logits - golden.arrays[f"logits/{length}"]).max() > 10 * LOGIT_BOUND
