"""The engine: prompts in, events out. Checks a request, gives it to the scheduler, runs the loop, and makes text and outputs of what comes.

Knows nothing of devices: any `Executor` will do.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sarathi_jax.clock import Clock
from sarathi_jax.engine.executor import Executor
from sarathi_jax.engine.flight_recorder import FlightRecorder
from sarathi_jax.engine.loop import StepLoop
from sarathi_jax.engine.records import StepRecord
from sarathi_jax.engine.sample_output import SampleOutput
from sarathi_jax.errors import RequestError
from sarathi_jax.outputs import FinishReason, RequestOutput, StreamEvent, TokenLogprobs
from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.scheduling.constraint import Constraint
from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.scheduler import Scheduler
from sarathi_jax.scheduling.service_levels import INTERACTIVE, check_class
from sarathi_jax.structured import StructuredOutput
from sarathi_jax.text.output_text import OutputText
from sarathi_jax.text.token_constraint import ConstraintFactory
from sarathi_jax.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]


@dataclass(slots=True)
class _Entry:
    """A request that has not ended: its prompt as it came, its samples, and the prompt's log-probabilities so far."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    samples: list[SampleOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None

    @property
    def has_logprobs(self) -> bool:
        return self.prompt_logprobs is not None or self.samples[0].request.sampling.logprobs is not None

    @property
    def is_finished(self) -> bool:
        return all(sample.finish_reason is not None for sample in self.samples)

    def output(self) -> RequestOutput:
        outputs = [sample.completion() for sample in self.samples]
        return RequestOutput(self.request_id, self.prompt, self.prompt_token_ids, outputs, self.prompt_logprobs)


class Engine:
    """Runs requests. Not safe to share between threads.

    Args:
      tokenizer: None for a model without one: prompts are token ids then, and outputs have no text.
      eos_token_ids: tokens that end an output.
      seed: what seeds are drawn from for requests that bring none.
      replica: its number, where there are several.
      recorder: a flight recorder over this scheduler; None: nothing is recorded.
      constraints: makes the constraints of requests with a structure; None: each has to bring its own.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        clock: Clock,
        *,
        is_overlapped: bool,
        tokenizer: Tokenizer | None,
        eos_token_ids: Sequence[int] = (),
        seed: int = 0,
        replica: int = 0,
        recorder: FlightRecorder | None = None,
        constraints: ConstraintFactory | None = None,
    ) -> None:
        self.loop = StepLoop(
            scheduler, executor, clock, is_overlapped=is_overlapped, replica=replica, recorder=recorder
        )
        self.recorder = recorder
        self.clock = clock
        self._tokenizer = tokenizer
        self._constraints = constraints
        self._eos_token_ids = tuple(eos_token_ids)
        self._seeds = np.random.default_rng(seed)
        self._numbers = itertools.count()
        self._entries: dict[str, _Entry] = {}
        self._sample_entries: dict[str, tuple[_Entry, SampleOutput]] = {}

    @property
    def scheduler(self) -> Scheduler:
        return self.loop.scheduler

    @property
    def records(self) -> deque[StepRecord]:
        """Of the latest steps, oldest first."""
        return self.loop.records

    @property
    def has_unfinished(self) -> bool:
        return not self.loop.is_idle

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        arrival_s: float | None = None,
        cache_salt: str = "",
        slo_class: str = INTERACTIVE,
        client: str = "",
        priority: int = 0,
        output_token_ids: Sequence[int] = (),
        constraint: Constraint | None = None,
    ) -> str:
        """Queue a request.

        Args:
          prompt: text, or token ids.
          params: None is SamplingParams().
          request_id: None makes one up.
          arrival_s: on the engine's clock; None is now.
          cache_salt: KV pages are shared only among requests of the same salt.
          slo_class, client: "interactive" or "batch", and who asks, for policies that look at them (`scheduling.service_levels`).
          priority: lower is earlier: who is let in first, and loses its pages last.
          output_token_ids: output that the request has had already, from an engine that is no more: it goes on with the tokens that it would have had
            there. max_tokens and penalties count them; events, log-probabilities and latencies are of the new ones. n must be 1, and a seed be given unless
            it is greedy.
          constraint: for params.structured, after output_token_ids; None: made here, which may take a while.
        Returns: its id.
        Raises: RequestError if it can't be served; nothing has changed then.
        """
        params = params or SamplingParams()
        check_class(slo_class, client)
        token_ids, given_ids = self._token_ids(prompt), _plain_ids(output_token_ids)
        text, shown = self._text_after(params, given_ids)
        limit = self.scheduler.limits.max_model_len - len(token_ids)
        request = Request(
            request_id or f"request-{next(self._numbers)}",
            token_ids,
            params,
            arrival_s=self.clock.now() if arrival_s is None else arrival_s,
            seed=int(self._seeds.integers(2**63)) if params.seed is None else params.seed,
            max_tokens=max(limit, 1) if params.max_tokens is None else params.max_tokens,
            output_token_ids=given_ids,
            eos_token_ids=self._eos_token_ids,
            cache_salt=cache_salt,
            slo_class=slo_class,
            client=client,
            priority=priority,
            constraint=self._constraint(params.structured, constraint, given_ids),
        )
        added = self.scheduler.add(request)
        if self.recorder is not None:
            self.recorder.arrived(added)
        texts = [text, *(self._new_text(params) for _ in added[1:])]
        samples = [SampleOutput(*each, shown) for each in zip(added, texts, strict=True)]
        prompt_logprobs: list[TokenLogprobs | None] | None = None if params.prompt_logprobs is None else [None]
        asked = prompt if isinstance(prompt, str) else None
        self._enter(_Entry(request.request_id, asked, token_ids, samples, prompt_logprobs))
        return request.request_id

    def _enter(self, entry: _Entry) -> None:
        """What it and its samples gain is looked for from now on."""
        self._entries[entry.request_id] = entry
        self._sample_entries |= {sample.request.request_id: (entry, sample) for sample in entry.samples}

    def abort(self, request_id: str) -> list[StreamEvent]:
        """End a request and all its samples now. An unknown or ended one is no error. Returns: their last events."""
        entry = self._entries.get(request_id)
        if entry is None:
            return []
        now_s = self.clock.now()
        ended = self.scheduler.abort(request_id, now_s)
        if self.recorder is not None:
            self.recorder.aborted(ended, now_s)
        going = [sample for sample in entry.samples if sample.finish_reason is None]
        return [self._last_event(entry, sample, sample.end("abort"), []) for sample in going]

    def end_sample(self, request_id: str, sample_index: int) -> list[StreamEvent]:
        """End one sample of a request now, as complete: its text has come to a stop that is looked for outside. One that has ended is no error.

        Returns: its last event.
        """
        entry = self._entries.get(request_id)
        if entry is None or entry.samples[sample_index].finish_reason is not None:
            return []
        sample = entry.samples[sample_index]
        self._finish(sample, "stop", self.clock.now())
        return [self._last_event(entry, sample, sample.end("stop"), [])]

    def step(self, *, does_wait: bool = True) -> list[StreamEvent]:
        """Run one turn of the loop. Args: as its. Returns: what each sample gained by it. Raises: EngineError if the engine can't go on."""
        events: list[StreamEvent] = []
        outputs, now_s = self.loop.step(does_wait=does_wait), self.loop.completed_s
        for output in outputs:
            found = self._sample_entries.get(output.request.request_id)
            if found is None:
                continue
            entry, sample = found
            if output.prompt_logprobs is not None and entry.prompt_logprobs is not None:
                entry.prompt_logprobs += output.prompt_logprobs
            token_ids = [] if output.token_id is None else [output.token_id]
            if not token_ids and output.finish_reason is None:
                continue
            delta = sample.push(output, now_s)
            if sample.finish_reason is None:
                event = StreamEvent(entry.request_id, sample.index, delta, token_ids)
            else:
                if output.finish_reason is None:  # a stop string, which the scheduler can't see
                    self._finish(sample, sample.finish_reason, now_s)
                event = self._last_event(entry, sample, delta, token_ids)
            if entry.has_logprobs:
                event = _with_logprobs(event, entry, sample, output.logprobs)
            events.append(event)
        return events

    def close(self) -> None:
        """Abort everything, wait for the step in flight, and release the executor."""
        for request_id in list(self._entries):
            self.abort(request_id)
        self.loop.close()
        if self.recorder is not None:
            self.recorder.close()

    def _finish(self, sample: SampleOutput, reason: FinishReason, now_s: float) -> None:
        is_ended = self.scheduler.finish(sample.request.request_id, reason, now_s)
        if is_ended and self.recorder is not None:
            self.recorder.finished(sample.request, reason, now_s)

    def _token_ids(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            if not isinstance(prompt, Iterable):
                raise RequestError(
                    f"The prompt must be a text or a list of token ids, got {type(prompt).__name__}: pass one of these.",
                    param="prompt",
                )
            return _plain_ids(prompt)
        if self._tokenizer is None:
            raise RequestError(
                "A text prompt needs a tokenizer, got a model without one: pass token ids.", param="prompt"
            )
        return self._tokenizer.encode(prompt)

    def _constraint(
        self, structured: StructuredOutput | None, given: Constraint | None, given_ids: Sequence[int]
    ) -> Constraint | None:
        """The one that was given, or a new one. Raises: RequestError if there can be none."""
        if structured is None:
            assert given is None, "a constraint is of a structure, by which a step that reads masks is chosen"
            return None
        if given is not None:
            return given
        if self._constraints is None:
            raise RequestError(
                "structured needs a model with a tokenizer.json, got one without: leave it out.", param="structured"
            )
        return self._constraints.make(structured, given_ids)

    def _new_text(self, params: SamplingParams) -> OutputText | None:
        return None if self._tokenizer is None else OutputText(self._tokenizer, params)

    def _text_after(self, params: SamplingParams, given_ids: Sequence[int]) -> tuple[OutputText | None, str]:
        """The text of an output that goes on after these tokens. Returns: it, and what was shown of it. Raises: RequestError if it can't go on."""
        if params.stop and self._tokenizer is None:
            raise RequestError("stop needs a tokenizer, got a model without one: use stop_token_ids.", param="stop")
        text = self._new_text(params)
        if given_ids and params.seed is None and not params.is_greedy:
            raise RequestError(
                "A sampled request can go on after output_token_ids only with the seed that it had, got none. Pass that seed.",
                param="seed",
            )
        vocab_size = self.scheduler.limits.vocab_size
        if text is None or any(type(each) is not int or not 0 <= each < vocab_size for each in given_ids):
            return text, ""  # ids that are none are refused where all requests are checked
        shown = "".join([text.push(each) for each in given_ids])
        if text.matched_stop is not None:
            raise RequestError(
                f"output_token_ids must hold no stop string, got {text.matched_stop!r} in their text. The output has ended: don't go on.",
                param="output_token_ids",
            )
        return text, shown

    def _last_event(self, entry: _Entry, sample: SampleOutput, delta: str, token_ids: list[int]) -> StreamEvent:
        """A sample ended, and with the last one the request."""
        self._sample_entries.pop(sample.request.request_id)
        whole = self._entries.pop(entry.request_id).output() if entry.is_finished else None
        reason = sample.finish_reason
        fault = sample.fault if reason == "error" else None  # held-back text may have completed a stop string
        return StreamEvent(entry.request_id, sample.index, delta, token_ids, reason, whole, fault=fault)


def _plain_ids(token_ids: Iterable[int]) -> list[int]:
    """An array's ids become Python's; what they are is checked where all requests are."""
    return [each.item() if isinstance(each, np.integer) else each for each in token_ids]


def _with_logprobs(
    event: StreamEvent, entry: _Entry, sample: SampleOutput, logprobs: TokenLogprobs | None
) -> StreamEvent:
    """The event of a request that asked for log-probabilities: with its token's, and the prompt's where the first token comes."""
    is_first = bool(event.token_ids) and sample.index == 0 and sample.num_new_tokens == 1
    return event._replace(logprobs=logprobs, prompt_logprobs=entry.prompt_logprobs if is_first else None)
