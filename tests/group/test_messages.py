"""What is said between processes arrives as it was said, or is refused."""

import numpy as np
import pytest

from sarathi_jax.group.messages import Kind, MessageError, Opener, Sealer, session_key

KEY = session_key(b"a key", b"of a test")


def sealed(count: int, process_id: int = 0, key: bytes = KEY) -> list[bytes]:
    sealer = Sealer(key, process_id)
    return [
        sealer.seal(Kind.STEP, np.arange(each, dtype=np.int32).data, runner=1, bucket=3)[1] for each in range(count)
    ]


def test_messages_arrive_as_they_were_sealed() -> None:
    opener = Opener(KEY, 0)
    for number, data in enumerate(sealed(3)):
        message = opener.open(data)
        assert message[:4] == (Kind.STEP, 1, 3, number)
        assert np.frombuffer(message.payload, np.int32).tolist() == list(range(number))


@pytest.mark.parametrize("place", [0, 2, 9, 16, 20, -1])
def test_a_changed_byte_is_seen(place: int) -> None:
    data = bytearray(sealed(3)[2])
    data[place] ^= 1
    with pytest.raises(MessageError, match="must be as it was sealed, got another digest"):
        Opener(KEY, 0).open(bytes(data))


@pytest.mark.parametrize(
    "data",
    [sealed(1, process_id=1)[0], sealed(1, key=session_key(b"a key", b"of another start"))[0], sealed(2)[1][:-1]],
    ids=["of another process", "of another start", "cut"],
)
def test_a_message_that_was_sealed_elsewhere_is_refused(data: bytes) -> None:
    with pytest.raises(MessageError, match="got another digest"):
        Opener(KEY, 0).open(data)


@pytest.mark.parametrize(
    ("order", "text"), [([1], "message 0 must come next, got 1"), ([0, 0], "1 .* got 0"), ([0, 2], "1 .* got 2")]
)
def test_a_message_that_is_missing_or_comes_again_is_seen(order: list[int], text: str) -> None:
    messages, opener = sealed(3), Opener(KEY, 0)
    for each in order[:-1]:
        opener.open(messages[each])
    with pytest.raises(MessageError, match=text):
        opener.open(messages[order[-1]])


def test_less_than_a_header_is_refused() -> None:
    with pytest.raises(MessageError, match="at least 48 bytes, got 3"):
        Opener(KEY, 0).open(b"abc")


def test_a_last_word_may_overtake_others() -> None:
    sealer, opener = Sealer(KEY, 0), Opener(KEY, 0)
    sealer.seal(Kind.STEP)
    assert opener.open(sealer.seal_last("it is over")) == (Kind.FAILED, 0, 0, 0, b"it is over")


def test_keys_differ_by_each_of_their_parts() -> None:
    keys = [
        session_key(b"k", b"ab", b"c"),
        session_key(b"k", b"a", b"bc"),
        session_key(b"k", b"abc"),
        session_key(b"l", b"ab", b"c"),
    ]
    assert len({*keys}) == 4
