"""What the replies to a transaction have to decide."""

from collections.abc import Sequence

from mailstrom_async._reply import Phase

Decided = tuple[Phase, int]


def outcome(
    recipients: Sequence[str], mail: int, rcpt: Sequence[int], final: Decided
) -> tuple[dict[str, Decided], set[str]]:
    """What is decided for whom, and who is postponed.

    Args:
        recipients: All of the transaction.
        mail: The code for MAIL.
        rcpt: That for each RCPT.
        final: What decides for whoever was not refused until then.
    """
    if mail >= 400:
        return dict.fromkeys(recipients, (Phase.MAIL, mail)), set()
    decided: dict[str, Decided] = {}
    accepted: list[str] = []
    postponed: set[str] = set()
    for recipient, code in zip(recipients, rcpt, strict=True):
        if code < 400:
            accepted.append(recipient)
        elif code == 452 and accepted:
            postponed.add(recipient)
        else:
            decided[recipient] = (Phase.RCPT, code)
    return {**decided, **dict.fromkeys(accepted, final)}, postponed
