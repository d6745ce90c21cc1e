"""What an answer has to be, from a request's fields; and whether that can be: a stranger's grammar is compiled in a process of its own before its request is let in."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from sarathi_jax.errors import ModelError, RequestError
from sarathi_jax.serve.errors import ApiError, of_request_error
from sarathi_jax.serve.output_schemas import ResponseFormat, StructuredOutputs
from sarathi_jax.serve.schemas import SamplingBody
from sarathi_jax.structured import StructuredOutput
from sarathi_jax.text.grammar_checker import GrammarChecker
from sarathi_jax.text.model_files import MAX_JSON_BYTES, read_bounded_text

NUM_THREADS = 4
DEADLINE_S = 30.0


class OutputForm(NamedTuple):
    """structured: None: anything. param: the field that asked for it."""

    structured: StructuredOutput | None = None
    param: str | None = None


def read_form(body: SamplingBody) -> OutputForm:
    """Raises: ApiError if it is not of its form, or too large."""
    if body.structured_outputs is not None:
        return _of_structured_outputs(body.structured_outputs)
    return OutputForm() if body.response_format is None else _of_response_format(body.response_format)


def _of_response_format(asked: ResponseFormat) -> OutputForm:
    if asked.json_schema is not None:
        param = "response_format.json_schema.schema"
        return OutputForm(structured(param, json_schema=asked.json_schema.json_schema), param)
    return OutputForm(StructuredOutput(json_object=True), "response_format") if asked.type != "text" else OutputForm()


def _of_structured_outputs(asked: StructuredOutputs) -> OutputForm:
    ((kind, value),) = asked.model_dump(exclude_none=True).items()
    param = f"structured_outputs.{'json' if kind == 'json_schema' else kind}"
    return OutputForm(structured(param, **{kind: value}), param)


def structured(param: str, **fields: Any) -> StructuredOutput:
    """Raises: ApiError, with this param."""
    try:
        return StructuredOutput(**fields)
    except RequestError as error:
        raise of_param(error, param) from error


def of_param(error: RequestError, param: str) -> ApiError:
    """The same of a field by its name on the wire, which the message begins with, too."""
    rest = str(error).removeprefix(f"{error.param} ")
    return of_request_error(RequestError(f"{param} {rest}", param=param, code=error.code))


class FormChecker:
    """Checks grammars for one model, off the event loop; a hostile one costs its own request, and holds up no prompt.

    folder: of the model's tokenizer.json. vocab_size: the logits' width.
    """

    def __init__(self, folder: Path | None, vocab_size: int, eos_token_ids: list[int]) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._threads = ThreadPoolExecutor(NUM_THREADS, "grammars")
        self._checker: GrammarChecker | None = None

    async def check(self, form: OutputForm) -> None:
        """Raises: ApiError if no engine could keep to it."""
        if form.structured is None:
            return
        assert form.param is not None, "somebody asked for it"
        if not self._eos_token_ids:
            raise _unfit(form.param, "the model has no end-of-sequence token")
        if self._checker is None:
            self._checker = self._start(form.param)
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._checker.check, form.structured)
        try:
            await asyncio.wait_for(future, DEADLINE_S)
        except RequestError as error:
            raise of_param(error, form.param) from error
        except ModelError as error:
            raise _unfit(form.param, str(error)) from error
        except TimeoutError as error:
            message = f"{form.param} was not looked at within {DEADLINE_S:.0f} s."
            raise ApiError(504, "deadline_exceeded", message) from error

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._checker is not None:
            self._checker.close()

    def _start(self, param: str) -> GrammarChecker:
        if self._folder is None or not (path := self._folder / "tokenizer.json").is_file():
            raise _unfit(param, "the model has no tokenizer.json")
        return GrammarChecker(read_bounded_text(path, MAX_JSON_BYTES), self._vocab_size, self._eos_token_ids)


def _unfit(param: str, reason: str) -> ApiError:
    return ApiError(400, "unsupported_value", f"{param} can't be kept to by this model: {reason}.", param=param)
