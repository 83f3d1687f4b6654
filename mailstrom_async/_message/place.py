"""Where something stands in what the caller handed in, so that an error can name it."""

from typing import NamedTuple

from mailstrom_async._errors import InvalidEmail

EXCERPT = 80
SECRET_FIELDS = frozenset({"bcc", "recipients"})


class Place(NamedTuple):
    """A field of `Email`, an argument of `send_email`, or a header field of a message that came whole.

    Attributes:
        field: The name that `InvalidEmail.field` tells.
        header: The header field, where the caller handed in a whole message.
    """

    field: str
    header: str = ""

    def error(self, problem: str) -> InvalidEmail:
        return InvalidEmail(self.field, f"its {self.header} header field: {problem}" if self.header else problem)

    def quote(self, text: str) -> str:
        """An excerpt for an error. Hidden recipients stay hidden: an exception ends up in logs."""
        if self.field in SECRET_FIELDS or self.header.lower().endswith("bcc"):
            return "an address in it"
        return ascii(text if len(text) <= EXCERPT else text[:EXCERPT] + "...")
