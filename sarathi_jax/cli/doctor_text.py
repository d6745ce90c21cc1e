"""Whether a model's tokenizer and chat template do what they should, as `doctor` says it."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from sarathi_jax.cli.doctor_check import FAIL, OK, WARN, Check, attempt
from sarathi_jax.errors import RequestError
from sarathi_jax.text.chat import encode_chat
from sarathi_jax.text.chat_template import ChatTemplate
from sarathi_jax.text.tokenizer import Tokenizer

# What tokenizers get wrong.
TEXTS = {
    "plain": "The quick brown fox, 12+30=42!\nA second line.",
    "emoji": "\U0001f469\u200d\U0001f4bb \U0001f1ea\U0001f1fa \U0001f44d\U0001f3fd ok",
    "cjk": "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \ud55c\uad6d\uc5b4",
    "spaces": "  two before,  two  between\t\ttabs\n\n\nlines, one after ",
    "combining": "e\u0301 \u00e9 \u0928\u092e\u0938\u094d\u0924\u0947 \ufb01",
}
USER = {"role": "user", "content": "Say 42."}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up_weather",
        "description": "The weather of a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}


def check_text(folder: Path, vocab_size: int) -> list[Check]:
    """All of them. vocab_size: of the model's logits."""
    found: list[Tokenizer] = []

    def load() -> Check:
        found.append(Tokenizer.from_folder(folder))
        return check_vocabulary(found[0], vocab_size)

    checks = [attempt("vocabulary", load)]
    if not found:
        return checks
    tokenizer = found[0]
    checks += [
        attempt(f"tokenizer {kind}", lambda kind=kind, text=text: check_round_trip(tokenizer, kind, text))
        for kind, text in TEXTS.items()
    ]
    checks.append(attempt("tokenizer special", lambda: check_special(tokenizer)))
    return checks + check_template(folder, tokenizer)


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> Check:
    if tokenizer.vocab_size > vocab_size:
        text = f"every token must have a logit, got {tokenizer.vocab_size} tokens and logits of {vocab_size}: the tokenizer is another model's, or vocab_size wrong."
        return Check("vocabulary", FAIL, text)
    rest = vocab_size - tokenizer.vocab_size
    return Check(
        "vocabulary",
        OK,
        f"{tokenizer.vocab_size} tokens, logits of {vocab_size}{f', {rest} of them without a token' if rest else ''}",
    )


def check_round_trip(tokenizer: Tokenizer, kind: str, text: str) -> Check:
    """Whether a text comes back from its tokens, whole and token by token."""
    name = f"tokenizer {kind}"
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    whole, detokenizer = tokenizer.decode(token_ids), tokenizer.new_detokenizer()
    streamed = "".join(map(detokenizer.push, token_ids)) + detokenizer.finish()
    if streamed != whole:
        return Check(name, FAIL, f"a stream's text must be the whole one's, got {streamed!a} for {whole!a}: report it.")
    if whole != text:
        return Check(
            name,
            WARN,
            f"{text!a} should come back from its tokens, got {whole!a}: the tokenizer loses it; nothing to do if its makers meant so.",
        )
    return Check(name, OK, f"{len(token_ids)} tokens for {len(text)} characters")


def check_special(tokenizer: Tokenizer) -> Check:
    """Whether special tokens that a user spells out stay plain text."""
    name, texts = "tokenizer special", sorted(set(tokenizer.special_tokens.values()))
    if not texts:
        return Check(
            name,
            WARN,
            "special tokens should be named, got none in tokenizer_config.json: the model may not end its outputs.",
        )
    for text in texts:
        token = tokenizer.encode_template(text)
        if len(token) == 1 and token[0] in tokenizer.encode(f"a {text} b", add_special_tokens=False):
            return Check(name, FAIL, f"a user's {text} must stay plain text, got the token itself: report it.")
    return Check(name, OK, f"{', '.join(texts)} spelled out stay plain text")


def check_template(folder: Path, tokenizer: Tokenizer) -> list[Check]:
    """A tiny conversation, with a system message, and with a tool."""
    templates: list[ChatTemplate] = []

    def load() -> Check:
        template = ChatTemplate.from_folder(folder)
        if template is None:
            return Check(
                "template",
                WARN,
                "a model that chats should have a chat template, got none: use its chat variant, or plain prompts alone.",
            )
        templates.append(template)
        return check_conversation(template, tokenizer)

    checks = [attempt("template", load)]
    if templates:
        with closing(templates[0]) as template:
            checks.append(
                attempt("template system", lambda: check_shown(template, "system", [SYSTEM, USER], None, "brief"))
            )
            checks.append(
                attempt("template tools", lambda: check_shown(template, "tools", [USER], [TOOL], "look_up_weather"))
            )
    return checks


def check_conversation(template: ChatTemplate, tokenizer: Tokenizer) -> Check:
    token_ids = encode_chat(tokenizer, template, [USER])
    bos = tokenizer.bos_token_id
    if bos is not None and token_ids[:2] == [bos, bos]:
        return Check("template", WARN, "a prompt should begin with one BOS, got two: correct the template.")
    if USER["content"] not in template.render([USER]):
        return Check(
            "template",
            FAIL,
            f"a message must be in the prompt, got {template.render([USER])[:80]!a}: correct the template.",
        )
    if template.render([USER]) == template.render([USER], add_generation_prompt=False):
        return Check(
            "template",
            WARN,
            "a prompt should end with words that make the model answer, got none: check add_generation_prompt in the template.",
        )
    return Check("template", OK, f"{len(token_ids)} tokens for one short message")


def check_shown(
    template: ChatTemplate,
    what: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    word: str,
) -> Check:
    """Whether the template takes a system message or tools, and puts them into the prompt. Many do neither, and that is no fault."""
    name = f"template {what}"
    try:
        text = template.render(messages, tools)
    except RequestError as error:
        return Check(
            name, WARN, f"a template should take {what}, got a refusal ({error}): leave {what} out with this model."
        )
    if word not in text:
        return Check(
            name,
            WARN,
            f"a template should show the model its {what}, got a prompt without: {what} have no effect with this model.",
        )
    return Check(name, OK, "in the prompt")
