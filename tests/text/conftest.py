"""Two small tokenizers, one of each family, built here with the library that is the oracle of these tests."""

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sarathi_jax.text.tokenizer import Tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "héllo wörld 日本語 🙂 one two three",
    "a stop string: END. <|im_end|",
] * 4
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def byte_level_json() -> str:
    """GPT-2's kind; BOS by post-processor; `<tool é>` is an added token with a character outside the byte alphabet's
    use, `<|im_end|>` a special one."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|im_end|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool é>"), AddedToken("é<é>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer.to_str()


def sentencepiece_json() -> str:
    """Llama 2's kind: pieces that begin with U+2581, 256 byte tokens, one leading space stripped from a text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁a", "▁the", "a", "b", "the", "END", "▁END", "é", "語", "▁▁", "x▁", "<0xZZ>"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "▁")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<unk>"), AddedToken("<s>"), AddedToken("</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer.to_str()


def with_decoder(decoder: decoders.Decoder | None) -> str:
    """The sentencepiece-like tokenizer with another decoder."""
    tokenizer = tokenizers.Tokenizer.from_str(sentencepiece_json())
    tokenizer.decoder = decoder
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    return Tokenizer(byte_level_json(), SPECIAL_TOKENS)


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    return Tokenizer(sentencepiece_json(), SPECIAL_TOKENS)


@pytest.fixture(scope="session")
def all_tokenizers(byte_level: Tokenizer, sentencepiece: Tokenizer) -> dict[str, Tokenizer]:
    """Every decoder that is supported, by name."""
    decoder_of: dict[str, decoders.Decoder | None] = {
        "no decoder": None,
        "metaspace": decoders.Metaspace(),
        "metaspace, first": decoders.Sequence([decoders.Metaspace(prepend_scheme="first"), decoders.ByteFallback()]),
        "metaspace, never": decoders.Metaspace(prepend_scheme="never"),
        "strip each": decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Strip(" ", 1, 0)]
        ),
        "replace after": decoders.Sequence(
            [decoders.ByteFallback(), decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 2, 0)]
        ),
        "byte level in a sequence": decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]),
    }
    others = {name: Tokenizer(with_decoder(decoder)) for name, decoder in decoder_of.items()}
    return {"byte level": byte_level, "sentencepiece": sentencepiece, **others}
