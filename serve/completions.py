"""POST /v1/completions: prompts of text or token ids, each continued n times."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from fastapi import APIRouter, Request
from starlette.responses import Response

from sarathi_jax.serve import sse
from sarathi_jax.serve.answer import Answer
from sarathi_jax.serve.envelope import Envelope
from sarathi_jax.serve.front import Front, usage
from sarathi_jax.serve.generation import Piece
from sarathi_jax.serve.output_form import read_form
from sarathi_jax.serve.respond import json_answer, needs_usage, stream_answer
from sarathi_jax.serve.route_docs import described
from sarathi_jax.serve.schemas import CompletionBody


def completions_router(front: Front) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions", **described(CompletionBody))
    async def complete(request: Request) -> Response:
        body = await front.read(request, CompletionBody)
        with front.enter(request) as ticket:
            front.check_model(body.model)
            form = read_form(body)
            prompts, texts = await read_prompts(front, body)
            params = front.reader.read(body, len(prompts), structured=form.structured)
            await front.forms.check(form)
            answer = front.answer(request, ticket, body, prompts, params)
        writer = CompletionWriter(front, body, answer, prompts, texts)
        if body.stream:
            return stream_answer(front, answer, writer.chunks())
        return await json_answer(request, answer, writer.whole)

    return router


async def read_prompts(front: Front, body: CompletionBody) -> tuple[list[list[int]], list[str | None]]:
    """Token ids of every prompt, and its text where it came as text. Raises: ApiError, RequestError."""
    prompt = body.prompt
    if isinstance(prompt, str):
        prompt = [prompt]
    if isinstance(prompt[0], int):
        prompt = [cast("list[int]", prompt)]
    token_ids: list[list[int]] = []
    for each in cast("Sequence[str | list[int]]", prompt):
        if isinstance(each, str):
            adds = body.add_special_tokens is not False
            each = await front.prompts.encode(each, max_tokens=front.max_prompt_tokens, add_special_tokens=adds)
        token_ids.append(each)
    return token_ids, [each if isinstance(each, str) else None for each in cast("Sequence[Any]", prompt)]


class CompletionWriter:
    """Writes one answer, whole or in chunks."""

    def __init__(
        self,
        front: Front,
        body: CompletionBody,
        answer: Answer,
        prompts: Sequence[list[int]],
        texts: Sequence[str | None],
    ) -> None:
        self._front = front
        self._body = body
        self._answer = answer
        self._prompts = prompts
        self._texts = texts
        answer_id = f"cmpl-{body.request_id or uuid.uuid4().hex}"
        self._envelope = Envelope(
            answer_id, "text_completion", int(time.time()), body.model, with_usage=needs_usage(body)
        )
        self._offsets = [0] * answer.num_choices
        self._num_tokens = [0] * answer.num_choices
        self._has_begun = [False] * answer.num_choices

    async def whole(self) -> bytes:
        pieces = await self._answer.whole()
        choices = [self._choice(piece) for piece in pieces]
        return self._envelope.body(choices, self._usage(), **await self._answer.extras(self._body))

    async def chunks(self) -> AsyncIterator[bytes]:
        is_continuous = needs_usage(self._body, is_continuous=True)
        async for pieces in self._answer.batches():
            for piece in pieces:
                if self._is_worth_a_chunk(piece):
                    choice = self._choice(piece)
                    yield self._envelope.chunk([choice], self._usage(is_over=False) if is_continuous else None)
                else:
                    self._num_tokens[piece.sample] += len(piece.token_ids)
        if needs_usage(self._body) or self._body.timing:
            more = await self._answer.extras(self._body)
            yield self._envelope.chunk([], self._usage(), more)
        yield sse.DONE

    def _is_worth_a_chunk(self, piece: Piece) -> bool:
        asks_for_tokens = self._body.logprobs is not None or bool(self._body.return_token_ids)
        return bool(piece.text or piece.finish_reason or asks_for_tokens or not self._has_begun[piece.sample])

    def _choice(self, piece: Piece) -> dict[str, Any]:
        index, body = piece.sample, self._body
        is_first, self._has_begun[index] = not self._has_begun[index], True
        prompt_ids = self._prompts[index // self._answer.num_samples]
        is_echoed = bool(body.echo) and is_first
        # With max_tokens 0 the one token that was drawn is nobody's.
        token_ids, text = ([], "") if body.max_tokens == 0 else (piece.token_ids, piece.text)
        echoed = self._prompt_text(index) if is_echoed else ""
        choice: dict[str, Any] = {
            "index": index,
            "text": echoed + text,
            "logprobs": self._logprobs(piece, token_ids, prompt_ids if is_echoed else []),
            "finish_reason": "length" if body.max_tokens == 0 and piece.finish_reason else piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if body.return_token_ids:
            choice["token_ids"] = token_ids
            if is_first:
                choice["prompt_token_ids"] = prompt_ids
        if body.prompt_logprobs is not None and piece.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._front.token_texts.prompt(
                prompt_ids, piece.prompt_logprobs, body.prompt_logprobs
            )
        self._num_tokens[index] += len(token_ids)
        return choice

    def _logprobs(self, piece: Piece, token_ids: list[int], echoed_ids: list[int]) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        given = [*(piece.prompt_logprobs or [])] if echoed_ids else []
        given += [None] * (len(echoed_ids) - len(given))  # a prompt of one token has none
        texts, all_ids, offset = self._front.token_texts, [*echoed_ids, *token_ids], self._offsets[piece.sample]
        self._offsets[piece.sample] += sum(map(texts.num_chars, all_ids))
        as_ids = bool(self._body.return_tokens_as_token_ids)
        all_given = [*given, *piece.logprobs[: len(token_ids)]]
        return texts.completion(all_ids, all_given, self._body.logprobs, offset, as_ids=as_ids)

    def _prompt_text(self, index: int) -> str:
        place = index // self._answer.num_samples
        text = self._texts[place]
        return self._front.prompts.decode(self._prompts[place]) if text is None else text

    def _usage(self, *, is_over: bool = True) -> dict[str, Any]:
        num_cached = self._answer.num_cached_tokens if is_over else None
        return usage(self._answer.num_prompt_tokens, sum(self._num_tokens), num_cached)
