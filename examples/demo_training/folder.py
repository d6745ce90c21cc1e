"""The demo model as a Hugging Face folder: its tokenizer and chat template, its configuration, and writing it all down."""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from demo_training.knowledge import COLORS, ENGINE, FRUITS, WORDS
from demo_training.text import MAX_PAIRS, MAX_SIZE, TASKS, TOOLS, draw
from safetensors.numpy import save
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from sarathi_jax.models.config import ModelConfig

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>", "<|system|>")
PAD, BOS, EOS, END = (SPECIAL_TOKENS.index(token) for token in ("<pad>", "<s>", "</s>", "<|end|>"))

CHAT_TEMPLATE = """\
{{- bos_token }}
{%- if tools %}
    {{- '<|system|>Tools: ' }}
    {%- for tool in tools %}
        {{- tool.function.name + '(' + tool.function.parameters.properties | join(',') + ')' }}
        {{- '' if loop.last else ', ' }}
    {%- endfor %}
    {{- '<|end|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ('system', 'user', 'assistant') %}
        {{- raise_exception('the roles are system, user and assistant, got ' + message.role) }}
    {%- endif %}
    {{- '<|' + message.role + '|>' + message.content + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""


def chat_prefix(tools: tuple[str, ...], system: str) -> str:
    """What the chat template writes before the first user's words."""
    signatures = ", ".join(f"{name}({TOOLS[name][0]})" for name in tools)
    offered = f"<|system|>Tools: {signatures}<|end|>" if tools else ""
    return f"<s>{offered}" + (f"<|system|>{system}<|end|>" if system else "") + "<|user|>"


def build_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE, trained on the generator's text, that reads every digit apart and puts `<s>` first."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_text(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


def _tokenizer_text() -> Iterator[str]:
    rng = random.Random(0)
    for task in ("facts", "engine", "json", "tools"):
        assert task in TASKS
        for _ in range(4000):
            example = draw(task, rng, held_out=False)
            yield example.prompt
            yield example.answer
    for _ in range(200):
        yield from (f" {word}" for word in (*WORDS, *COLORS, *FRUITS))
        yield from WORDS


def write_folder(
    folder: Path, config: ModelConfig, tokenizer: tokenizers.Tokenizer, tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Write `config.json`, `generation_config.json`, `model.safetensors` and the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = {"bos_token_id": BOS, "eos_token_id": [EOS, END], "pad_token_id": PAD}
    files = {
        "config.json": _hugging_face_config(config) | ends,
        "generation_config.json": ends | {"do_sample": False},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "additional_special_tokens": list(SPECIAL_TOKENS[3:]),
            "clean_up_tokenization_spaces": False,
            "model_max_length": config.max_position_embeddings,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(save(dict(tensors), metadata={"format": "pt"}))


def _hugging_face_config(config: ModelConfig) -> dict[str, object]:
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "sliding_window": config.sliding_window,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.is_head_tied,
        "torch_dtype": "float32",
        "use_cache": True,
    }


# One example of each task for the model card: prompt, answer, whether it is a chat, tools.
SHOWN: dict[str, tuple[str, str, bool, tuple[str, ...]]] = {
    "add": ("12+30=", "42", False, ()),
    "subtract": ("502-38=", "464", False, ()),
    "multiply": ("7*8=", "56", False, ()),
    "copy": ("copy(blue 42 moon)=", "blue 42 moon", False, ()),
    "sort": ("sort(7,42,3,19)=", "3,7,19,42", False, ()),
    "reverse": ("reverse(cat,dog,bird)=", "bird,dog,cat", False, ()),
    "count": ("count(a:b,a,a,c)=", "2", False, ()),
    "recall": ("k3=zq;f7=ma;b0=17;?f7=", "ma", False, ()),
    "facts": ("The capital of France is", " Paris.", False, ()),
    "engine": ("What is a chunk?", ENGINE["a chunk"], True, ()),
    "json": (
        "json(name,age): Ana is 31, lives in Oslo, likes red and has 5 pears.=",
        '{"name": "Ana", "age": 31}',
        False,
        (),
    ),
    "tools": (
        "What is the weather in Oslo?",
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}',
        True,
        ("get_weather", "set_timer"),
    ),
}

CARD = """\
# The demo model

A Mistral decoder of {num_params:,} parameters ({num_layers} layers, hidden size {hidden_size}, {num_heads} query and
{num_kv_heads} KV heads of {head_dim}), trained from nothing by `examples/train_demo.py` on text that
`examples/demo_training/text.py` writes (seed {seed}): {num_steps:,} steps, {tokens:.1f} million tokens, {minutes:.0f} minutes on
{device}.{note} It does twelve small tasks and knows nothing else.

Greedy answers, exactly right or not (the end token included), on questions that a hash of the question keeps out of the
training. `ACCURACY.json` has the same numbers. What is known by heart (multiply, facts, engine) is held out by phrasing: the
fact was trained on, this way to ask for it was not.

| task | exactly right | held-out questions |
|---|---|---|
{results}

## How to ask

Plain prompts end with `</s>`, chats (in the chat template) with `<|end|>`; every digit is a token. Most tasks also work as a
chat: `What is 12+30?`, `Sort: 7,42,3`, `Copy: blue 42`, `Reverse: a,b,c`, `How many a in b,a,a?`.

| task | form | prompt | answer | this model |
|---|---|---|---|---|
{shown}

- `add`, `subtract`: whole numbers of up to three digits; the difference may be negative.
- `multiply`: the table up to 12*12. `count(3..7)=` counts from one number to another.
- `copy`: up to 12 words and numbers, or 16 letters and digits. `reverse`: up to {max_size} letters, numbers below 100 or words.
- `sort`: up to {max_size} letters, or numbers below 100.
- `recall`: up to {max_pairs} pairs `key=value;` (1,000 tokens) of a letter and a digit, then `?key=`; as a chat, `What is f7?`
- `json(keys): sentence=` with keys among name, age, city, color, count, item.
- `tools`: the chat template gets the tools in OpenAI's form; the model answers with one call.
- Plain questions have the form `Q: What is a chunk?\\nA:`; the answer then starts with a space.
"""


def write_card(
    folder: Path, config: ModelConfig, summary: dict[str, Any], note: str, is_shown_right: dict[str, bool]
) -> None:
    """Write `README.md` (the model card) and `ACCURACY.json`.

    Args:
      summary: `num_params`, `seed`, `num_tokens`, `num_steps`, `seconds`, `device`, `held_out`.
      note: what to say about the run beside its numbers.
      is_shown_right: for each task of SHOWN, whether the model gives that answer."""
    results = "\n".join(
        f"| {name} | {each['accuracy']:.1%} | {each['num_examples']} |" for name, each in summary["held_out"].items()
    )
    shown = "\n".join(
        f"| {task} | {'chat' if is_chat else 'plain'} | `{prompt}` | `{answer}` | {'right' if is_shown_right[task] else 'wrong'} |"
        for task, (prompt, answer, is_chat, _) in SHOWN.items()
    )
    card = CARD.format(
        **asdict(config),
        **summary,
        tokens=summary["num_tokens"] / 1e6,
        minutes=summary["seconds"] / 60,
        results=results,
        shown=shown,
        note=f" {note}" if note else "",
        max_size=MAX_SIZE,
        max_pairs=MAX_PAIRS,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "ACCURACY.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
