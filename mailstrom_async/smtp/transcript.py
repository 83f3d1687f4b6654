"""What was said on a connection, kept for the person who has to find out why it failed."""

from collections import deque
from collections.abc import Iterable
from itertools import chain

from mailstrom_async._policy.replies import Answer, printable

MAX_LINES = 50
MAX_LINE = 300


class Transcript:
    """The last lines of a conversation. They are rendered only when somebody reads them, which few do."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: deque[bytes | str | int | Answer] = deque(maxlen=MAX_LINES)

    def ours(self, line: bytes | str) -> None:
        """Note a command, or a remark in place of what is not to be noted: content, credentials."""
        self._lines.append(line)

    def content(self, size: int) -> None:
        """Note that the content went out, so many bytes of it."""
        self._lines.append(size)

    def theirs(self, answer: Answer) -> None:
        """Note a reply."""
        self._lines.append(answer)

    def exchange(self, commands: Iterable[bytes], answers: Iterable[Answer]) -> None:
        """Note commands that went out together, each with its reply."""
        self._lines.extend(chain.from_iterable(zip(commands, answers, strict=True)))

    def clear(self) -> None:
        """Forget all."""
        self._lines.clear()

    def render(self) -> tuple[str, ...]:
        """One line for each thing said, "C: " before ours and "S: " before the server's."""
        return tuple(_render(line)[:MAX_LINE] for line in self._lines)


def _render(line: bytes | str | int | Answer) -> str:
    if isinstance(line, Answer):
        return f"S: {line}"
    if isinstance(line, int):
        return f"C: ({line} bytes of content)"
    text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
    return f"C: {printable(text.rstrip())}"
