"""How one request is sampled. Checked once, here, whatever door the request came by; knows nothing of jax or of the engine.

Order of operations on a row's logits, as in Hugging Face and vLLM: logit bias and allowed ids, minimum length, penalties, temperature, top-k,
top-p, min-p, then one draw with the key fold_in(seed, position).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sarathi_jax.errors import RequestError
from sarathi_jax.structured import StructuredOutput

MAX_SAMPLES = 64
MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 300
MAX_STOP_STRINGS = 16
MAX_STOP_TOKEN_IDS = 32
# Below this a softmax at float32 is one-hot up to rounding: such a row is greedy, and no division overflows.
GREEDY_TEMPERATURE = 1e-5


def _field(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling options of one request.

    Raises: RequestError, with `param`, from the constructor if any value is out of its range.
    """

    n: int = _field(1, "samples to draw for the prompt; they share its KV pages")
    max_tokens: int | None = _field(16, "most tokens to generate; None: up to the model's length")
    min_tokens: int = _field(0, "tokens before which no end-of-sequence or stop token is drawn")
    temperature: float = _field(1.0, "0 is greedy; higher is more random")
    top_p: float = _field(1.0, "keep the smallest set of tokens with this probability mass; 1 keeps all")
    top_k: int = _field(0, "keep the k most probable tokens; 0 keeps all")
    min_p: float = _field(0.0, "drop tokens less probable than this fraction of the most probable one")
    repetition_penalty: float = _field(1.0, "above 1 discourages tokens of prompt and output")
    presence_penalty: float = _field(0.0, "subtracted once from each token already generated")
    frequency_penalty: float = _field(0.0, "subtracted per occurrence from each token already generated")
    logit_bias: Mapping[int, float] | None = _field(None, "token id -> value added to its logit")
    allowed_token_ids: tuple[int, ...] | None = _field(None, "only these token ids may be drawn")
    seed: int | None = _field(None, "same seed, same tokens, whatever else runs; None: drawn from the engine's seed")
    stop: tuple[str, ...] = _field((), "strings that end the output")
    stop_token_ids: tuple[int, ...] = _field((), "token ids that end the output")
    ignore_eos: bool = _field(False, "go on after the end-of-sequence token")
    logprobs: int | None = _field(
        None, "log-probabilities of this many most probable tokens per output token (0: of the drawn one)"
    )
    prompt_logprobs: int | None = _field(None, "the same for the prompt's tokens")
    skip_special_tokens: bool = _field(True, "leave special tokens out of the text")
    include_stop_str_in_output: bool = _field(False, "keep the stop string that ended the output in the text")
    structured: StructuredOutput | None = field(
        default=None, metadata={"help": "what the output has to be; None: anything"}
    )

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids", "allowed_token_ids"):
            if isinstance(value := getattr(self, name), Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        if self.logit_bias is not None and not isinstance(self.logit_bias, Mapping):
            raise _wrong("logit_bias", "a mapping from token id to a number", self.logit_bias, "pass a dict")
        self._check_counts()
        self._check_numbers()
        self._check_ids()
        self._check_stops()
        if self.structured is not None:
            self._check_structured()

    def _check_counts(self) -> None:
        _check_int("n", self.n, 1, MAX_SAMPLES)
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _check_int("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _wrong("min_tokens", f"at most max_tokens={self.max_tokens}", self.min_tokens, "lower min_tokens")
        _check_int("top_k", self.top_k, 0, 2**31 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _check_int(name, value, 0, MAX_TOP_LOGPROBS)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, 2**63 - 1)

    def _check_numbers(self) -> None:
        _check_float("temperature", self.temperature, 0.0, 100.0)
        _check_float("top_p", self.top_p, 0.0, 1.0, is_low_open=True)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, 100.0, is_low_open=True)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)

    def _check_ids(self) -> None:
        if self.logit_bias is not None:
            if len(self.logit_bias) > MAX_LOGIT_BIAS:
                raise _wrong(
                    "logit_bias", f"at most {MAX_LOGIT_BIAS} entries", len(self.logit_bias), "bias fewer tokens"
                )
            for token_id, bias in self.logit_bias.items():
                _check_int("logit_bias", token_id, 0, 2**31 - 1)
                _check_float("logit_bias", bias, -1e4, 1e4)
        if self.allowed_token_ids is not None:
            if not self.allowed_token_ids:
                raise _wrong("allowed_token_ids", "at least one id", (), "leave it out to allow all")
            for token_id in self.allowed_token_ids:
                _check_int("allowed_token_ids", token_id, 0, 2**31 - 1)

    def _check_stops(self) -> None:
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise _wrong("stop", "one or several non-empty strings", self.stop, "leave out empty ones")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise _wrong("stop", f"at most {MAX_STOP_STRINGS} strings", len(self.stop), "pass fewer")
        if not isinstance(self.stop_token_ids, tuple) or len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise _wrong("stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS} ids", self.stop_token_ids, "pass fewer")
        for token_id in self.stop_token_ids:
            _check_int("stop_token_ids", token_id, 0, 2**31 - 1)

    def _check_structured(self) -> None:
        """A structure says at each token what may come and when the end has come: options that say otherwise could leave it no token at all."""
        if not isinstance(self.structured, StructuredOutput):
            raise _wrong("structured", "a StructuredOutput", self.structured, "write StructuredOutput(regex=...)")
        others = {
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens,
            "allowed_token_ids": self.allowed_token_ids,
        }
        for name, value in others.items():
            if value:
                raise _wrong(
                    name,
                    "left out with structured, which decides what may come and when it ends",
                    value,
                    "leave out one of them",
                )

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def max_token_id(self) -> int:
        """The largest token id that any field names, or 0: the engine checks it against the logits' width."""
        return max((*(self.logit_bias or ()), *(self.allowed_token_ids or ()), *self.stop_token_ids), default=0)


def _wrong(name: str, rule: str, got: object, remedy: str) -> RequestError:
    return RequestError(f"{name} must be {rule}, got {got!r}: {remedy}.", param=name)


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, "a whole number", value, "pass an int")
    if not low <= value <= high:
        raise _wrong(name, f"between {low} and {high}", value, "choose a value in that range")


def _check_float(name: str, value: object, low: float, high: float, *, is_low_open: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(name, "a finite number", value, "pass a float")
    if not low <= value <= high or (is_low_open and value == low):
        raise _wrong(
            name,
            f"{'above' if is_low_open else 'between'} {low}{' and at most' if is_low_open else ' and'} {high}",
            value,
            "choose a value in that range",
        )
