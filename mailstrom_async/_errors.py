"""Everything that this library raises.

    MailstromError
    ├── InvalidEmail          (ValueError)     the email can't be sent as it is; nothing was stored
    ├── AlreadyQueued                          this Message-ID was accepted before
    ├── QueueFull                              Limits.queue_size is reached; nothing was stored
    ├── MessageNotFound       (LookupError)    no message has this Message-ID
    ├── MailerStateError      (RuntimeError)   the mailer is not open, already open, or belongs to another event loop
    ├── UnusableConnection    (ValueError)     the connection given to send_email can't take mail into its transaction
    ├── DKIMKeyError          (ValueError)     a key of Config.dkim can't sign
    ├── ResolverError                          the resolver can't be used as configured
    ├── ResolutionFailed                       a name could not be looked up now; it may work later
    └── StorageError                           the store can't do it now: disk full, locked, gone
        ├── StorageInUse                       another process has the store open
        └── StorageIncompatible                the file is not ours, or of another version, or damaged

A remote server's refusal is never an exception: it is a result in the message's status.
"""

from typing import Self


class MailstromError(Exception):
    """The root of all errors of this library."""

    # Those with arguments of their own have a __reduce__, for they may be raised in a worker process and pickled.


class InvalidEmail(MailstromError, ValueError):
    """The email can't be sent as it is. Nothing was stored; mend the named field and send again.

    Attributes:
        field: The field of `Email` (or the argument of `send_email`) that is at fault, for instance "to" or "headers".
        problem: What is wrong with it, without the field's name.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (
            self.field,
            self.problem,
        )


class AlreadyQueued(MailstromError):
    """A message with this Message-ID was accepted before, so this one was not stored again.

    A Message-ID that the caller chooses is an idempotency key: who repeats a call after an unclear failure may take
    this error for success.
    """

    def __init__(self, message_id: str) -> None:
        super().__init__(f"a message with the Message-ID {message_id!r} was accepted before; query its status instead")
        self.message_id = message_id

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (self.message_id,)


class QueueFull(MailstromError):
    """`Limits.queue_size` messages wait already. Nothing was stored; send again later or raise the limit."""

    def __init__(self, queue_size: int) -> None:
        super().__init__(
            f"the queue holds its limit of {queue_size} unfinished messages; "
            "send again later, or raise Limits.queue_size"
        )
        self.queue_size = queue_size

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (self.queue_size,)


class MessageNotFound(MailstromError, LookupError):
    """No message with this Message-ID was accepted here, or it was purged."""

    def __init__(self, message_id: str, missing: str = "message", why: str = "never accepted here, or purged") -> None:
        # A foreign id may be anything, of any length: it is quoted and cut before it gets into a log.
        super().__init__(f"no {missing} with the Message-ID {message_id[:200]!r}: {why}")
        self.message_id = message_id
        self._missing = missing
        self._why = why

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (
            self.message_id,
            self._missing,
            self._why,
        )


class MailerStateError(MailstromError, RuntimeError):
    """The mailer was used before it was opened, after it was closed, or from another event loop or process."""


class DKIMKeyError(MailstromError, ValueError):
    """A key of `Config.dkim` can't sign. Nothing is opened until it can: unsigned mail would end up as spam."""

    def __init__(self, selector: str, domain: str, problem: str) -> None:
        super().__init__(f"the DKIM key {selector!r} of {domain} {problem}")
        self.selector = selector
        self.domain = domain
        self.problem = problem

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), (self.selector, self.domain, self.problem)


class UnusableConnection(MailstromError, ValueError):
    """The connection given to `send_email` can't take mail into its transaction. Nothing was stored."""


class ResolverError(MailstromError):
    """The DNS resolver can't be used as configured."""


class ResolutionFailed(MailstromError):
    """A name could not be looked up now (SERVFAIL, timeout, refused, ...). Never a verdict on the name: try later.

    Attributes:
        answered: A nameserver answered, though not with what was asked. False: none did, and it may be that no name
            at all can be looked up.
    """

    def __init__(self, reason: str, *, answered: bool = True) -> None:
        super().__init__(reason)
        self.answered = answered


class StorageError(MailstromError):
    """The store could not do what was asked: disk full, locked by another program, connection lost.

    After `send_email` raised this, the message was not accepted, unless the message says that this is unknown.
    """


class StorageInUse(StorageError):
    """Another process has the store open, and can't be asked to share it."""


class StorageIncompatible(StorageError):
    """The store holds something else: another program's data, another version's, or a damaged file."""
