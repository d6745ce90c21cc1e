"""Which tokens may come next in an output that has to be of a certain form, by llguidance. Knows nothing of devices: a mask is words of bits.

A grammar is compiled once and kept; a request gets a copy of it in its first state (`ConstraintFactory`), and goes on with each token from there.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sarathi_jax.errors import ModelNotFoundError, RequestError
from sarathi_jax.structured import StructuredOutput
from sarathi_jax.text.grammar import LIMITS, grammar_text
from sarathi_jax.text.grammar_checker import GrammarChecker, unfit_tokenizer, wrong_grammar
from sarathi_jax.text.model_files import MAX_JSON_BYTES, read_bounded_text

MAX_CACHED = 256
MAX_CACHED_BYTES = 2**22  # of grammars' text; compiled they take some ten times as much


class TokenConstraint:
    """Where one output stands in its grammar. Not safe to share between threads.

    is_ended: whether nothing but an end-of-sequence token may follow.
    is_failed: the grammar passed a limit, or took in a token that it doesn't allow; nothing is known of what may follow.
    """

    __slots__ = ("_mask", "_matcher", "is_ended", "is_failed")

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._mask = np.zeros(-(-vocab_size // 32), np.uint32)
        self.is_ended = self.is_failed = False
        self._look()

    @property
    def error(self) -> str:
        """Why it failed."""
        return self._matcher.get_error()

    def mask(self) -> np.ndarray:
        """u32[ceil(V / 32)]: token i may come next if bit i % 32 of word i // 32 is set. Never written to later; never all zeros unless failed."""
        return self._mask

    def accept(self, token_id: int) -> bool:
        """Go on by a token. Returns: False if it failed."""
        if not self.is_failed:
            self._matcher.consume_token(token_id)
            self._look()
        return not self.is_failed

    def copy(self) -> "TokenConstraint":
        """The same state, to go on from by itself."""
        return TokenConstraint(self._matcher.deep_copy(), 32 * len(self._mask))

    def _look(self) -> None:
        """See what may follow: here and not when it is asked for, since only this shows some failures, and dead ends."""
        matcher = self._matcher
        if not matcher.is_error():
            # There may be a word more than the vocabulary has.
            self._mask = np.frombuffer(matcher.compute_bitmask(), np.uint32)[: len(self._mask)]
        self.is_failed = matcher.is_error()
        self.is_ended = not self.is_failed and matcher.is_stopped()


class ConstraintFactory:
    """Makes constraints for one model. Safe to share between threads.

    Args:
      tokenizer_json: text of the model's `tokenizer.json`.
      vocab_size: the width of its logits.
      eos_token_ids: what may end an output.
      checker: asked before a grammar is compiled here; None: whoever calls has asked one already.

    What llguidance needs of the tokenizer is made by `prepare`, or with the first constraint: up to a second for a large vocabulary.
    """

    def __init__(
        self,
        tokenizer_json: str,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        *,
        checker: GrammarChecker | None = None,
    ) -> None:
        self.checker = checker
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._tokenizer: Any = None
        self._limits: Any = None
        self._compiled: OrderedDict[str, TokenConstraint] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    @classmethod
    def from_folder(
        cls, folder: Path | str, vocab_size: int, eos_token_ids: Sequence[int], *, has_checker: bool = False
    ) -> "ConstraintFactory | None":
        """For the model of a folder; None if it has no tokenizer.json. has_checker: give it a checker of its own. Raises: ModelError if it can't be read."""
        try:
            text = read_bounded_text(Path(folder) / "tokenizer.json", MAX_JSON_BYTES)
        except ModelNotFoundError:
            return None
        checker = GrammarChecker(text, vocab_size, eos_token_ids) if has_checker else None
        return cls(text, vocab_size, eos_token_ids, checker=checker)

    def prepare(self) -> None:
        """Make what every grammar needs. Raises: RequestError if the model has no end-of-sequence token; ModelError if its tokenizer is of no use here."""
        with self._lock:
            self._prepare()

    def make(self, structured: StructuredOutput, output_token_ids: Sequence[int] = ()) -> TokenConstraint:
        """The constraint of one output.

        output_token_ids: what there is of it already.
        Raises: RequestError if the grammar is wrong or takes more than its limits, or the tokens are not its beginning; as `prepare`.
        """
        grammar = grammar_text(structured)
        with self._lock:
            self._prepare()
            first = self._compiled.get(grammar)
            if first is None:
                if self.checker is not None:
                    self.checker.check(structured)
                first = self._compile(grammar, structured)
            self._compiled.move_to_end(grammar)
            constraint = first.copy()
        for place, token_id in enumerate(output_token_ids):
            is_token = type(token_id) is int and 0 <= token_id < self._vocab_size
            if constraint.is_ended or not is_token or not constraint.accept(token_id):
                raise RequestError(
                    f"output_token_ids must begin what structured asks for, got {token_id} as token {place}: start the request anew.",
                    param="output_token_ids",
                )
        if output_token_ids and constraint.is_ended:
            raise RequestError(
                "output_token_ids must leave something to come, got all that structured asks for. The output has ended: don't go on.",
                param="output_token_ids",
            )
        return constraint

    def close(self) -> None:
        """End the checker's process, if there is one."""
        if self.checker is not None:
            self.checker.close()

    def _prepare(self) -> None:
        from llguidance import LLParserLimits, LLTokenizer  # here: only requests with a structure need it

        if self._tokenizer is not None:
            return
        if not self._eos_token_ids:
            raise RequestError(
                "structured needs a model with an end-of-sequence token, got one without: use max_tokens and stop.",
                param="structured",
            )
        try:
            self._tokenizer = LLTokenizer(self._tokenizer_json, n_vocab=self._vocab_size, eos_token=self._eos_token_ids)
        except Exception as error:  # whatever a stranger's tokenizer does wrong
            raise unfit_tokenizer(str(error)) from error
        self._limits = LLParserLimits(**LIMITS)

    def _compile(self, grammar: str, structured: StructuredOutput) -> TokenConstraint:
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        first = TokenConstraint(matcher, self._vocab_size)
        if first.is_failed:
            raise wrong_grammar(structured, first.error)
        self._compiled[grammar] = first
        self._num_bytes += len(grammar)
        while len(self._compiled) > MAX_CACHED or self._num_bytes > MAX_CACHED_BYTES:
            self._num_bytes -= len(self._compiled.popitem(last=False)[0])
        return first
