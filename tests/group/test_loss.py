"""The end of a group, as everybody in one process hears of it."""

import threading

import pytest

from sarathi_jax.errors import GroupError
from sarathi_jax.group.loss import Loss


def test_who_is_not_the_first_comes_back_when_the_group_has_ended() -> None:
    """The first is still telling the others: a process that went on would not know yet that there is nobody to part from."""
    loss, is_telling, may_end = Loss(), threading.Event(), threading.Event()

    def tell() -> None:
        is_telling.set()
        may_end.wait(5.0)

    threading.Thread(target=loss.set, args=(GroupError("the first"), tell), daemon=True).start()
    assert is_telling.wait(5.0)
    threading.Timer(0.2, may_end.set).start()
    assert loss.set(GroupError("the second")) is False
    assert str(loss.error) == "the first"


def test_an_end_that_can_not_be_told_is_one_all_the_same() -> None:
    loss = Loss()
    waiting = loss.future()

    def tell() -> None:
        raise OSError("nobody is there")

    with pytest.raises(OSError, match="nobody is there"):
        loss.set(GroupError("lost"), tell)
    with pytest.raises(GroupError, match="lost"):
        waiting.result(5.0)
    with pytest.raises(GroupError, match="lost"):
        loss.check()
