"""How the processes that share a SQLite file talk: one greeting, then frames of JSON and bytes. No I/O here.

Whoever connects is greeted by the owner of the file with a line that names the version of what follows. After that
each frame is a call, or the answer to the call of the same number; answers come in any order.
"""

import json
import struct
from typing import NamedTuple

from mailstrom_async._errors import AlreadyQueued, MailstromError, QueueFull, StorageError, StorageIncompatible

PROTOCOL = 2
GREETING = b"mailstrom_async sqlite %d\n" % PROTOCOL
LONGEST_GREETING = 64

FRAME_LIMIT = 512 * 1024 * 1024
"""More than SMTP servers take by far, and little enough that a stray length is noticed before memory is gone."""

PIECE = 256 * 1024
"""Bytes that are written at once."""

ANSWER, FAULT = 0, 1
"""The kinds of frames that the owner sends; the others are the calls."""

_FRAME = struct.Struct(">QBII")


class BrokenFrame(Exception):
    """The other side does not speak our language."""


class Packed(NamedTuple):
    """What a call or an answer is on the wire.

    Attributes:
        head: JSON, or nothing.
        body: What JSON would only blow up: contents of messages, and JSON that was made elsewhere.
    """

    head: bytes = b""
    body: bytes = b""


class Frame(NamedTuple):
    number: int
    kind: int
    packed: Packed


def frame(number: int, kind: int, packed: Packed) -> bytes:
    """Raises BrokenFrame if it is above the limit."""
    return _begin(number, kind, packed) + packed.body


def pieces_of_frame(number: int, kind: int, packed: Packed) -> list[bytes | memoryview]:
    """A frame that may be large, to be written piece by piece: no copy of it is made. Raises BrokenFrame."""
    begin, body = _begin(number, kind, packed), memoryview(packed.body)
    if len(body) <= PIECE:
        return [begin + body]
    return [begin, *(body[start : start + PIECE] for start in range(0, len(body), PIECE))]


def _begin(number: int, kind: int, packed: Packed) -> bytes:
    head, body = packed
    if len(head) + len(body) > FRAME_LIMIT:
        raise BrokenFrame(f"{len(head) + len(body)} bytes are more than the {FRAME_LIMIT} that may travel at once")
    return _FRAME.pack(number, kind, len(head), len(body)) + head


class Splitter:
    """Cuts what arrives into frames."""

    def __init__(self) -> None:
        self._arrived = bytearray()
        self._wanted = _FRAME.size

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole now. Raises BrokenFrame."""
        self._arrived += data
        if len(self._arrived) < self._wanted:
            return []
        frames: list[Frame] = []
        at = 0
        with memoryview(self._arrived) as arrived:
            while (end := self._end(arrived, at)) <= len(arrived):
                number, kind, head_size, _ = _FRAME.unpack_from(arrived, at)
                body_at = at + _FRAME.size + head_size
                head = bytes(arrived[at + _FRAME.size : body_at])
                frames.append(Frame(number, kind, Packed(head, bytes(arrived[body_at:end]))))
                at = end
        del self._arrived[:at]
        self._wanted = end - at
        return frames

    def _end(self, arrived: memoryview, at: int) -> int:
        """Where the frame that begins at `at` ends, as far as that is known: its size comes first."""
        if len(arrived) < at + _FRAME.size:
            return at + _FRAME.size
        _, _, head_size, body_size = _FRAME.unpack_from(arrived, at)
        if head_size + body_size > FRAME_LIMIT:
            raise BrokenFrame(f"a frame of {head_size + body_size} bytes was announced")
        return at + _FRAME.size + int(head_size) + int(body_size)


def check_greeting(line: bytes) -> None:
    """Raises BrokenFrame if the owner speaks another language, or another version of ours."""
    if line == GREETING:
        return
    said = line[:LONGEST_GREETING].decode("ascii", "replace").strip()
    raise BrokenFrame(
        f"it greets with {said!r} and not with {GREETING.decode().strip()!r}: it runs another version of "
        "mailstrom_async; restart all processes with the same one"
    )


def pack_fault(error: Exception) -> Packed:
    """An error, to be raised on the other side."""
    if isinstance(error, AlreadyQueued):
        told: list[object] = ["AlreadyQueued", error.message_id]
    elif isinstance(error, QueueFull):
        told = ["QueueFull", error.queue_size]
    elif isinstance(error, StorageIncompatible):
        told = ["StorageIncompatible", str(error)]
    elif isinstance(error, MailstromError):
        told = ["StorageError", str(error)]
    else:  # a fault in this library: its text may hold anything, and the owner's log has it
        told = ["StorageError", f"the process that owns the file failed with {type(error).__name__}; see its log"]
    return Packed(json.dumps(told).encode())


def unpack_fault(packed: Packed) -> MailstromError:
    name, detail = json.loads(packed.head)
    if name == "AlreadyQueued":
        return AlreadyQueued(str(detail))
    if name == "QueueFull":
        return QueueFull(int(detail))
    return StorageIncompatible(str(detail)) if name == "StorageIncompatible" else StorageError(str(detail))
