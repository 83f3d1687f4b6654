"""Whose reply is whose: the replies to one message's commands, in their order, and what they decide.

MAIL comes first, then a RCPT for each recipient, then DATA, then the end of the content; with BDAT there is no DATA.
Each is answered by one reply, whether the commands were sent one by one or together.
"""

from collections.abc import Iterable, Sequence

from mailstrom_async._policy.replies import CLOSING, Answer
from mailstrom_async._reply import Phase
from mailstrom_async.smtp.base import Refusal
from mailstrom_async.smtp.wire import Broken

# Names of their own, for they are looked up for every reply: as an enum's members they take ten times as long.
MAIL, RCPT, DATA, END_OF_DATA = Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.END_OF_DATA

START_INPUT = 354
# Insufficient storage, and what RFC 821 called it: at RCPT, after others were taken, both mean "no more of them in this
# transaction" (RFC 5321 section 4.5.3.1.10).
TOO_MANY_RECIPIENTS = (452, 552)


class Ledger:
    """Takes the replies to a transaction one by one.

    Attributes:
        phase: What the next reply answers.
        decided: For each recipient that a reply decided: that reply.
        accepted: Those whom the server takes so far.
        postponed: Those whom it will take, but not in this transaction.
        refused: DATA was answered, and there will be no content.
        wants_content: DATA was answered, and the server waits.
        ended: The end of the content was answered: nothing more comes.
    """

    __slots__ = (
        "_chunked",
        "_host",
        "_left",
        "_recipients",
        "accepted",
        "decided",
        "ended",
        "phase",
        "postponed",
        "refused",
        "wants_content",
    )

    def __init__(self, recipients: tuple[str, ...], host: str, *, chunked: bool = False) -> None:
        self.phase = MAIL
        self.decided: dict[str, Refusal] = {}
        self.accepted: list[str] = []
        self.postponed: list[str] = []
        self.refused = False
        self.wants_content = False
        self.ended = False
        self._chunked = chunked
        self._recipients = recipients
        self._host = host
        self._left = 0  # RCPT commands without a reply

    def take(self, answer: Answer) -> None:
        """Let the reply decide for those whom it concerns.

        Raises:
            Broken: The server ended the session, or its reply makes no sense here. Nothing was decided by it.
        """
        code = answer.code
        if code == CLOSING:
            raise Broken("network", f"ended the session with: {answer}", answer)
        if self.phase is END_OF_DATA:
            self._end(answer)
        elif self.phase is DATA:
            self._data(answer)
        elif not (200 <= code <= 299 or code >= 400):
            raise Broken("protocol", f"answered {code}, which is neither yes nor no")
        elif self.phase is RCPT:
            self._rcpt(answer)
        else:
            self._mail(answer)

    def take_all(self, answers: Sequence[Answer]) -> None:
        """As `take`, the replies to MAIL, every RCPT and DATA, where they are here together."""
        *envelope, data = answers
        if data.code == START_INPUT and all(answer.positive for answer in envelope):
            self.accepted = list(self._recipients)
            self.phase = DATA
            self.wants_content = True
            return
        for answer in answers:
            self.take(answer)

    def content_sent(self) -> None:
        """The server has all of the content: what comes now answers that."""
        self.phase = END_OF_DATA

    def forget(self) -> None:
        """The replies so far may have been paired with the wrong commands."""
        self.decided.clear()
        self.postponed.clear()

    @property
    def settles_all(self) -> bool:
        """Each recipient is decided or postponed."""
        return len(self.decided) + len(self.postponed) == len(self._recipients)

    def _mail(self, answer: Answer) -> None:
        if not answer.positive:
            self._decide(self._recipients, answer)
        self._left = len(self._recipients)
        self.phase = RCPT

    def _rcpt(self, answer: Answer) -> None:
        recipient = self._recipients[-self._left]
        if recipient in self.decided:
            pass  # MAIL was refused, which decided for all
        elif answer.positive:
            self.accepted.append(recipient)
        elif answer.code in TOO_MANY_RECIPIENTS and self.accepted:
            self.postponed.append(recipient)
        else:
            self._decide((recipient,), answer)
        self._left -= 1
        if not self._left:
            self.phase = END_OF_DATA if self._chunked else DATA

    def _data(self, answer: Answer) -> None:
        if answer.code == START_INPUT:
            self.wants_content = True
        elif answer.negative:
            self._decide(self.accepted, answer)
            self.refused = True
        else:
            raise Broken("protocol", f"answered {answer.code}, which is neither 354 nor a refusal")

    def _end(self, answer: Answer) -> None:
        if not (answer.positive or answer.negative):
            raise Broken("protocol", f"answered {answer.code} to the whole message")
        if self._chunked and answer.positive:
            self._check_chunk(answer)
        self.ended = True
        self._decide(self.accepted, answer)

    def _check_chunk(self, answer: Answer) -> None:
        """With DATA, a 354 in between shows that replies and commands are in step. With BDAT nothing does, and a reply
        too many would make another command's yes the delivery of this message; but often it can be told."""
        if not self.accepted:
            raise Broken("protocol", "took a message that it had refused for all")
        if answer.enhanced is not None and answer.enhanced.startswith("2.1."):
            # Addressing status (RFC 3463 section 3.2): the reply to a MAIL or RCPT.
            raise Broken("protocol", f"answered {answer} to the whole message, which is no reply to that")

    def _decide(self, recipients: Iterable[str], answer: Answer) -> None:
        refusal = Refusal(self.phase, answer.to(self.phase, self._host))
        for recipient in recipients:
            self.decided[recipient] = refusal
