"""What PostgreSQL's errors mean for whoever uses the store."""

from mailstrom_async._errors import StorageError

AGAIN = frozenset({"40001", "40P01"})
"""The transaction was rolled back because of others, and will do if it is begun again."""

READ_ONLY = "25006"

_LOST = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})
"""The server ends our connection, or is not yet ready for it."""

_BROKEN = "08003"

_REMEDIES = {
    "53100": "make room on the server's disk",
    "53200": "give the server more memory",
    "53300": "let the server have more connections, or give the stores fewer",
    "42501": "grant the role what it lacks: CREATE on the database to make the schema, or all on the schema's tables",
    READ_ONLY: "connect to the primary server",
    "28000": "look at the role and at the server's pg_hba.conf",
    "28P01": "look at the password",
    "3D000": "create the database, or name another one",
    "42P01": "the tables are gone: close the mailer and open it again",
    "55P03": "another transaction may hold a lock on the tables: end it",
    "57014": "another transaction may hold a lock on the tables, or the server is overloaded",
}


class Unreadable(Exception):
    """A row does not hold what we once wrote."""


class ConnectionLost(StorageError):
    """The server is not there, or the connection to it broke; it is tried again.

    Attributes:
        midway: It broke in the middle of an operation, whose end is not known.
    """

    midway = False


def true_cause(error: Exception) -> Exception:
    """What the server said, if the driver's own trouble with a connection comes of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Exception) and _said_by_server(cause):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def _said_by_server(error: Exception) -> bool:
    # asyncpg gives this one to a connection that breaks, whatever the server said before.
    code = getattr(error, "sqlstate", None)
    return isinstance(code, str) and code != _BROKEN


def connection_ended(name: str) -> ConnectionLost:
    """The error to raise when a connection is found to have ended, and nobody knows why."""
    return ConnectionLost(f"{name} ended the connection; it is tried again by itself")


def no_answer(name: str, seconds: float) -> ConnectionLost:
    """The error to raise when a statement was sent and not answered."""
    return ConnectionLost(
        f"{name} gave no answer in {seconds:g} s: another transaction may hold a lock, or the server is overloaded or "
        "gone; it is tried again by itself"
    )


def storage_error(name: str, error: Exception) -> StorageError:
    """The error to raise in place of the driver's.

    Args:
        name: The server and database, without the password.
        error: Of asyncpg, or of the network.
    """
    code = getattr(error, "sqlstate", None)
    if not isinstance(code, str):
        cause = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        return ConnectionLost(f"{name} can't be reached: {cause}; it is tried again by itself, see to the server")
    if code.startswith("08") or code in _LOST:
        return ConnectionLost(f"{name} ended the connection: {error}; it is tried again by itself")
    remedy = _REMEDIES.get(code, "see the server's log")
    return StorageError(f"{name}: {error} ({code}); {remedy}")
