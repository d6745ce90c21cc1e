"""Names lead to a folder with its configuration, or, for random weights only, to a built-in shape."""

import json
import math
from pathlib import Path

import pytest

from sarathi_jax.checkpoints.builtin_models import BUILTIN_MODELS
from sarathi_jax.checkpoints.model_source import ModelSource, find_model
from sarathi_jax.errors import ModelError, ModelNotFoundError
from sarathi_jax.models import param_sources

CONFIG = {
    "architectures": ["MistralForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
}
# As the hub counts them in the published weights.
NUM_PARAMETERS = {
    "mistral-7b": 7_241_732_096,
    "yi-34b": 34_388_917_248,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "qwen3-8b": 8_190_735_360,
    "falcon-180b": 179_522_565_120 - 65024 * 14848,  # its file has the tied head, too
    "mixtral-8x7b": 46_702_792_704,
}
# Two for K and V, two bytes each (sarathi-serve's paper; the model's own for Llama 3 and Qwen3).
KV_KIB_PER_TOKEN = {
    "mistral-7b": 128,
    "yi-34b": 240,
    "llama2-70b": 320,
    "llama3-8b": 128,
    "qwen3-8b": 144,
    "falcon-180b": 160,
    "mixtral-8x7b": 128,
}


def test_built_in_shapes_have_the_parameters_of_their_models() -> None:
    for name, config in BUILTIN_MODELS.items():
        num_parameters = sum(math.prod(source.shape) for source in param_sources(config).values())
        assert num_parameters == NUM_PARAMETERS[name], name
        kv_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 2
        assert kv_bytes == KV_KIB_PER_TOKEN[name] * 1024, name


def test_a_built_in_shape_has_no_folder() -> None:
    assert find_model("yi-34b", is_dummy=True) == ModelSource(BUILTIN_MODELS["yi-34b"], None)


def test_a_built_in_shape_has_no_weights_to_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelNotFoundError, match=r"'llama3-8b' must come with load_format='dummy', .*--load-format dummy"
    ):
        find_model("llama3-8b")


@pytest.mark.parametrize("is_dummy", [True, False])
def test_a_folder_brings_its_configuration(tmp_path: Path, is_dummy: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    source = find_model(str(tmp_path), is_dummy=is_dummy)
    assert (source.folder, source.config.family, source.config.hidden_size) == (tmp_path, "mistral", 64)


def test_a_folder_of_a_shapes_name_can_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yi-34b").mkdir()
    (tmp_path / "yi-34b" / "config.json").write_text(json.dumps(CONFIG))
    assert find_model("yi-34b").config == find_model("./yi-34b", is_dummy=True).config
    assert find_model("yi-34b", is_dummy=True).folder is None


def test_a_wrong_configuration_is_the_folders_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="architectures must name one of LlamaForCausalLM, MistralForCausalLM, "):
        find_model(tmp_path)
