"""What owner and followers of a file say arrives as it was said, however the stream is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailstrom_async import AlreadyQueued, MailerStateError, QueueFull, StorageError, StorageIncompatible
from mailstrom_async.storage._sqlite.wire import (
    FRAME_LIMIT,
    PIECE,
    BrokenFrame,
    Frame,
    Packed,
    Splitter,
    check_greeting,
    frame,
    pack_fault,
    pieces_of_frame,
    unpack_fault,
)

frames = st.builds(
    Frame,
    number=st.integers(0, 2**64 - 1),
    kind=st.integers(0, 255),
    packed=st.builds(Packed, st.binary(max_size=200), st.binary(max_size=2000)),
)


@given(st.lists(frames, max_size=8), st.data())
def test_frames_arrive_whole_and_in_order(sent, data):
    """In pieces of any size."""
    stream = b"".join(frame(*one) for one in sent)
    splitter = Splitter()
    arrived = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        arrived += splitter.feed(stream[:size])
        stream = stream[size:]

    assert arrived == sent


@pytest.mark.parametrize("size", [0, 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 1])
def test_the_pieces_of_a_frame_are_the_frame(size):
    """Row C19: a large one is not copied to be sent."""
    packed = Packed(b"[1]", b"x" * size)
    pieces = pieces_of_frame(7, 2, packed)

    assert b"".join(pieces) == frame(7, 2, packed)
    assert max(map(len, pieces)) <= PIECE + 100
    assert all(piece.obj is packed.body for piece in pieces[1:])


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_nonsense_is_noticed_or_waited_for(pieces):
    """No bytes make it crash in another way, or keep more than was sent."""
    splitter = Splitter()
    try:
        for piece in pieces:
            splitter.feed(piece)
    except BrokenFrame:
        pass


def test_a_frame_above_the_limit_is_refused_by_both_sides():
    """Before memory is taken for it."""
    head = frame(1, 2, Packed(b"", b""))[:9]
    with pytest.raises(BrokenFrame, match="announced"):
        Splitter().feed(head + (FRAME_LIMIT + 1).to_bytes(4, "big") + b"\0\0\0\0")


@pytest.mark.parametrize(
    "error",
    [
        AlreadyQueued("1@example.org"),
        QueueFull(7),
        StorageIncompatible("it is damaged"),
        StorageError("the disk is full"),
    ],
)
def test_an_error_arrives_as_what_it_was(error):
    """Of the same class, with the same text."""
    arrived = unpack_fault(pack_fault(error))

    assert (type(arrived), str(arrived)) == (type(error), str(error))


@pytest.mark.parametrize("error", [MailerStateError("closed"), RuntimeError("secret")])
def test_any_other_error_arrives_as_one_of_the_store(error):
    """The text of a fault of ours may hold anything, so it stays in the log of the owner."""
    arrived = unpack_fault(pack_fault(error))

    assert type(arrived) is StorageError
    assert "secret" not in str(arrived)


@pytest.mark.parametrize("line", [b"", b"mailstrom_async sqlite 99\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\xff" * 1000])
def test_any_other_greeting_is_of_another_version(line):
    """The remedy is told."""
    with pytest.raises(BrokenFrame, match="restart all processes"):
        check_greeting(line)
