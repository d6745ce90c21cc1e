"""The text model in a folder of Gemma 3 with image input, as all but the smallest are published; what sees images is left out."""

from dataclasses import replace

from sarathi_jax.models import gemma3
from sarathi_jax.models.base_fields import read_dtype, refuse_quantization
from sarathi_jax.models.config import ModelConfig
from sarathi_jax.models.config_fields import ConfigFields
from sarathi_jax.models.weights import ParamSource, prefixed_source

ARCHITECTURE = "Gemma3ForConditionalGeneration"
# Of the tensors that are left out.
IGNORED_PREFIXES = ("vision_tower.", "multi_modal_projector.")
PREFIX = "language_model."

create = gemma3.create


def read_config(fields: ConfigFields) -> ModelConfig:
    """The `text_config` in a file, with what stands beside it. Raises: ModelError, as for a text model, and if there is none."""
    refuse_quantization(fields)
    text = fields.nested("text_config")
    if text is None:
        fields.refuse("text_config", "must be an object that describes the text model")
    if text.get("final_logit_softcapping") is not None:
        text.refuse("final_logit_softcapping", "must be null in a gemma3 model")
    for each in (fields, text):
        if not each.boolean("tie_word_embeddings", True):
            each.refuse("tie_word_embeddings", "must be true in a gemma3 model")
    config = gemma3.read_text_config(text, "gemma3")
    if "eos_token_id" in fields:
        config = replace(config, eos_token_ids=fields.token_ids("eos_token_id", None, config.vocab_size))
    if fields.given_names & {"dtype", "torch_dtype"}:
        config = replace(config, dtype=read_dtype(fields))
    return config


def param_sources(config: ModelConfig) -> dict[str, ParamSource]:
    """Parameter path -> the checkpoint tensors it is made of."""
    return {path: prefixed_source(PREFIX, source) for path, source in gemma3.param_sources(config).items()}
