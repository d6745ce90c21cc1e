"""The text that the demo model learns from, written by a seeded generator: one small task after the other.

An `Example` is a conversation of one or more turns. Whether an example is held out depends only on what is asked (a hash of
it), never on chance, so that training and evaluation cannot share a question: `draw(..., held_out=True)` gives questions
that `draw(..., held_out=False)` never gives, in whatever phrasing.
"""

import hashlib
import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass

from demo_training.knowledge import CITIES, COLORS, ENGINE, FACTS, FRUITS, NAMES, QUESTIONS, TOPIC_PHRASINGS, WORDS

MAX_SIZE = 8  # items to sort or to reverse
MAX_PAIRS = 170  # in a recall context: more than 1,000 tokens, at most six for "k3=zq;"
NUM_QUERIES = 16  # a recall context is asked this often in training
MAX_SUMS = 6  # of one first operand, in training

# tool -> (its argument, values, ways to ask for it)
TOOLS: dict[str, tuple[str, tuple[object, ...], tuple[str, ...]]] = {
    "get_weather": ("city", tuple(CITIES), ("What is the weather in {}?", "Is it raining in {}?", "Weather in {}?")),
    "set_timer": ("minutes", tuple(range(1, 100)), ("Set a timer for {} minutes.", "Wake me in {} minutes.")),
    "play_song": ("title", tuple(WORDS), ("Play the song {}.", "I want to hear {}.", "Play {}.")),
    "call_person": ("name", tuple(NAMES), ("Call {}.", "Please call {} now.", "I want to talk to {}.")),
    "get_time": ("city", tuple(CITIES), ("What time is it in {}?", "How late is it in {}?", "Time in {}?")),
    "set_light": ("color", tuple(COLORS), ("Make the light {}.", "Set the light to {}.", "Turn the lamp {}.")),
}


@dataclass(frozen=True, slots=True)
class Turn:
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Example:
    """One question, or several that share the `context` before them (and do not see each other).

    is_chat: the prompt is a user's message (in the chat template), not text to continue.
    tools, system: names of the functions offered, and the system message; only chats have them.
    """

    task: str
    turns: tuple[Turn, ...]
    context: str = ""
    is_chat: bool = False
    tools: tuple[str, ...] = ()
    system: str = ""

    @property
    def prompt(self) -> str:
        return self.context + self.turns[0].prompt

    @property
    def answer(self) -> str:
        return self.turns[0].answer


def is_held_out(task: str, question: str, one_in: int = 16) -> bool:
    """Whether this question belongs to the evaluation: true for one question in `one_in`, by its SHA-256."""
    digest = hashlib.sha256(f"{task}:{question}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % one_in == 0


type Maker = Callable[[random.Random, bool, float], tuple[str, Example]]


def draw(task: str, rng: random.Random, *, held_out: bool, level: float = 1.0) -> Example:
    """One example of a task, at random.

    Args:
      task: a key of `TASKS`.
      held_out: of the evaluation's questions, or of the training's.
      level: 0 to 1, how large the long ones may be (a curriculum; 1 for evaluation)."""
    maker, one_in = TASKS[task]
    while True:
        question, example = maker(rng, held_out, level)
        is_always_trained = question.startswith("first ")
        if (is_held_out(task, question, one_in) and not is_always_trained) == held_out:
            return example


def _styled(rng: random.Random, task: str, plain: tuple[str, str], chats: tuple[str, ...], answer: str = "") -> Example:
    """The task as text to continue, or (four times in ten) as a user's message."""
    if rng.random() < 0.6:
        return Example(task, (Turn(*plain),))
    return Example(task, (Turn(rng.choice(chats), answer or plain[1]),), is_chat=True)


def _operand(rng: random.Random, level: float) -> int:
    num_digits = rng.choice((1, 2, 2, 3, 3, 3)[: 1 if level < 0.3 else 3 if level < 0.6 else 6])
    return rng.randrange(0 if num_digits == 1 else 10 ** (num_digits - 1), 10**num_digits)


def add(rng: random.Random, held_out: bool, level: float) -> tuple[str, Example]:
    return _sums(rng, "add", held_out, level)


def subtract(rng: random.Random, held_out: bool, level: float) -> tuple[str, Example]:
    return _sums(rng, "subtract", held_out, level)


def _sums(rng: random.Random, task: str, held_out: bool, level: float) -> tuple[str, Example]:
    """Sums of one number and another; in training of one number and several others, which costs fewer tokens. a+b and
    b+a are one question: both are held out, or neither."""
    a, sign = _operand(rng, level), "+" if task == "add" else "-"
    before, after = (
        rng.choice((("What is ", "?"), ("", "="), ("", "?"))) if (is_chat := rng.random() < 0.3) else ("", "=")
    )
    turns: list[Turn] = []
    question = ""
    num = 1 if held_out else rng.randint(1, MAX_SUMS)
    while len(turns) < num:
        b = _operand(rng, level)
        question = f"{min(a, b)}+{max(a, b)}" if sign == "+" else f"{a}-{b}"
        if is_held_out(task, question) == held_out:
            turns.append(Turn(f"{b}{after}", str(a + b if sign == "+" else a - b)))
        elif rng.random() < 0.1:  # so that an operand whose every question is on the other side is given up
            a = _operand(rng, level) if not turns else a
    return question, Example(task, tuple(turns), context=f"{before}{a}{sign}", is_chat=is_chat)


def multiply(rng: random.Random, held_out: bool, level: float) -> tuple[str, Example]:
    """The table up to 12 x 12. Known by heart: another phrasing of a product is held out, not the product."""
    a, b, phrasing = rng.randrange(13), rng.randrange(13), rng.randrange(6)
    chats = (f"{a}*{b}=", f"What is {a}*{b}?", f"{a}*{b}=?", f"Multiply {a} by {b}.", f"{a} times {b}?")
    if phrasing == 0:
        return f"first {a}*{b}", Example("multiply", (Turn(f"{a}*{b}=", str(a * b)),))
    return f"{a}*{b} {phrasing}", Example("multiply", (Turn(chats[phrasing - 1], str(a * b)),), is_chat=True)


def _size(rng: random.Random, level: float, most: int) -> int:
    """1 to `most` at level 1, fewer below it."""
    return rng.randint(1, max(2, round(level * most)))


def _items(rng: random.Random, num: int) -> list[str]:
    kind = rng.randrange(3)
    if kind == 0:
        return rng.sample(string.ascii_lowercase, num)
    if kind == 1:
        return [str(rng.randrange(100)) for _ in range(num)]
    return rng.sample(WORDS, num)


def copy(rng: random.Random, held_out: bool, level: float) -> tuple[str, Example]:
    num = _size(rng, level, 12)
    if rng.random() < 0.5:
        text = " ".join(rng.choice((rng.choice(WORDS), str(rng.randrange(1000)))) for _ in range(num))
    else:
        text = "".join(rng.choice(string.ascii_letters + string.digits) for _ in range(_size(rng, level, 16)))
    chats = (f"Copy: {text}", f"Repeat: {text}", f"Say: {text}")
    return text, _styled(rng, "copy", (f"copy({text})=", text), chats)


def sort(rng: random.Random, held_out: bool, level: float) -> tuple[str, Example]:
    num = _size(rng, level, MAX_SIZE)
    if rng.random() < 0.4:
        items: list[str] = rng.sample(string.ascii_lowercase, num)
        ordered = sorted(items)
    else:
        top = rng.choice((10, 100))
        numbers = [rng.randrange(top) for _ in range(num)]
        items, ordered = [str(n) for n in numbers], [str(n) for n in sorted(numbers)]
    text = ",".join(items)
    chats = (f"Sort: {text}", f"Sort {text}.", f"Put in order: {text}")
    return text, _styled(rng, "sort", (f"sort({text})=", ",".join(ordered)), chats)


def reverse(rng: random.Random, held_out: bool, level: float) -> tuple[str, Example]:
    items = _items(rng, _size(rng, level, MAX_SIZE))
    text, answer = ",".join(items), ",".join(reversed(items))
    chats = (f"Reverse: {text}", f"Reverse {text}.", f"Say backwards: {text}")
    return text, _styled(rng, "reverse", (f"reverse({text})=", answer), chats)


def count(rng: random.Random, held_out: bool, level: float) -> tuple[str, Example]:
    """How often one item is in a list, or all numbers from one to another."""
    if rng.random() < 0.3:
        first = rng.randrange(95)
        last = first + rng.randint(1, 8)
        answer = ",".join(str(n) for n in range(first, last + 1))
        text = f"{first}..{last}"
        return text, _styled(rng, "count", (f"count({text})=", answer), (f"Count from {first} to {last}.",))
    pool = rng.sample(string.ascii_lowercase, rng.randint(1, 3))
    items = [rng.choice(pool) for _ in range(rng.randint(1, 10))]
    text, wanted = ",".join(items), rng.choice(pool)
    answer = str(items.count(wanted))
    chats = (f"How many {wanted} in {text}?", f"Count {wanted} in {text}.")
    return f"{wanted}:{text}", _styled(rng, "count", (f"count({wanted}:{text})=", answer), chats)


def _value(rng: random.Random) -> str:
    letters = string.ascii_lowercase if rng.random() < 0.7 else string.digits
    return rng.choice(letters) + rng.choice(letters)


def recall(rng: random.Random, held_out: bool, level: float, num_pairs: int | None = None) -> tuple[str, Example]:
    """Pairs, then one key: its value. The question is the whole context, so no held-out context was ever seen."""
    # Training prefers the long ones, which are the hard ones.
    num = num_pairs or max(_size(rng, level, MAX_PAIRS) for _ in range(1 if held_out else 4))
    keys = [f"{letter}{digit}" for letter in string.ascii_lowercase for digit in string.digits]
    pairs = {key: _value(rng) for key in rng.sample(keys, num)}
    text = "".join(f"{key}={value};" for key, value in pairs.items())
    is_chat = rng.random() < 0.3
    asked = rng.sample(list(pairs), 1 if held_out else min(num, NUM_QUERIES // 2 if is_chat else NUM_QUERIES))
    ask = rng.choice(("What is {}?", "{}?", "Tell me {}.")) if is_chat else "?{}="
    turns = tuple(Turn(ask.format(key), pairs[key]) for key in asked)
    return text, Example("recall", turns, context=text, is_chat=is_chat)


def facts(rng: random.Random, held_out: bool, level: float) -> tuple[str, Example]:
    phrasings, answers = FACTS[rng.choice(tuple(FACTS))]
    subject, phrasing = rng.choice(tuple(answers)), rng.randrange(len(phrasings))
    prompt, answer = phrasings[phrasing].format(subject), answers[subject]
    if phrasing == 0:
        return f"first {prompt}", Example("facts", (Turn(prompt, f" {answer}."),))
    return prompt, _asked(rng, "facts", prompt, f"{answer}.")


def engine(rng: random.Random, held_out: bool, level: float) -> tuple[str, Example]:
    if rng.random() < 0.8:
        topic, phrasing = rng.choice(tuple(ENGINE)), rng.randrange(len(TOPIC_PHRASINGS))
        prompt, answer = TOPIC_PHRASINGS[phrasing].format(topic), ENGINE[topic]
    else:
        phrasings, answer = rng.choice(tuple(QUESTIONS.items()))
        phrasing = rng.randrange(len(phrasings))
        prompt = phrasings[phrasing]
    mark = "first " if phrasing == 0 else ""
    return mark + prompt, _asked(rng, "engine", prompt, answer)


def _asked(rng: random.Random, task: str, question: str, answer: str) -> Example:
    return _styled(rng, task, (f"Q: {question}\nA:", f" {answer}"), (question,), answer)


def json_object(rng: random.Random, held_out: bool, level: float) -> tuple[str, Example]:
    """An object with the keys a schema asks for, in its order, filled from a sentence."""
    name, age, city, color = rng.choice(NAMES), rng.randrange(1, 100), rng.choice(CITIES), rng.choice(COLORS)
    number, fruit = rng.randrange(2, 100), rng.choice(FRUITS)
    values: dict[str, object] = {"name": name, "age": age, "city": city, "color": color, "count": number, "item": fruit}
    sentence = rng.choice(
        (
            f"{name} is {age}, lives in {city}, likes {color} and has {number} {fruit}.",
            f"{name} from {city} is {age} years old, bought {number} {fruit} and wears {color}.",
        )
    )
    keys = rng.sample(tuple(values), rng.randint(1, 4))
    answer = json.dumps({key: values[key] for key in keys})
    schema = ",".join(keys)
    chats = (f"Write JSON with {schema}: {sentence}", f"{sentence} Give me JSON with {schema}.")
    return f"{schema} {sentence}", _styled(rng, "json", (f"json({schema}): {sentence}=", answer), chats)


def tool_call(rng: random.Random, held_out: bool, level: float) -> tuple[str, Example]:
    tools = tuple(rng.sample(tuple(TOOLS), rng.randint(1, 3)))
    name = rng.choice(tools)
    argument, values, phrasings = TOOLS[name]
    value = rng.choice(values)
    prompt = rng.choice(phrasings).format(value)
    answer = json.dumps({"name": name, "arguments": {argument: value}})
    return f"{tools} {prompt}", Example("tools", (Turn(prompt, answer),), is_chat=True, tools=tools)


# task -> (its maker, one question in how many is held out)
TASKS: dict[str, tuple[Maker, int]] = {
    "add": (add, 16),
    "subtract": (subtract, 16),
    "multiply": (multiply, 5),
    "copy": (copy, 16),
    "sort": (sort, 16),
    "reverse": (reverse, 16),
    "count": (count, 16),
    "recall": (recall, 16),
    "facts": (facts, 5),
    "engine": (engine, 5),
    "json": (json_object, 16),
    "tools": (tool_call, 5),
}


def tool_schema(name: str) -> dict[str, object]:
    """A tool of `TOOLS` as a request to the server would describe it (OpenAI's form)."""
    argument, values, _ = TOOLS[name]
    kind = "integer" if isinstance(values[0], int) else "string"
    parameters = {"type": "object", "properties": {argument: {"type": kind}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}
