"""What `import mailstrom_async` gives, and how it calls itself."""

import ast
import pickle
import subprocess
import sys
import types
from datetime import UTC, datetime

import pytest

import mailstrom_async
import mailstrom_async.dns
import mailstrom_async.smtp
import mailstrom_async.storage
import mailstrom_async.testing
from mailstrom_async import (
    AlreadyQueued,
    Config,
    Deferred,
    Email,
    InvalidEmail,
    MailstromError,
    MessageNotFound,
    MessageStatus,
    PreparedEmail,
    QueueFull,
    RecipientStatus,
    RetryPolicy,
    StorageInUse,
)

PACKAGES = [
    mailstrom_async,
    mailstrom_async.dns,
    mailstrom_async.smtp,
    mailstrom_async.storage,
    mailstrom_async.testing,
]
NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
STATUS = MessageStatus(
    message_id="1@example.org",
    queued_at=NOW,
    recipients=(
        RecipientStatus(
            recipient="Ada <ada@example.net>",
            address="ada@example.net",
            attempts=1,
            result=Deferred(cause="dns", enhanced="4.4.3", reason="no answer", next_attempt_at=NOW),
        ),
    ),
)
ERRORS = [
    InvalidEmail("to", "is empty"),
    AlreadyQueued("1@example.org"),
    QueueFull(10),
    MessageNotFound("1@example.org"),
    MessageNotFound("1@example.org", "body of the message", "it was dropped"),
    StorageInUse("it is open elsewhere"),
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_all_is_what_is_public(package):
    """What a package lists as public is what it holds without an underscore, its modules aside; each name once."""
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }

    assert set(package.__all__) == public
    assert len(package.__all__) == len(public)


def test_the_import_alone_loads_nothing():
    """What is not wanted costs no start: neither pydantic nor email_validator nor the engine is loaded by it."""
    program = "import sys, mailstrom_async; print([name for name in sys.modules if '.' in name or name == 'pydantic'])"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    loaded = ast.literal_eval(told.stdout)
    assert not [name for name in loaded if name.startswith(("mailstrom_async.", "pydantic", "email_validator"))]


def test_what_does_not_exist_is_said_as_ever():
    with pytest.raises(AttributeError, match="module 'mailstrom_async' has no attribute 'Mailstorm'"):
        _ = mailstrom_async.Mailstorm

    assert set(mailstrom_async.__all__) <= set(dir(mailstrom_async))


@pytest.mark.parametrize("name", mailstrom_async.__all__)
def test_public_classes_live_where_they_are_imported_from(name):
    """Tracebacks and reprs read `mailstrom_async.InvalidEmail`, without the name of a private module."""
    thing = getattr(mailstrom_async, name)

    if isinstance(thing, type):
        assert f"{thing.__module__}.{thing.__qualname__}" == f"mailstrom_async.{name}"


@pytest.mark.parametrize("name", mailstrom_async.__all__)
def test_public_names_say_what_they_are(name):
    """Everything public has a docstring, but for the name of a union of types."""
    thing = getattr(mailstrom_async, name)

    assert thing.__doc__ or not isinstance(thing, type)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_survive_pickling(error):
    """An error that another process raised arrives with its words and its attributes."""
    again = pickle.loads(pickle.dumps(error))

    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert isinstance(again, MailstromError)


@pytest.mark.parametrize(
    "value",
    [
        STATUS,
        Config(helo_name="mail.example.org", retry=RetryPolicy(factor=2)),
        Email(from_="a@example.org", to="b@example.net", text="Hello"),
        PreparedEmail("1@example.org", "a@example.org", ("b@example.net",), b"\r\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_survive_pickling(value):
    """Settings, emails and statuses can be handed to another process."""
    assert pickle.loads(pickle.dumps(value)) == value


def test_a_status_survives_json():
    """What an application answers over HTTP can be read back."""
    assert MessageStatus.model_validate_json(STATUS.model_dump_json()) == STATUS


def test_errors_are_what_their_kind_is_in_python():
    """Who catches Python's own kind of error catches ours, too."""
    assert issubclass(InvalidEmail, ValueError)
    assert issubclass(MessageNotFound, LookupError)
    assert issubclass(mailstrom_async.MailerStateError, RuntimeError)
