"""The rooms of PostgresStorage that decide without a server."""

import asyncio
import re
from datetime import UTC, datetime, timedelta

import pytest

from mailstrom_async import PreparedEmail, StorageError
from mailstrom_async.storage import Acceptance
from mailstrom_async.storage._postgres.accept import PARAMETERS, STATEMENT, STATEMENT_HERE, parameters
from mailstrom_async.storage._postgres.connection import LONGEST_PAUSE, Address, back_off, in_schema
from mailstrom_async.storage._postgres.errors import ConnectionLost, storage_error, true_cause
from mailstrom_async.storage._postgres.listener import PAUSE, _Calls
from mailstrom_async.storage._postgres.rows import can_be_text

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class ServerError(Exception):
    """As the drivers have them."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__("what the server says")
        self.sqlstate = sqlstate


@pytest.mark.parametrize("code", ["08006", "08003", "57P01", "57P02", "57P03"])
def test_what_ends_a_connection_is_worth_trying_again(code: str) -> None:
    """Row C11: a restart, a crash, an administrator, a server that starts."""
    assert isinstance(storage_error("PostgreSQL here", ServerError(code)), ConnectionLost)


@pytest.mark.parametrize(
    ("code", "remedy"), [("53100", "make room"), ("42501", "grant the role"), ("28P01", "password"), ("XX000", "log")]
)
def test_what_the_server_refuses_comes_with_a_remedy(code: str, remedy: str) -> None:
    """Row C5: a full disk is named, and what to do about it."""
    error = storage_error("PostgreSQL here", ServerError(code))

    assert type(error) is StorageError
    assert remedy in str(error)
    assert "PostgreSQL here: what the server says" in str(error)


@pytest.mark.parametrize("error", [OSError("refused"), TimeoutError(), ConnectionResetError(104, "reset")])
def test_what_the_network_says_has_a_cause(error: Exception) -> None:
    """None of them is an empty message."""
    told = storage_error("PostgreSQL here", error)

    assert isinstance(told, ConnectionLost)
    assert str(told).startswith("PostgreSQL here can't be reached: ")
    assert ": ;" not in str(told)


def test_the_pauses_between_connections_grow_to_a_bound() -> None:
    """A server that is away for a day is not asked thousands of times a second, nor found an hour late."""
    pauses = [back_off(failures) for failures in range(2000)]

    assert pauses == sorted(pauses)
    assert pauses[0] < 0.1
    assert pauses[-1] == LONGEST_PAUSE


def test_a_statement_names_the_schema_that_is_wanted() -> None:
    """Every table in it; nothing else is touched."""
    statement = in_schema(STATEMENT, "shop_mail")

    assert "mailstrom." not in statement
    assert statement.count("shop_mail.") == STATEMENT.count("mailstrom.") == 4
    assert in_schema(STATEMENT, "mailstrom") == STATEMENT


def test_the_parameters_of_accepting_are_those_of_its_statement() -> None:
    """In their order, which is that of the numbers in it."""
    prepared = PreparedEmail("1@x", "a@b.example", ("r@c.example", "s@D.example", "t@c.example"), b"x")
    values = parameters([Acceptance(prepared, NOW, NOW, NOW + timedelta(days=1))])

    assert list(values) == list(PARAMETERS)
    assert all(f"${number}" in STATEMENT_HERE for number in range(1, len(PARAMETERS) + 1))
    assert values["destinations"] == ["c.example", "d.example", "c.example"]
    assert values["positions"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("dsn", "name"),
    [
        ("postgresql://user:secret@db.example:5432/shop?password=secret", "PostgreSQL db.example:5432/shop"),
        ("Postgres://user@[::1]:5432,b-1.example/shop", "PostgreSQL [::1]:5432,b-1.example/shop"),
        ("postgresql://%2Frun%2Fpostgresql/shop", "PostgreSQL %2Frun%2Fpostgresql/shop"),
        ("postgresql:///shop", "PostgreSQL on this host/shop"),
        ("", "PostgreSQL on this host"),
        ("postgresql://user:1/secret@db.example/shop", "PostgreSQL"),
        ("postgresql://user:1#secret@db.example/shop", "PostgreSQL"),
        ("postgresql://user:1?secret@db.example/shop", "PostgreSQL"),
        ("postgresql://user:secret@secret/1@db.example/shop", "PostgreSQL"),
        ("postgresql://user:[secret@db.example/shop", "PostgreSQL db.example/shop"),
        ("postgresql://user:secret", "PostgreSQL"),
        ("host=db.example password=secret", "PostgreSQL"),
        ("secret", "PostgreSQL"),
    ],
)
def test_the_name_of_a_server_tells_no_secret(dsn: str, name: str) -> None:
    """It stands in messages and logs."""
    assert Address(dsn, "mailstrom", 1.0, 0).name == name


@pytest.mark.parametrize("patience", [0.0001, 1e9])
def test_what_the_server_is_to_wait_is_a_number_that_it_takes(patience: float) -> None:
    """0 would be for ever, and there is a greatest one."""
    numbers = [int(number) for number in re.findall(r"= (\d+)", Address("", "mailstrom", patience, 0).begin)]

    assert len(numbers) == 2
    assert all(1 <= number < 2**31 for number in numbers)


def test_the_true_cause_is_what_the_server_said() -> None:
    """However the driver came to grief after it."""
    said, broken, later = ServerError("57P01"), ServerError("08003"), OSError("closed")
    later.__context__, broken.__cause__ = broken, said

    assert true_cause(later) is said
    assert true_cause(OSError("refused")).args == ("refused",)
    assert true_cause(ServerError("08003")).sqlstate == "08003"


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "x\udfff"])
def test_what_no_database_can_hold_is_known(text: str) -> None:
    """So that a question with it is answered without asking."""
    assert not can_be_text(text)
    assert can_be_text("Ünïcode \U0001f4a9 \n \ufffe")


async def test_many_notifications_become_two_calls() -> None:
    """The first at once, and one more when the pause is over: each makes the mailer read the store."""
    calls = 0
    twice = asyncio.Event()

    def wake() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            twice.set()

    notified = _Calls(wake)
    for _ in range(1000):
        notified.call()
    at_once = calls
    async with asyncio.timeout(100 * PAUSE):
        await twice.wait()
    notified.stop()

    assert (at_once, calls) == (1, 2)
