"""Who makes steps fail, told failure by failure: what is tried when, who is accused, and who ends at last."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sarathi_jax.scheduling.request import Request
from sarathi_jax.scheduling.suspects import Suspects
from sarathi_jax.scheduling.token_output import TokenOutput

type Make = Callable[..., Request]


class Hunt:
    """Suspects among requests with names of one letter, all of which can run at any time."""

    def __init__(self, make_request: Make, names: str) -> None:
        self.requests = {name: make_request(name, 3) for name in names}
        self.suspects = Suspects()

    def fail(self, names: str) -> str:
        """A step with these failed. Returns: who ends for it."""
        return self._named(self.suspects.failed(self._of(names), list(self.requests.values())))

    def succeed(self, names: str, tokens: str | None = None) -> str:
        """A step with these went well, and brought these tokens; None: each one."""
        outputs = [TokenOutput(request, 0, 7) for request in self._of(names if tokens is None else tokens)]
        return self._named(self.suspects.succeeded(self._of(names), outputs))

    @property
    def may_run(self) -> str:
        """Who may be in the next step."""
        if self.suspects.is_hunting:
            self.suspects.advance(list(self.requests.values()))
        return self._named(filter(self.suspects.may_run, self.requests.values()))

    def _of(self, names: str) -> Sequence[Request]:
        return [self.requests[name] for name in names]

    def _named(self, requests: Any) -> str:
        return "".join(request.request_id for request in requests)


@pytest.fixture
def make_hunt(make_request: Make) -> Callable[[str], Hunt]:
    return lambda names: Hunt(make_request, names)


def test_one_failure_holds_nobody_back(make_hunt: Callable[[str], Hunt]):
    hunt = make_hunt("abcd")
    assert (hunt.fail("abcd"), hunt.may_run) == ("", "abcd")


def test_failures_of_others_are_no_second_one(make_hunt: Callable[[str], Hunt]):
    """And a token clears: who failed, got one, and fails again, has failed once."""
    hunt = make_hunt("abcd")
    hunt.fail("ab")
    hunt.succeed("ab")
    hunt.fail("abcd")
    assert hunt.may_run == "abcd"
    hunt.fail("cd")
    assert hunt.may_run == "c"


def test_halves_are_tried_in_turn(make_hunt: Callable[[str], Hunt]):
    hunt = make_hunt("abcdefgh")
    hunt.fail("abcdefgh")
    hunt.fail("abcdefgh")
    assert hunt.may_run == "abcd"
    hunt.succeed("abcd", "ab")
    assert hunt.may_run == "abcd"
    hunt.succeed("abcd")
    assert hunt.may_run == "abcdef"  # nobody of the first half: one of the other, of which half is tried
    hunt.fail("abcdef")
    assert hunt.may_run == "abcde"
    hunt.fail("e")
    assert (hunt.succeed("abcd"), hunt.may_run) == (
        "",
        "abcdf",
    )  # four failures: it waits until all others have been tried
    assert (hunt.succeed("abcdf"), hunt.may_run) == ("", "abcdfgh")
    assert hunt.succeed("abcdfgh") == "e"
    assert hunt.may_run == "abcdefgh" and not hunt.suspects.is_hunting


def test_who_is_accused_by_chance_is_tried_again(make_hunt: Callable[[str], Hunt]):
    """Steps with `a` failed four times, and so did then those with `c`."""
    hunt = make_hunt("abcd")
    for names in ("abcd", "abcd", "ab", "a"):
        assert hunt.fail(names) == ""
    assert hunt.may_run == "b"  # `a` is accused; that is no success yet
    assert (hunt.succeed("b"), hunt.may_run) == ("", "bcd")
    assert (hunt.fail("bcd"), hunt.may_run) == ("", "bc")
    for _ in range(3):
        assert hunt.may_run == "bc"
        assert hunt.fail("bc") == ""
    assert hunt.may_run == "bd"
    assert hunt.succeed("bd") == "c"
    hunt.suspects.left(hunt.requests.pop("c"))
    assert hunt.may_run == "abd"
    assert (hunt.succeed("abd"), hunt.suspects.is_hunting, hunt.may_run) == ("", False, "abd")


def test_who_is_the_only_one_has_four_failures(make_hunt: Callable[[str], Hunt]):
    hunt = make_hunt("a")
    assert [hunt.fail("a") for _ in range(4)] == ["", "", "", "a"]
    hunt.suspects.left(hunt.requests["a"])
    other = make_hunt("b").requests
    hunt.requests = other
    assert [(hunt.fail("b"), hunt.suspects.is_hopeless) for _ in range(4)] == [("", False)] * 3 + [("", True)]


def test_nothing_is_kept_of_who_has_ended(make_hunt: Callable[[str], Hunt]):
    hunt = make_hunt("abcd")
    hunt.fail("abcd")
    hunt.fail("abcd")
    hunt.succeed("a")
    for name in "abcd":
        hunt.suspects.left(hunt.requests.pop(name))
    assert hunt.may_run == ""
    hunt.succeed("")
    assert not hunt.suspects.is_watching and not hunt.suspects.is_hunting
