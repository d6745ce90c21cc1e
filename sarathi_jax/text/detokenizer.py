"""Text from token ids as they come, one by one: never half a character, and joined it is exactly `Tokenizer.decode` of
all ids."""

import codecs

from sarathi_jax.text.pieces import PieceTable

REPLACEMENT_CHARACTER = "\N{REPLACEMENT CHARACTER}"

_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class IncrementalDetokenizer:
    """One output's text in the making; holds only what can't be shown yet.

    With `continues_text` the ids go on from a text that stands before them (a completion after its prompt), so a
    leading space stays; without it they are a text of their own, as `Tokenizer.decode` sees them."""

    __slots__ = ("_is_first", "_num_to_strip", "_pieces", "_run", "_utf8")

    def __init__(self, pieces: PieceTable, *, continues_text: bool = False) -> None:
        self._pieces = pieces
        self._utf8 = _new_utf8_decoder("replace")
        self._run = bytearray()
        self._is_first = not continues_text
        self._num_to_strip = 0 if continues_text else pieces.rules.strip_left[1]

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is certain now, perhaps empty."""
        piece = self._pieces[token_id]
        if type(piece) is bytes:
            return self._utf8.decode(piece)
        if piece is None:
            return ""
        if self._is_first:
            piece = self._pieces.first_piece(token_id)
        elif type(piece) is str and self._pieces.rules.separator:
            piece = self._pieces.rules.separator + piece
        self._is_first = False
        if type(piece) is int:
            # Whether a run of byte tokens is text is known only when it ends: one bad byte spoils all of it.
            self._run.append(piece)
            return ""
        assert type(piece) is str, f"a piece that is not bytes, a byte or None is text, got {piece!r}"
        text = self._end_run() + piece if self._run else piece
        return self._strip_left(text) if self._num_to_strip else text

    def finish(self) -> str:
        """No more tokens come; returns the text held back. Bytes that never became a character turn into replacement
        characters."""
        return self._strip_left(self._end_run()) + self._utf8.decode(b"", final=True)

    def _end_run(self) -> str:
        run = bytes(self._run)
        self._run.clear()
        try:
            text = run.decode()
        except UnicodeDecodeError:
            return REPLACEMENT_CHARACTER * len(run)
        for transform in self._pieces.rules.after:
            text = transform(text)
        return text

    def _strip_left(self, text: str) -> str:
        character = self._pieces.rules.strip_left[0]
        while self._num_to_strip and text:
            if text[0] != character:
                self._num_to_strip = 0
                break
            text = text[1:]
            self._num_to_strip -= 1
        return text
