"""Tool calls out of a model's text as it comes: read by hand, a character at a time, each of them at most a few times, whatever a model writes. What is no call is content."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from sarathi_jax.text.tool_calls import ToolCallFormat

SPACES = frozenset(" \t\r\n")
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
MAX_NAME_CHARS = 64


class CallDelta(NamedTuple):
    """What a call gained. id, name: of a new call; None: it goes on. arguments: JSON text, or a part of it."""

    number: int
    call_id: str | None
    name: str | None
    arguments: str


type Delta = str | CallDelta
type Step = Callable[[str], bool]


class ToolCallParser:
    """One output's text. How it was cut into deltas decides only where what comes out is cut.

    A call is told of when its name is known and its arguments begin; until then its text is held back, as is whitespace beside it, which is dropped where
    it is all that stands there.

    Args:
      names: of the tools; a call of any other is content.
      new_id: makes up a call's id.

    num_calls: that have begun. is_cut: whether the arguments of the last of them have not come to their end.
    """

    def __init__(self, form: ToolCallFormat, names: Collection[str], new_id: Callable[[], str]) -> None:
        self._form = form
        self._names = frozenset(names)
        self._new_id = new_id
        self._deltas: list[Delta] = []
        self._content: list[str] = []  # of this push
        self._held: list[str] = []  # what will be content if it is no call
        self._spaces: list[str] = []  # around calls
        self._is_after_gap = True  # nothing but whitespace since the beginning, or since the last call
        self._arguments: list[str] = []  # of this push
        self._state: Step = self._read_text if form.begin else self._read_bare_start
        self._word = ""
        self._place = 0
        self._then: Callable[[], None] = self._begin_call
        self._name: list[str] = []
        self._depth = 0
        self._is_string = self._is_escaped = False
        self.num_calls = 0
        self.is_cut = False

    def push(self, text: str) -> list[Delta]:
        """Add text. Returns: what is certain now, in order."""
        if not self._is_after_gap and self._is_plain(text):
            return [text] if text else []
        for character in text:
            while not self._state(character):  # it was not taken, and the state has changed
                pass
        return self._flush()

    def finish(self) -> list[Delta]:
        """No more comes. Returns: what was held back."""
        if not (self._state == self._read_word and self._then == self._end_mark):  # its end is part of a call
            self._give_up()
        if self.num_calls == 0:
            self._content += self._spaces
        self._state = self._read_nothing
        return self._flush()

    def _is_plain(self, text: str) -> bool:
        """Whether no part of a call is in it."""
        if self._state == self._read_text:
            return not self._held and self._form.begin[0] not in text
        return self._state == self._read_all_text

    # ---- what comes out

    def _flush(self) -> list[Delta]:
        self._flush_content()
        self._flush_arguments()  # there are none, or no content
        deltas, self._deltas = self._deltas, []
        return deltas

    def _flush_content(self) -> None:
        if self._content:
            self._deltas.append("".join(self._content))
            self._content.clear()

    def _flush_arguments(self) -> None:
        if not self._arguments:
            return
        text = "".join(self._arguments)
        self._arguments.clear()
        last = self._deltas[-1] if self._deltas else None
        if isinstance(last, CallDelta) and not last.arguments:
            self._deltas[-1] = last._replace(arguments=text)
        else:
            self._deltas.append(CallDelta(self.num_calls - 1, None, None, text))

    def _give_up(self) -> None:
        """What was held is no call."""
        for character in self._held:
            self._show(character)
        self._held.clear()

    def _show(self, character: str) -> None:
        """Content, but for whitespace around calls."""
        if self._is_after_gap and character in SPACES:
            self._spaces.append(character)
            return
        if self._is_after_gap:
            self._is_after_gap = False
            self._content += self._spaces
            self._spaces.clear()
        self._content.append(character)

    # ---- states: each takes a character, or changes the state and returns False

    def _read_nothing(self, _: str) -> bool:
        return True

    def _read_all_text(self, character: str) -> bool:
        """Nothing can be a call any more."""
        self._show(character)
        return True

    def _read_bare_start(self, character: str) -> bool:
        """A call is the whole output, or there is none."""
        if character in SPACES:
            self._show(character)
            return True
        self._state = self._read_all_text
        if character == "{":
            self._begin_call()
        return False

    def _read_text(self, character: str) -> bool:
        """Held: a proper beginning of the mark. Marks begin with a character that they have but once, so that a mismatch leaves nothing to look at again."""
        begin = self._form.begin
        if character == begin[len(self._held)]:
            self._held.append(character)
            if len(self._held) == len(begin):
                if self._form.is_list:
                    self._expect("[", self._begin_call)
                else:
                    self._begin_call()
            return True
        if not self._held:
            self._show(character)
            return True
        self._give_up()
        return False

    def _expect(self, word: str, then: Callable[[], None]) -> None:
        """Whitespace and this word; anything else, and there is no call."""
        self._word, self._place, self._then = word, 0, then
        self._state = self._read_word

    def _read_word(self, character: str) -> bool:
        if character == self._word[self._place]:
            self._held.append(character)
            self._place += 1
            if self._place == len(self._word):
                self._then()
            return True
        if self._place == 0 and character in SPACES:
            self._held.append(character)
            return True
        return self._is_no_call()

    def _is_no_call(self) -> bool:
        """Show what was held, and look at this character anew."""
        self._state = self._read_text if self._form.begin else self._read_all_text
        self._read_held_again()
        return False

    def _read_held_again(self) -> None:
        """What was held begins with a mark that began no call; another may be in it."""
        held, self._held = self._held, []
        first = len(self._form.begin) if held[: len(self._form.begin)] == list(self._form.begin) else 0
        for character in held[:first]:
            self._show(character)
        for character in held[first:]:
            while not self._state(character):
                pass

    def _begin_call(self) -> None:
        self._expect("{", lambda: self._expect('"name"', lambda: self._expect(":", self._begin_name)))

    def _begin_name(self) -> None:
        self._expect('"', self._begin_name_text)

    def _begin_name_text(self) -> None:
        self._name = []
        self._state = self._read_name

    def _read_name(self, character: str) -> bool:
        if character in NAME_CHARACTERS and len(self._name) < MAX_NAME_CHARS:
            self._held.append(character)
            self._name.append(character)
            return True
        if character != '"' or "".join(self._name) not in self._names:
            return self._is_no_call()
        self._held.append(character)
        key = f'"{self._form.arguments_key}"'
        self._expect(",", lambda: self._expect(key, lambda: self._expect(":", self._begin_value)))
        return True

    def _begin_value(self) -> None:
        self._expect("{", self._begin_arguments)

    def _begin_arguments(self) -> None:
        """It is a call."""
        self._held.clear()
        self._spaces.clear()
        self._flush_content()
        self._deltas.append(CallDelta(self.num_calls, self._new_id(), "".join(self._name), ""))
        self.num_calls += 1
        self.is_cut = True
        self._arguments.append("{")
        self._depth, self._is_string, self._is_escaped = 1, False, False
        self._state = self._read_arguments

    def _read_arguments(self, character: str) -> bool:
        self._arguments.append(character)
        if self._is_value_over(character):
            self._flush_arguments()
            self.is_cut = False
            self._state = self._read_after_arguments
        return True

    def _is_value_over(self, character: str) -> bool:
        """Whether brackets are all closed now."""
        if self._is_string:
            if self._is_escaped:
                self._is_escaped = False
            elif character == "\\":
                self._is_escaped = True
            elif character == '"':
                self._is_string = False
            return False
        if character == '"':
            self._is_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
        return self._depth == 0

    def _read_after_arguments(self, character: str) -> bool:
        """The call's object ends, or has more members, which nobody needs."""
        if character in SPACES:
            return True
        if character == ",":
            self._depth = 1
            self._state = self._read_rest
            return True
        self._end_call()
        return character == "}"

    def _read_rest(self, character: str) -> bool:
        if self._is_value_over(character):
            self._end_call()
        return True

    def _end_call(self) -> None:
        self._is_after_gap = True
        self._state = self._read_all_text
        if self._form.is_list:
            self._state = self._read_list
        elif self._form.end:
            self._expect(self._form.end, self._end_mark)

    def _end_mark(self) -> None:
        self._held.clear()
        self._state = self._read_text

    def _read_list(self, character: str) -> bool:
        if character in SPACES:
            return True
        if character == ",":
            self._held.append(character)
            self._begin_call()
            return True
        self._state = self._read_text
        return character == "]"
