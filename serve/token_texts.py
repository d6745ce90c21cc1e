"""Log-probabilities as clients read them: OpenAI's two shapes, with a text for each token."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

from sarathi_jax.outputs import TokenLogprobs
from sarathi_jax.text.tokenizer import Tokenizer

CACHED_TOKENS = 65536
LEAST_LOGPROB = -9999.0  # JSON has no infinity


class TokenTexts:
    """Texts of single tokens. as_ids: "token_id:123" in place of a token's text, which may be no text at all."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._bytes = lru_cache(CACHED_TOKENS)(_no_bytes if tokenizer is None else tokenizer.token_bytes)
        self._special = {} if tokenizer is None else tokenizer.special_texts

    def text(self, token_id: int, *, as_ids: bool = False) -> str:
        return f"token_id:{token_id}" if as_ids else self.bytes_of(token_id).decode(errors="replace")

    def bytes_of(self, token_id: int) -> bytes:
        special = self._special.get(token_id)
        return self._bytes(token_id) if special is None else special.encode()

    def num_chars(self, token_id: int) -> int:
        """Of a token's text by itself; special tokens are not in a text."""
        return len(self._bytes(token_id).decode(errors="replace"))

    def chat(self, token_ids: Sequence[int], given: Sequence[TokenLogprobs], *, as_ids: bool) -> dict[str, Any]:
        """Of chat completions: {"content": [{token, logprob, bytes, top_logprobs}], "refusal"}."""
        content = [
            {
                **self._entry(token_id, each.logprob, as_ids),
                "top_logprobs": [self._entry(top_id, value, as_ids) for top_id, value in each.top],
            }
            for token_id, each in zip(token_ids, given, strict=False)
        ]
        return {"content": content, "refusal": None}

    def completion(
        self,
        token_ids: Sequence[int],
        given: Sequence[TokenLogprobs | None],
        num_top: int,
        text_offset: int,
        *,
        as_ids: bool,
    ) -> dict[str, Any]:
        """Of completions. given: None for a prompt's first token. text_offset: characters of all tokens before the first of these."""
        tokens = [self.text(token_id, as_ids=as_ids) for token_id in token_ids]
        tops: list[dict[str, float] | None] = []
        for token, each in zip(tokens, given, strict=True):
            if each is None:
                tops.append(None)
                continue
            # The most probable ones first; the drawn one comes besides where it is none of them.
            top = {self.text(top_id, as_ids=as_ids): finite(value) for top_id, value in each.top[:num_top]}
            tops.append({**top, **({} if token in top else {token: finite(each.logprob)})})
        offsets = accumulate((self.num_chars(token_id) for token_id in token_ids), initial=text_offset)
        return {
            "tokens": tokens,
            "token_logprobs": [None if each is None else finite(each.logprob) for each in given],
            "top_logprobs": tops,
            "text_offset": list(offsets)[:-1],
        }

    def prompt(
        self, token_ids: Sequence[int], given: Sequence[TokenLogprobs | None], num_top: int
    ) -> list[dict[str, Any] | None]:
        """vLLM's prompt_logprobs: by token id, {logprob, rank, decoded_token}."""
        return [
            None if each is None else self._prompt_entry(token_id, each, num_top)
            for token_id, each in zip(token_ids, given, strict=True)
        ]

    def _entry(self, token_id: int, logprob: float, as_ids: bool) -> dict[str, Any]:
        text = self.text(token_id, as_ids=as_ids)
        return {"token": text, "logprob": finite(logprob), "bytes": list(self.bytes_of(token_id))}

    def _prompt_entry(self, token_id: int, given: TokenLogprobs, num_top: int) -> dict[str, Any]:
        ranked = [(top_id, value, rank) for rank, (top_id, value) in enumerate(given.top[:num_top], 1)]
        if token_id not in [top_id for top_id, _, _ in ranked]:
            ranked.append((token_id, given.logprob, given.rank))
        return {
            str(each): {"logprob": finite(value), "rank": rank, "decoded_token": self.text(each)}
            for each, value, rank in ranked
        }


def finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


def _no_bytes(_: int) -> bytes:
    return b""
