"""What each token adds to the text, read from a tokenizer's decoder, so that text can be made token by token and still
be exact.

Two families cover the models served here. *Byte-level* (GPT-2, Llama 3, Qwen): a token is a string of bytes, and the
text is the UTF-8 of all bytes joined. *Sentencepiece-like* (Llama 1 and 2, Mistral, Yi): a token is a piece of text,
except for the 256 byte tokens, whose unbroken runs are decoded as one, or become one replacement character a byte.
Follows the decoders of the `tokenizers` library, which are the test's oracle."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tokenizers

from sarathi_jax.errors import ModelError

type Piece = str | bytes | int | None
"""Text; UTF-8 bytes that may end inside a character; one raw byte of a run; or nothing (a skipped or unknown token)."""

type Transform = Callable[[str], str]

SUPPORTED_DECODERS = ("ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Strip")


@dataclass(frozen=True, slots=True)
class DecodingRules:
    """A decoder, compiled. Fields that don't apply are empty.

    `is_byte_level` excludes all others. Else `before` transforms a token, byte tokens are taken out if
    `has_byte_tokens`, `after` transforms what is left (a run of bytes counts as one piece), and `strip_left` removes up
    to `strip_left[1]` times its character from the start of the text."""

    is_byte_level: bool = False
    has_byte_tokens: bool = False
    before: tuple[Transform, ...] = ()
    after: tuple[Transform, ...] = ()
    strip_left: tuple[str, int] = ("", 0)
    dropped_from_first: str = ""
    separator: str = ""


@dataclass(slots=True)
class _Compiler:
    """Folds a decoder's stages, in order, into `DecodingRules`."""

    before: list[Transform] = field(default_factory=list[Transform])
    after: list[Transform] = field(default_factory=list[Transform])
    has_byte_tokens: bool = False
    is_fused: bool = False
    strip_left: tuple[str, int] = ("", 0)
    dropped_from_first: str = ""

    def add(self, stage: dict[str, Any]) -> bool:
        """Take in one stage; False if it can't be followed token by token."""
        kind = stage.get("type")
        if kind == "Fuse":
            self.is_fused = True
        elif kind == "Strip" and self.is_fused:
            is_simple = stage["stop"] == 0 and self.strip_left == ("", 0)
            self.strip_left = (stage["content"], stage["start"])
            return is_simple
        elif self.is_fused:
            return False
        elif kind == "ByteFallback":
            is_first = not self.has_byte_tokens
            self.has_byte_tokens = True
            return is_first
        else:
            return self._add_transform(stage)
        return True

    def _add_transform(self, stage: dict[str, Any]) -> bool:
        transforms = self.after if self.has_byte_tokens else self.before
        if stage["type"] == "Replace" and "String" in stage["pattern"]:
            transforms.append(_replacer(stage["pattern"]["String"], stage["content"]))
        elif stage["type"] == "Strip" and stage["stop"] == 0:
            transforms.append(_left_stripper(stage["content"], stage["start"]))
        elif stage["type"] == "Metaspace" and not self.before and not self.has_byte_tokens:
            transforms.append(_replacer(stage["replacement"], " "))
            self.dropped_from_first = "" if stage["prepend_scheme"] == "never" else stage["replacement"]
        else:
            return False
        return True


def _replacer(old: str, new: str) -> Transform:
    return lambda text: text.replace(old, new)


def _left_stripper(character: str, count: int) -> Transform:
    return lambda text: text[min(count, len(text) - len(text.lstrip(character))) :]


def read_decoding_rules(tokenizer: tokenizers.Tokenizer) -> DecodingRules:
    """Compile a tokenizer's decoder. Raises: ModelError if some stage of it can't be followed token by token."""
    if tokenizer.decoder is None:
        return DecodingRules(separator=" ")
    decoder: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    stages: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    if [stage["type"] for stage in stages if stage["type"] != "Fuse"] == ["ByteLevel"]:
        return DecodingRules(is_byte_level=True)
    compiler = _Compiler()
    for stage in stages:
        if not compiler.add(stage):
            raise ModelError(
                f"the tokenizer's decoder must be made of {', '.join(SUPPORTED_DECODERS)} in an order that can be"
                f" streamed, got {stage} in {[each['type'] for each in stages]}: this tokenizer isn't supported."
            )
    return DecodingRules(
        has_byte_tokens=compiler.has_byte_tokens,
        before=tuple(compiler.before),
        after=tuple(compiler.after),
        strip_left=compiler.strip_left,
        dropped_from_first=compiler.dropped_from_first,
    )


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte: printable Latin-1 stands for itself, the other 68 bytes for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


BYTE_LEVEL_ALPHABET = _byte_level_alphabet()


class PieceTable(dict[int, Piece]):
    """Token id -> what it adds to the text, filled as ids come by. One table serves all requests of a tokenizer.

    A token's piece is as for a token that is not the first of its text; `DecodingRules.dropped_from_first` says how the
    first one differs."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, rules: DecodingRules, skipped_ids: frozenset[int]) -> None:
        super().__init__()
        self.rules = rules
        self._tokenizer = tokenizer
        self._skipped_ids = skipped_ids

    def __missing__(self, token_id: int) -> Piece:
        token = None if token_id in self._skipped_ids else self._tokenizer.id_to_token(token_id)
        piece = None if token is None else self._piece(token)
        self[token_id] = piece
        return piece

    def first_piece(self, token_id: int) -> Piece:
        """The piece of a token that begins a text."""
        if not self.rules.dropped_from_first or not isinstance(self[token_id], str):
            return self[token_id]
        token = self._tokenizer.id_to_token(token_id)
        assert token is not None, f"a token with a piece has a text, got none for {token_id}"
        return self._piece(token.replace(self.rules.dropped_from_first, ""))

    def _piece(self, token: str) -> Piece:
        if self.rules.is_byte_level:
            # As in the library: a token with any character outside the alphabet (an added token) stands for itself.
            is_encoded = all(character in BYTE_LEVEL_ALPHABET for character in token)
            return bytes(map(BYTE_LEVEL_ALPHABET.__getitem__, token)) if is_encoded else token.encode()
        for transform in self.rules.before:
            token = transform(token)
        if self.rules.has_byte_tokens and (byte := _byte_token_value(token)) is not None:
            return byte
        for transform in self.rules.after:
            token = transform(token)
        return token


def _byte_token_value(token: str) -> int | None:
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return None
    try:
        return int(token[3:5], 16)
    except ValueError:
        return None
