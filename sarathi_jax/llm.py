"""LLM: a model, its tokenizer and an engine, for offline batches, chat and streams."""

import atexit
import contextlib
import dataclasses
import difflib
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sarathi_jax.checkpoints.model_source import ModelSource, find_model
from sarathi_jax.clock import Clock, WallClock
from sarathi_jax.config import EngineConfig
from sarathi_jax.engine.engine import Engine, Prompt
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.engine.flight_watch import FlightWatch
from sarathi_jax.engine.replicas import AnyEngine, EngineReplicas
from sarathi_jax.errors import ConfigError, EngineError, ModelNotFoundError, RequestError
from sarathi_jax.execution.build import EnginePrograms
from sarathi_jax.execution.compile_ledger import CompileLedger
from sarathi_jax.execution.executor import JaxExecutor
from sarathi_jax.execution.led_group import LedGroup
from sarathi_jax.execution.replicas import build_replicas, start_replicas
from sarathi_jax.group.leader import Leader
from sarathi_jax.group.place import find_place
from sarathi_jax.outputs import RequestOutput, StreamEvent
from sarathi_jax.profiling import least_limits, make_slo_policy, start_profile
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.policies import make_policy
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.scheduling.service_levels import INTERACTIVE
from sarathi_jax.scheduling.step_profile import StepProfile
from sarathi_jax.scheduling.token_budget import with_token_budget
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
        self.config = with_token_budget(engine_config(model, options))
        self._group = _lead_group(self.config)
        try:
            self._start(sys.stderr.isatty() if progress is None else progress)
        except BaseException as error:
            if self._group is not None:
                self._group.fail(error)
            raise

    def _start(self, has_bars: bool) -> None:
        source = find_model(self.config.model, is_dummy=self.config.load_format == "dummy")
        self.model_config = source.config
        self.tokenizer = None if source.folder is None else _load_tokenizer(source.folder)
        self._template = None if source.folder is None else ChatTemplate.from_folder(source.folder)
        make_policy(self.config.policy).check(least_limits(self.config, source.config))
        built = _build(source, self.config, has_bars, self._group)
        self.compile_ledger: CompileLedger = built[0][0].ledger
        for programs, _ in built[1:]:
            self.compile_ledger.absorb(programs.ledger)
        self.memory_plan = built[0][0].plan
        profile = start_profile(self.config, built[0][1], progress=has_bars) if self.config.policy == "slo" else None
        self.engines = [
            _make_engine(*each, self.config, profile, self.tokenizer, place) for place, each in enumerate(built)
        ]
        self.engine: AnyEngine = (
            self.engines[0] if len(self.engines) == 1 else EngineReplicas(self.engines, seed=self.config.seed)
        )
        self._outputs: dict[str, RequestOutput] = {}
        self._events: dict[str, list[StreamEvent]] = {}
        # Also when the process ends, or nobody holds this object any more.
        self._finalizer = weakref.finalize(self, _close, self.engine, self._template, self._group)
        if self._group is not None:
            atexit.register(self._finalizer)  # before jax takes leave of the other processes, which wait for calls

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        slo_class: str = INTERACTIVE,
        client: str = "",
    ) -> list[RequestOutput]:
        """Complete prompts.

        Args:
          prompts: a text, several, or several lists of token ids.
          params: for all, or one a prompt; None is SamplingParams().
          progress: show a bar on standard error.
          slo_class, client: as `Engine.add_request` has them, of all of them.
        Returns: one output a prompt, in their order.
        Raises: RequestError, naming the prompt, if one can't be served: none is started then. EngineError if the engine fails.
        """
        batch = _as_list(prompts)
        each = _params_of_each(params, len(batch))
        request_ids = self._add_all(batch, each, slo_class, client)
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
    ) -> Iterator[StreamEvent]:
        """Complete one prompt, token by token. The request is queued at once; leaving the iteration aborts it. slo_class, client: as in `generate`.

        Raises: RequestError if the prompt can't be served; EngineError, while iterating, if the engine fails.
        """
        request_id = self.engine.add_request(prompt, params, slo_class=slo_class, client=client)
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
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], slo_class: str, client: str
    ) -> list[str]:
        request_ids: list[str] = []
        try:
            for index, (prompt, each) in enumerate(zip(prompts, params, strict=True)):
                try:
                    request_ids.append(self.engine.add_request(prompt, each, slo_class=slo_class, client=client))
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


def _lead_group(config: EngineConfig) -> LedGroup | None:
    """The group that this process leads; None: it is alone. Raises: ConfigError if it has to follow; what LedGroup raises."""
    place = find_place(config)
    if place is None:
        return None
    if not place.is_leader:
        raise ConfigError(
            f"Only process 0 of a group takes requests, got process_id={place.process_id}: call sarathi_jax.follow with the same options, or run"
            " `sarathi-jax follow`."
        )
    return LedGroup(config, place)


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


def _close(engine: AnyEngine, template: ChatTemplate | None, group: LedGroup | None) -> None:
    """Each of them, whatever becomes of the others."""
    with contextlib.ExitStack() as stack:
        if group is not None:
            stack.callback(group.close)
        if template is not None:
            stack.callback(template.close)
        engine.close()


def _load_tokenizer(folder: Path) -> Tokenizer | None:
    try:
        return Tokenizer.from_folder(folder)
    except ModelNotFoundError:
        return None  # prompts are token ids then; text and chat say so


def _build(
    source: ModelSource, config: EngineConfig, progress: bool, group: LedGroup | None
) -> list[tuple[EnginePrograms, JaxExecutor]]:
    """What runs each replica of the engine."""
    if group is None:
        replicas = build_replicas(source, config, progress=progress)
        return start_replicas(replicas, progress=progress)

    def build(leader: Leader) -> list[tuple[EnginePrograms, JaxExecutor]]:
        replicas = build_replicas(source, config, progress=progress, group=leader)
        return start_replicas(replicas, progress=progress, leader=leader)

    return group.run(source, build)


def _make_engine(
    programs: EnginePrograms,
    executor: JaxExecutor,
    config: EngineConfig,
    profile: StepProfile | None,
    tokenizer: Tokenizer | None,
    replica: int,
) -> Engine:
    model_config = programs.model_state.config
    scheduler = Scheduler(
        config.policy if profile is None else make_slo_policy(config, profile),
        num_pages=programs.geometry.num_pages,
        page_size=config.page_size,
        token_budget=config.step_tokens,
        max_num_seqs=config.max_num_seqs,
        max_model_len=programs.geometry.max_model_len,
        vocab_size=model_config.vocab_size,
        is_prefix_caching=config.prefix_caching,
        max_num_partial_prefills=config.max_num_partial_prefills,
        long_prefill_token_threshold=config.long_prefill_token_threshold,
        preempt_every_steps=config.preempt_every_steps,
        is_head_of_line_blocking=config.head_of_line_blocking,
        num_microbatches=programs.model_state.num_stages,
    )
    clock = WallClock()
    return Engine(
        scheduler,
        executor,
        clock,
        is_overlapped=config.overlap,
        tokenizer=tokenizer,
        eos_token_ids=model_config.eos_token_ids,
        seed=config.seed,
        replica=replica,
        recorder=_make_recorder(scheduler, clock, programs.ledger, config, replica),
    )


def _make_recorder(
    scheduler: Scheduler, clock: Clock, ledger: CompileLedger, config: EngineConfig, replica: int
) -> FlightRecorder | None:
    if not config.flight_recorder:
        return None
    recorder = FlightRecorder(
        scheduler,
        clock,
        max_events=config.flight_recorder,
        is_overlapped=config.overlap,
        model=Path(config.model).name if Path(config.model).is_dir() else config.model,
        replica=replica,
        compiled=ledger.entries,
    )
    if config.flight_record_folder is not None:
        recorder.watch = FlightWatch(recorder, clock, Path(config.flight_record_folder))
    return recorder


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
