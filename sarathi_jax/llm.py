"""LLM: a model, its tokenizer and an engine, for offline batches, chat and streams."""

import contextlib
import dataclasses
import difflib
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sarathi_jax.checkpoints.model_source import ModelSource
from sarathi_jax.config import EngineConfig
from sarathi_jax.engine.engine import Prompt
from sarathi_jax.engine.replicas import AnyEngine
from sarathi_jax.errors import ConfigError, EngineError, ModelNotFoundError, RequestError
from sarathi_jax.outputs import RequestOutput, StreamEvent
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.service_levels import INTERACTIVE
from sarathi_jax.started_engine import StartedEngine
from sarathi_jax.text.chat import encode_chat
from sarathi_jax.text.chat_template import ChatTemplate
from sarathi_jax.text.tokenizer import Tokenizer

Prompts = str | Sequence[str] | Sequence[Sequence[int]]


class LLM:
    """A model that is ready to generate.

    Args:
      model: "demo", a folder (in Hugging Face format, or what `convert` made of one), or a hub id.
      progress: show bars while weights load and programs compile; None: if standard error is a terminal.
      options: fields of EngineConfig.
    Raises: ConfigError, ModelError, CapacityError; GroupError if one of several processes is lost on the way.

    Not safe to share between threads; streams and batches of one thread may be mixed. With several processes this one leads, and the others `follow`.
    """

    def __init__(self, model: str = "demo", *, progress: bool | None = None, **options: Any) -> None:
        has_bars = sys.stderr.isatty() if progress is None else progress
        started = StartedEngine(engine_config(model, options), progress=has_bars, found=self._read_texts)
        self.config = started.config
        self.model_config = started.source.config
        self.compile_ledger = started.compile_ledger
        self.memory_plan = started.programs.plan
        self.engines = started.engines
        self.engine: AnyEngine = started.engine
        self._outputs: dict[str, RequestOutput] = {}
        self._events: dict[str, list[StreamEvent]] = {}
        # Also when the process ends, or nobody holds this object any more.
        self._finalizer = weakref.finalize(self, _close, started, self._template)

    def _read_texts(self, source: ModelSource) -> Tokenizer | None:
        """Tokenizer and chat template, where the model has any."""
        self.tokenizer = None if source.folder is None else _load_tokenizer(source.folder)
        self._template = None if source.folder is None else ChatTemplate.from_folder(source.folder)
        return self.tokenizer

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        slo_class: str = INTERACTIVE,
        client: str = "",
        priority: int | Sequence[int] = 0,
    ) -> list[RequestOutput]:
        """Complete prompts.

        Args:
          prompts: a text, several, or several lists of token ids.
          params: for all, or one a prompt; None is SamplingParams().
          progress: show a bar on standard error.
          slo_class, client: as `Engine.add_request` has them, of all of them.
          priority: as there; for all, or one a prompt.
        Returns: one output a prompt, in their order.
        Raises: RequestError, naming the prompt, if one can't be served: none is started then. EngineError if the engine fails.
        """
        batch = _as_list(prompts)
        each = _params_of_each(params, len(batch))
        priorities = _priority_of_each(priority, len(batch))
        request_ids = self._add_all(batch, each, priorities, slo_class=slo_class, client=client)
        try:
            with tqdm(total=len(batch), desc="generate", unit="request", disable=not progress) as bar:
                while missing := [each_id for each_id in request_ids if each_id not in self._outputs]:
                    bar.update(len(batch) - len(missing) - bar.n)
                    self._step()
                bar.update(len(batch) - bar.n)
            return [self._outputs[request_id] for request_id in request_ids]
        finally:
            self._forget(request_ids)

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        slo_class: str = INTERACTIVE,
        client: str = "",
        priority: int = 0,
    ) -> Iterator[StreamEvent]:
        """Complete one prompt, token by token. The request is queued at once; leaving the iteration aborts it. slo_class, client, priority: as in `generate`.

        Raises: RequestError if the prompt can't be served; EngineError, while iterating, if the engine fails.
        """
        request_id = self.engine.add_request(prompt, params, slo_class=slo_class, client=client, priority=priority)
        self._events[request_id] = []
        stream = self._stream(request_id)
        next(stream)  # to where leaving it aborts the request
        return stream

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> RequestOutput:
        """Answer a conversation: messages with "role" and "content", put into the model's chat template.

        Raises: RequestError if the model has no template, or the template does not take these messages.
        """
        return self.generate([self._encode_chat(messages, tools)], params)[0]

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Iterator[StreamEvent]:
        """As `chat`, token by token."""
        return self.stream(self._encode_chat(messages, tools), params)

    def dump_flight_record(self, path: str | Path) -> list[Path]:
        """Write what the flight recorder holds: for `sarathi-jax explain` and `sarathi-jax simulate replay`.

        path: ends in .gz: compressed. Of several replicas each writes a file of its own, with its number before the name's first dot.
        Returns: the files. Raises: ConfigError if nothing is recorded, or a file can't be written.
        """
        path = Path(path)
        stem, dot, rest = path.name.partition(".")
        several = len(self.engines) > 1
        paths = [
            path.with_name(f"{stem}-{place}{dot}{rest}") if several else path for place in range(len(self.engines))
        ]
        for engine, each in zip(self.engines, paths, strict=True):
            if engine.recorder is None:
                raise ConfigError("flight_recorder must be above 0 to record anything, got 0: start with 65536.")
            engine.recorder.dump(each)
        return paths

    def close(self) -> None:
        """Abort what runs and release devices and helper processes; idempotent."""
        self._finalizer()

    def _stream(self, request_id: str) -> Iterator[StreamEvent]:
        try:
            yield StreamEvent(request_id, 0, "", [])  # taken by `stream`
            is_going = True
            while is_going:
                events, self._events[request_id] = self._events[request_id], []
                for event in events:
                    is_going = event.output is None
                    yield event
                if is_going and not events:
                    if not self.engine.has_unfinished:
                        raise EngineError(
                            f"A stream must be read while its request lives, got {request_id}, which was aborted: start it again."
                        )
                    self._step()
        finally:
            self._forget([request_id])

    def _step(self) -> None:
        """One turn of the engine; what it brings others than the caller waits for them."""
        for event in self.engine.step():
            if event.request_id in self._events:
                self._events[event.request_id].append(event)
            elif event.output is not None:
                self._outputs[event.request_id] = event.output

    def _add_all(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], priorities: Sequence[int], **facts: Any
    ) -> list[str]:
        request_ids: list[str] = []
        try:
            for index, (prompt, each, priority) in enumerate(zip(prompts, params, priorities, strict=True)):
                try:
                    request_ids.append(self.engine.add_request(prompt, each, priority=priority, **facts))
                except RequestError as error:
                    raise RequestError(f"Prompt {index}: {error}", param=error.param) from error
        except BaseException:
            self._forget(request_ids)
            raise
        return request_ids

    def _forget(self, request_ids: Sequence[str]) -> None:
        """Abort what is not done, and drop what is."""
        for request_id in request_ids:
            self.engine.abort(request_id)
            self._outputs.pop(request_id, None)
            self._events.pop(request_id, None)

    def _encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int]:
        if self.tokenizer is None:
            raise RequestError(
                f"A conversation needs a tokenizer, got {self.config.model} without one: use generate with token ids.",
                param="messages",
            )
        return encode_chat(self.tokenizer, self._template, messages, tools)


def engine_config(model: str, options: Mapping[str, Any]) -> EngineConfig:
    """Options as they come from Python. Raises: ConfigError, with the closest name there is, if there is no such option."""
    names = {field.name for field in dataclasses.fields(EngineConfig)}
    for name in options:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise ConfigError(
                f"LLM takes the options {', '.join(sorted(names))}, got {name}"
                + (f": did you mean {close[0]}?" if close else ".")
            )
    return EngineConfig(model=model, **options)


def _close(started: StartedEngine, template: ChatTemplate | None) -> None:
    """Both, whatever becomes of the other."""
    with contextlib.ExitStack() as stack:
        if template is not None:
            stack.callback(template.close)
        started.close()


def _load_tokenizer(folder: Path) -> Tokenizer | None:
    try:
        return Tokenizer.from_folder(folder)
    except ModelNotFoundError:
        return None  # prompts are token ids then; text and chat say so


def _as_list(prompts: Prompts) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    batch = list(prompts) if isinstance(prompts, Iterable) else None
    if batch is None or (batch and all(isinstance(each, int) for each in batch)):
        raise RequestError(
            "prompts must be a text, or a list of texts or of lists of token ids, got"
            f" {type(prompts).__name__ if batch is None else 'a list of numbers'}: wrap it in a list.",
            param="prompts",
        )
    return batch


def _params_of_each(params: SamplingParams | Sequence[SamplingParams] | None, count: int) -> list[SamplingParams]:
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * count
    if not isinstance(params, Sequence) or not all(isinstance(each, SamplingParams) for each in params):
        raise RequestError(
            f"params must be SamplingParams, or a list of them, got {type(params).__name__}: write SamplingParams(max_tokens=16).",
            param="params",
        )
    if len(params) != count:
        raise RequestError(
            f"params must be one for all prompts or one each, got {len(params)} for {count}: pass {count}.",
            param="params",
        )
    return list(params)


def _priority_of_each(priority: Any, count: int) -> Sequence[int]:
    """Whether they are numbers is checked where all requests are."""
    if not isinstance(priority, list | tuple):
        return [priority] * count
    if len(priority) != count:
        raise RequestError(
            f"priority must be one for all prompts or one each, got {len(priority)} for {count}: pass {count}.",
            param="priority",
        )
    return priority
