"""From a request's fields to `SamplingParams`: the model's own defaults under them, the client's names and conventions over them."""

import random
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sarathi_jax.errors import ModelError, RequestError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.serve.errors import ApiError
from sarathi_jax.serve.schemas import ChatBody, CompletionBody, SamplingBody
from sarathi_jax.structured import StructuredOutput
from sarathi_jax.text.model_files import read_json_object

MAX_INT32 = 2**31 - 1
DEFAULT_COMPLETION_TOKENS = 16
# Fields of a body that SamplingParams has, too, and that mean the same.
SHARED = {field.name for field in fields(SamplingParams)} & set(SamplingBody.model_fields)
FROM_MODEL = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def model_defaults(folder: Path | None) -> dict[str, Any]:
    """Sampling options that a model's generation_config.json recommends, by SamplingParams' names.

    Raises: ModelError if one of them is out of range."""
    path = None if folder is None else folder / "generation_config.json"
    if path is None or not path.is_file():
        return {}
    config = read_json_object(path)
    defaults = {name: config[name] for name in FROM_MODEL if config.get(name) is not None}
    if config.get("do_sample") is False:
        defaults["temperature"] = 0.0
    try:
        SamplingParams(**defaults)
    except RequestError as error:
        raise ModelError(f"{path}: {error}") from error
    return defaults


class SamplingReader:
    """Reads bodies into `SamplingParams`, each with a seed.

    Args:
      defaults: what holds where a body says nothing.
      max_samples: of one request.
    """

    def __init__(self, defaults: Mapping[str, Any], max_samples: int) -> None:
        self._defaults = dict(defaults)
        self._max_samples = max_samples
        self._random = random.SystemRandom()

    def read(
        self, body: CompletionBody | ChatBody, num_prompts: int = 1, *, structured: StructuredOutput | None = None
    ) -> SamplingParams:
        """One prompt's. structured: what its output has to be. Raises: RequestError, ApiError."""
        given = {name: value for name in SHARED if (value := getattr(body, name)) is not None}
        params: dict[str, Any] = {**self._defaults, **given}
        num_samples = num_prompts * params.get("n", 1)
        if num_samples > self._max_samples:
            message = (
                f"n times the number of prompts must be at most {self._max_samples}, got {num_samples}: ask for fewer."
            )
            raise ApiError(400, "integer_above_max_value", message, param="n")
        params["max_tokens"] = _max_tokens(body)
        if "min_tokens" in params:
            params["min_tokens"] = min(params["min_tokens"], MAX_INT32)
        if "top_k" in params:
            params["top_k"] = min(max(params["top_k"], 0), MAX_INT32)
        if body.logit_bias is not None:
            params["logit_bias"] = _logit_bias(body.logit_bias)
        # Without one the engine would choose it, and one that comes after it could not go on.
        params["seed"] = self._random.getrandbits(63) if body.seed is None else body.seed % 2**63
        params |= _logprobs(body)
        return SamplingParams(**params, structured=structured)


def _max_tokens(body: CompletionBody | ChatBody) -> int | None:
    """None: as many as there is room for."""
    if isinstance(body, ChatBody):
        asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        if asked == 0:
            raise _no_tokens()
    else:
        is_silent = "max_tokens" not in body.model_fields_set
        asked = DEFAULT_COMPLETION_TOKENS if is_silent else body.max_tokens
        if asked == 0:
            if not body.echo:
                raise _no_tokens()
            asked = 1  # there is no step that draws nothing: the token is left out of the answer
    return None if asked is None else min(asked, MAX_INT32)


def _no_tokens() -> ApiError:
    return ApiError(400, "integer_below_min_value", "max_tokens must be at least 1, got 0.", param="max_tokens")


def _logit_bias(given: Mapping[str, float]) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10):
            message = f"logit_bias must have token ids as keys, got {ascii(key)[:40]}."
            raise ApiError(400, "invalid_value", message, param="logit_bias")
        bias[int(key)] = value
    return bias


def _logprobs(body: CompletionBody | ChatBody) -> dict[str, int]:
    if isinstance(body, ChatBody):
        return {"logprobs": body.top_logprobs or 0} if body.logprobs else {}
    if body.logprobs is None:
        return {}
    asked = {"logprobs": body.logprobs}
    if body.echo:
        asked["prompt_logprobs"] = max(body.logprobs, body.prompt_logprobs or 0)
    return asked
