"""Refuses requests that can never be served, with the arithmetic in the message. Knows nothing of what runs now."""

from collections.abc import Sequence

from sarathi_jax.errors import RequestError
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.limits import SchedulerLimits
from sarathi_jax.scheduling.request import Request

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"


def check_request(request: Request, limits: SchedulerLimits, *, are_ids_known: bool = False) -> None:
    """are_ids_known: whether its tokens need not be looked at.

    Raises: RequestError, with `param`, if no waiting would make this request fit or its ids mean nothing to the model."""
    _check_priority(request.priority)
    _check_prompt(request)
    if not are_ids_known:
        is_fresh = request.num_given_tokens == request.num_prompt_tokens
        _check_ids(request.token_ids if is_fresh else request.prompt_token_ids, limits.vocab_size, "Prompt", "prompt")
    _check_output(request, limits.vocab_size)
    _check_length(request, limits)
    _check_sampling_ids(request.sampling, limits.vocab_size)
    _check_allowed_ids(request)


def _check_priority(priority: object) -> None:
    if isinstance(priority, bool) or not isinstance(priority, int):
        got = repr(priority)
    elif not -(2**63) <= priority < 2**63:
        got = f"one of {priority.bit_length()} bits"
    else:
        return
    raise RequestError(
        f"priority must be a whole number between -2**63 and 2**63 - 1, got {got}. Lower is earlier; leave it out for 0.",
        param="priority",
    )


def _check_prompt(request: Request) -> None:
    if not request.num_prompt_tokens:
        raise RequestError(
            "The prompt must hold at least one token, got none. Pass some text, or a token such as the beginning-of-sequence one.",
            param="prompt",
        )


def _check_ids(token_ids: Sequence[int], vocab_size: int, name: str, param: str) -> None:
    if set(map(type, token_ids)) != {int}:
        raise RequestError(
            f"{name} token ids must be whole numbers below {vocab_size}, got other values. Pass a list of ints.",
            param=param,
        )
    distinct = set(token_ids)  # a prompt repeats its tokens: this is faster than looking at each twice
    if min(distinct) < 0 or max(distinct) >= vocab_size:
        wrong = ((place, each) for place, each in enumerate(token_ids) if not 0 <= each < vocab_size)
        position, token_id = next(wrong)
        raise RequestError(
            f"{name} token ids must be between 0 and {vocab_size - 1} (the vocabulary has {vocab_size}), got {token_id} at "
            f"position {position}. Tokenize with this model's tokenizer.",
            param=f"{param}[{position}]",
        )


def _check_output(request: Request, vocab_size: int) -> None:
    """Output that a request had elsewhere must be one that it can go on after."""
    output = request.output_token_ids
    if not output:
        return
    _check_ids(output, vocab_size, "Output", "output_token_ids")
    if request.sampling.n != 1:
        raise RequestError(
            f"Only one sample can go on after output_token_ids, got n={request.sampling.n}. Send each sample as a request with n=1.",
            param="n",
        )
    if len(output) >= request.max_tokens:
        raise RequestError(
            f"output_token_ids must leave some of max_tokens={request.max_tokens}, which counts them, got {len(output)}. It has ended: don't go on.",
            param="output_token_ids",
        )
    min_tokens = request.sampling.min_tokens
    stop = next((token_id for token_id in output[min_tokens:] if token_id in request.stop_token_ids), None)
    if stop is not None:
        raise RequestError(
            f"output_token_ids must hold no token that ends the output, got {stop}. It has ended: don't go on.",
            param="output_token_ids",
        )


def _check_length(request: Request, limits: SchedulerLimits) -> None:
    num_prompt_tokens, max_tokens = request.num_prompt_tokens, request.max_tokens
    if num_prompt_tokens >= limits.max_model_len:
        raise RequestError(
            f"The prompt has {num_prompt_tokens} tokens and the model's length is {limits.max_model_len}, which leaves no room for "
            f"output. Shorten the prompt to at most {limits.max_model_len - 1} tokens.",
            param="prompt",
            code=CONTEXT_LENGTH_EXCEEDED,
        )
    if max_tokens < 1:
        raise RequestError(f"max_tokens must be at least 1, got {max_tokens}. Ask for more.", param="max_tokens")
    if request.sampling.min_tokens > max_tokens:
        raise RequestError(
            f"min_tokens={request.sampling.min_tokens} must be at most the {max_tokens} tokens that may be generated. Lower min_tokens.",
            param="min_tokens",
        )
    if request.max_num_tokens > limits.max_model_len:
        raise RequestError(
            f"{num_prompt_tokens} prompt tokens + max_tokens={max_tokens} = {request.max_num_tokens} exceed the model's length of "
            f"{limits.max_model_len}. Shorten the prompt or lower max_tokens to {limits.max_model_len - num_prompt_tokens}.",
            param="max_tokens",
            code=CONTEXT_LENGTH_EXCEEDED,
        )
    # The last token's keys and values are never read, so they are never written.
    num_kv_tokens = request.max_num_tokens - 1
    num_needed_pages = limits.num_pages_for(num_kv_tokens)
    if num_needed_pages > limits.num_pages:
        raise RequestError(
            f"{num_prompt_tokens} prompt tokens + max_tokens={max_tokens} - 1 = {num_kv_tokens} tokens in the KV cache need "
            f"{num_needed_pages} pages of {limits.page_size} tokens, and there are {limits.num_pages}. Shorten the prompt, lower "
            "max_tokens, or start with more pages.",
            param="max_tokens",
            code=CONTEXT_LENGTH_EXCEEDED,
        )


def _check_sampling_ids(sampling: SamplingParams, vocab_size: int) -> None:
    if sampling.max_token_id < vocab_size:
        return
    for param in ("logit_bias", "allowed_token_ids", "stop_token_ids"):
        for token_id in getattr(sampling, param) or ():
            if token_id >= vocab_size:
                raise RequestError(
                    f"{param} must name ids between 0 and {vocab_size - 1} (the vocabulary has {vocab_size}), got {token_id}. "
                    "Leave that id out.",
                    param=param,
                )


def _check_allowed_ids(request: Request) -> None:
    """Until min_tokens are drawn no stop token may be, so something else has to be allowed."""
    allowed = request.sampling.allowed_token_ids
    if allowed is not None and request.sampling.min_tokens and request.stop_token_ids.issuperset(allowed):
        raise RequestError(
            f"allowed_token_ids must hold an id that does not end the output while min_tokens={request.sampling.min_tokens} asks for more, got"
            f" {list(allowed)[:8]}. Allow another id, or set min_tokens=0.",
            param="allowed_token_ids",
        )
