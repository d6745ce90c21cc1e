"""POST /v1/chat/completions: a conversation, answered n times."""

import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from sarathi_jax.serve import sse
from sarathi_jax.serve.answer import Answer
from sarathi_jax.serve.chat_message import ChatMessage
from sarathi_jax.serve.envelope import Envelope
from sarathi_jax.serve.front import Front, usage
from sarathi_jax.serve.generation import Piece
from sarathi_jax.serve.respond import json_answer, needs_usage, stream_answer
from sarathi_jax.serve.route_docs import described
from sarathi_jax.serve.schemas import ChatBody
from sarathi_jax.serve.tool_use import ToolUse, read_chat_form


def chat_router(front: Front) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", **described(ChatBody))
    async def chat(request: Request) -> Response:
        body = await front.read(request, ChatBody)
        with front.enter(request) as ticket:
            front.check_model(body.model)
            form, tools = read_chat_form(front, body)
            params = front.reader.read(body, structured=form.structured)
            if tools is not None and tools.has_special_mark:
                params = replace(params, skip_special_tokens=False)
            token_ids = await front.prompts.encode_chat(
                body.messages,
                max_tokens=front.max_prompt_tokens,
                tools=None if tools is None else tools.descriptions,
                add_generation_prompt=body.add_generation_prompt is not False,
            )
            await front.forms.check(form)
            answer = front.answer(request, ticket, body, [token_ids], params)
        writer = ChatWriter(front, body, answer, token_ids, tools)
        if body.stream:
            return stream_answer(front, answer, writer.chunks())
        return await json_answer(request, answer, writer.whole)

    return router


class ChatWriter:
    """Writes one answer, whole or in chunks."""

    def __init__(
        self, front: Front, body: ChatBody, answer: Answer, prompt_token_ids: list[int], tools: ToolUse | None
    ) -> None:
        self._front = front
        self._body = body
        self._answer = answer
        self._prompt_token_ids = prompt_token_ids
        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        answer_id = f"chatcmpl-{body.request_id or uuid.uuid4().hex}"
        self._envelope = Envelope(answer_id, kind, int(time.time()), body.model, with_usage=needs_usage(body))
        self._num_tokens = 0
        self._messages = [ChatMessage(tools) for _ in range(answer.num_choices)]

    async def whole(self) -> bytes:
        pieces = await self._answer.whole()
        choices = [{"message": self._messages[piece.sample].whole(piece), **self._rest(piece)} for piece in pieces]
        more = await self._answer.extras(self._body)
        prompt_logprobs = pieces[0].prompt_logprobs
        if self._body.prompt_logprobs is not None and prompt_logprobs is not None:
            texts = self._front.token_texts
            more["prompt_logprobs"] = texts.prompt(self._prompt_token_ids, prompt_logprobs, self._body.prompt_logprobs)
        if self._body.return_token_ids:
            more["prompt_token_ids"] = self._prompt_token_ids
        return self._envelope.body(choices, self._usage(), **more)

    async def chunks(self) -> AsyncIterator[bytes]:
        is_continuous = needs_usage(self._body, is_continuous=True)
        for index in range(self._answer.num_choices):
            first = {
                "index": index,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
            yield self._envelope.chunk([first], self._usage(is_over=False) if is_continuous else None)
        async for pieces in self._answer.batches():
            for piece in pieces:
                for choice in self._choices(piece):
                    yield self._envelope.chunk([choice], self._usage(is_over=False) if is_continuous else None)
        if needs_usage(self._body) or self._body.timing:
            yield self._envelope.chunk([], self._usage(), await self._answer.extras(self._body))
        yield sse.DONE

    def _choices(self, piece: Piece) -> list[dict[str, Any]]:
        """Of the chunks that a piece makes: the last one has its tokens and its end."""
        deltas = self._messages[piece.sample].deltas(piece)
        rest = self._rest(piece)
        first: list[dict[str, Any]] = [
            {"index": piece.sample, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas[:-1]
        ]
        if deltas or piece.finish_reason or self._body.logprobs or self._body.return_token_ids:
            first.append({"delta": deltas[-1] if deltas else {}, **rest})
        return first

    def _rest(self, piece: Piece) -> dict[str, Any]:
        """Of a choice, beside what it says."""
        body, logprobs = self._body, None
        if body.logprobs:
            as_ids = bool(body.return_tokens_as_token_ids)
            logprobs = self._front.token_texts.chat(piece.token_ids, piece.logprobs, as_ids=as_ids)
        rest: dict[str, Any] = {
            "index": piece.sample,
            "logprobs": logprobs,
            "finish_reason": self._messages[piece.sample].finish_reason(piece),
            "stop_reason": piece.stop_reason,
        }
        if body.return_token_ids:
            rest["token_ids"] = piece.token_ids
        self._num_tokens += len(piece.token_ids)
        return rest

    def _usage(self, *, is_over: bool = True) -> dict[str, Any]:
        num_cached = self._answer.num_cached_tokens if is_over else None
        return usage(self._answer.num_prompt_tokens, self._num_tokens, num_cached)
