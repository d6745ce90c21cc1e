"""One output's text, from its token ids: detokenizer and stop strings together, as the engine uses them."""

from sarathi_jax.sampling_params import SamplingParams
from sarathi_jax.text.stops import StopChecker
from sarathi_jax.text.tokenizer import Tokenizer


class OutputText:
    """Turns sampled ids into text deltas. Don't push the end-of-sequence or stop token that ended the output: it is not
    part of the text.

    Text of the first `min_tokens` tokens is never searched for stop strings.
    """

    __slots__ = ("_detokenizer", "_num_unchecked", "_stop_checker")

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams, *, continues_text: bool = False) -> None:
        self._detokenizer = tokenizer.new_detokenizer(
            skip_special_tokens=params.skip_special_tokens, continues_text=continues_text
        )
        self._stop_checker = StopChecker(params.stop, include_stop_str=params.include_stop_str_in_output)
        self._num_unchecked = params.min_tokens

    @property
    def matched_stop(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stop_checker.matched

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that may be shown now, perhaps empty. Look at `matched_stop` afterwards."""
        delta = self._detokenizer.push(token_id)
        if self._num_unchecked:
            self._num_unchecked -= 1
            return delta
        return self._stop_checker.push(delta)

    def finish(self) -> str:
        """The output ended, whatever the reason; returns the text held back. A stop string may still be completed by
        it."""
        return self._stop_checker.push(self._detokenizer.finish()) + self._stop_checker.finish()
