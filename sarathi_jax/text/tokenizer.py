"""Text <-> token ids, by the `tokenizers` library, with one rule on top: text from a user never becomes a special
token.

Only a chat template's own text may (`encode_template`); what users put into the messages is escaped first
(`escape_special_tokens`)."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from sarathi_jax.errors import ModelError, ModelNotFoundError, RequestError
from sarathi_jax.text.detokenizer import IncrementalDetokenizer
from sarathi_jax.text.model_files import named_special_tokens, read_json_object, read_tokenizer_config
from sarathi_jax.text.pieces import PieceTable, read_decoding_rules

# A character of a private-use area: no template looks for it, and JSON filters leave it as it is.
_STAND_IN_MARK = "\ue000"


class Tokenizer:
    """A model's tokenizer. Immutable; safe to share between threads.

    `special_texts`: token id -> text, of all special tokens. `bos_token_id` and `eos_token_id` are None where the model names no such token.
    """

    def __init__(self, tokenizer_json: str, special_tokens: dict[str, str] | None = None) -> None:
        """Args:
          tokenizer_json: text of a `tokenizer.json`.
          special_tokens: `bos_token`, `eos_token`, ... -> the token's text.
        Raises: ModelError if the text is not a tokenizer, or its decoder isn't supported."""
        self._json = tokenizer_json
        self._plain = _load(tokenizer_json)
        self._plain.encode_special_tokens = True
        added = self._plain.get_added_tokens_decoder()
        self.special_texts = {token_id: token.content for token_id, token in added.items() if token.special}
        self._special_ids = frozenset(self.special_texts)
        self.special_tokens = dict(special_tokens or {})
        self.bos_token_id = self._special_id("bos_token")
        self.eos_token_id = self._special_id("eos_token")
        rules = read_decoding_rules(self._plain)
        self._pieces = PieceTable(self._plain, rules, frozenset())
        self._pieces_without_special = PieceTable(self._plain, rules, self._special_ids)

    @classmethod
    def from_folder(cls, folder: Path | str) -> "Tokenizer":
        """The tokenizer of a model folder. Raises: ModelNotFoundError without `tokenizer.json`, ModelError if it is
        wrong."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            has_model = (folder / "tokenizer.model").is_file()
            remedy = (
                "convert its tokenizer.model with a tool that writes tokenizer.json"
                if has_model
                else "fetch it with the model"
            )
            raise ModelNotFoundError(f"{folder} must hold tokenizer.json, got none: {remedy}.")
        read_json_object(path)
        try:
            return cls(path.read_text(encoding="utf-8"), named_special_tokens(read_tokenizer_config(folder)))
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error

    def to_json(self) -> str:
        """Text of the `tokenizer.json` it was made from."""
        return self._json

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max(self._plain.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of a user's text. Special tokens spelled out in it are plain text; BOS is added if the tokenizer does so
        and `add_special_tokens` says so.

        Raises: RequestError if `text` is not a string of valid Unicode."""
        return _encode(self._plain, text, add_special_tokens)

    def encode_template(self, text: str) -> list[int]:
        """Ids of a chat template's output: special tokens in it count, none is added, and escaped ones are plain text
        again.

        Raises: RequestError if `text` is not a string of valid Unicode."""
        ids = _encode(self._parsing, text, False)
        if _STAND_IN_MARK not in text:
            return ids
        return [token_id for each in ids for token_id in self._escaped_ids.get(each, (each,))]

    def escape_special_tokens(self, text: str) -> str:
        """The text with each special token in it replaced by a stand-in, which `encode_template` reads as plain
        text."""
        if self._special_pattern is None:
            return text
        return self._special_pattern.sub(lambda match: self._stand_ins[match[0]], text)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ids; ids without a token add nothing. Invalid UTF-8 becomes replacement characters."""
        return self._plain.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def new_detokenizer(
        self, *, skip_special_tokens: bool = True, continues_text: bool = False
    ) -> IncrementalDetokenizer:
        """A detokenizer for one output; see `IncrementalDetokenizer`."""
        return IncrementalDetokenizer(
            self._pieces_without_special if skip_special_tokens else self._pieces, continues_text=continues_text
        )

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 of one token in the middle of a text; it may end inside a character. Empty for an id without a
        token."""
        piece = self._pieces[token_id]
        if isinstance(piece, int):
            return bytes([piece])
        return piece.encode() if isinstance(piece, str) else piece or b""

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self._plain.token_to_id(token)

    @cached_property
    def _special_texts(self) -> list[str]:
        # The longest first, so that of two special tokens at one place the longer is escaped.
        texts = (self._plain.id_to_token(token_id) for token_id in self._special_ids)
        return sorted((text for text in texts if text), key=lambda text: (-len(text), text))

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        return re.compile("|".join(map(re.escape, self._special_texts))) if self._special_texts else None

    @cached_property
    def _stand_ins(self) -> dict[str, str]:
        # A user who writes a stand-in only gets the plain text it stands for.
        return {
            text: f"{_STAND_IN_MARK}special-{rank}{_STAND_IN_MARK}" for rank, text in enumerate(self._special_texts)
        }

    @cached_property
    def _parsing(self) -> tokenizers.Tokenizer:
        """A second instance, which reads special tokens, and stand-ins as tokens past the vocabulary."""
        tokenizer = _load(self._json)
        tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in self._stand_ins.values()])
        return tokenizer

    @cached_property
    def _escaped_ids(self) -> dict[int, list[int]]:
        ids: dict[int, list[int]] = {}
        for text, stand_in in self._stand_ins.items():
            stand_in_id = self._parsing.token_to_id(stand_in)
            assert stand_in_id is not None, "every stand-in was added as a token"
            ids[stand_in_id] = self.encode(text, add_special_tokens=False)
        return ids


def _load(tokenizer_json: str) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises a bare Exception
        raise ModelError(
            f"tokenizer.json must be a tokenizer of the tokenizers library, got {error}: fetch it again."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _encode(tokenizer: tokenizers.Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    try:
        return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    except TypeError as error:
        raise RequestError(
            f"a prompt must be a string of valid Unicode, got {ascii(text)[:80]}: pass text without lone surrogates.",
            param="prompt",
        ) from error
