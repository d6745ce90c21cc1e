"""The work that every peer gets: requests of token ids, all there at the start or as soon as the first of them has come so far. Plain Python of any version."""

import random
from dataclasses import dataclass

BATCH_PROMPT_TOKENS = range(32, 288, 16)  # of 16 requests
MIXED_PROMPT_TOKENS = range(32, 224, 16)  # of 12 that are decoding when the long prompts come
LONG_PROMPT_TOKENS, LONG_OUTPUT_TOKENS, NUM_LONG = 1000, 16, 3


@dataclass(frozen=True)
class Request:
    """prompt: token ids. after_tokens: it arrives when the first request of its load has had so many tokens; 0: at the start."""

    prompt: list[int]
    max_tokens: int
    after_tokens: int = 0


@dataclass
class Answer:
    """What a request got: when each token was there for its reader. Seconds after the load began."""

    arrival_s: float
    token_ids: list[int]
    token_times_s: list[float]


@dataclass(frozen=True)
class Order:
    """How a peer is to be started.

    precision: "float32" of all there is, or "default": what the peer chooses by itself on this machine.
    kv_tokens: room for keys and values, of peers that count it in tokens.
    server, port: what starts an HTTP server on which port, where the peer is one; else empty and 0.
    """

    folder: str
    precision: str
    num_threads: int
    token_budget: int
    max_num_seqs: int = 16
    max_model_len: int = 1280
    kv_tokens: int = 16384
    server: tuple[str, ...] = ()
    port: int = 0


def batch_load(vocab_size: int, num_tokens: int) -> list[Request]:
    """Sixteen requests at once."""
    rng = random.Random(0)
    return [Request(_ids(rng, vocab_size, length), num_tokens) for length in BATCH_PROMPT_TOKENS]


def mixed_load(vocab_size: int, num_tokens: int) -> list[Request]:
    """Twelve requests at once, and three long prompts that arrive while these twelve are decoding."""
    rng = random.Random(1)
    decodes = [Request(_ids(rng, vocab_size, length), num_tokens) for length in MIXED_PROMPT_TOKENS]
    late = [
        Request(_ids(rng, vocab_size, LONG_PROMPT_TOKENS), LONG_OUTPUT_TOKENS, after_tokens)
        for after_tokens in range(num_tokens // 4, num_tokens, num_tokens // 4)
    ]
    return decodes + late[:NUM_LONG]


def warm_up(load: list[Request]) -> list[Request]:
    """The same prompts with the fewest tokens: what a peer builds on first use is there then."""
    return [Request(each.prompt, min(each.max_tokens, 8), min(each.after_tokens, 4)) for each in load]


def _ids(rng: random.Random, vocab_size: int, length: int) -> list[int]:
    return [rng.randrange(6, vocab_size) for _ in range(length)]
