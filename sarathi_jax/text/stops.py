"""Stop strings over text that comes in deltas: the cut is exact, and nothing is shown that a stop string could still
swallow.

The first stop string to be *completed* wins (of several completed by the same character, the longest), so the outcome
depends on the text alone and not on how tokens cut it up."""

from collections.abc import Sequence


class StopChecker:
    """Watches one output's text. After a match `matched` holds the stop string and every further call returns
    nothing."""

    __slots__ = ("_first_characters", "_held", "_includes_stop", "_stops", "matched")

    def __init__(self, stops: Sequence[str], *, include_stop_str: bool = False) -> None:
        """`stops`: non-empty strings. With `include_stop_str` the text ends with the stop string, else just before
        it."""
        self._stops = tuple(stops)
        self._includes_stop = include_stop_str
        self._first_characters = frozenset(stop[0] for stop in self._stops)
        self._held = ""
        self.matched: str | None = None

    def push(self, delta: str) -> str:
        """Add text; returns the text that may be shown now: no stop string begins in it, except the one that ended
        it."""
        if not self._stops:
            return delta
        if self.matched is not None or not delta:
            return ""
        if not self._held and self._first_characters.isdisjoint(delta):
            return delta
        text = self._held + delta
        if (match := self._first_match(text)) is not None:
            start, self.matched = match
            self._held = ""
            return text[: start + len(self.matched)] if self._includes_stop else text[:start]
        num_held = max(_overlap(text, stop) for stop in self._stops)
        shown = text[: len(text) - num_held]
        self._held = text[len(shown) :]
        return shown

    def finish(self) -> str:
        """The output ended for another reason; returns the text held back."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        matches = [(start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        return min(matches, key=lambda match: (match[0] + len(match[1]), match[0]), default=None)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while start >= 0:
        if stop.startswith(text[start:]):
            return len(text) - start
        start = text.find(stop[0], start + 1)
    return 0
