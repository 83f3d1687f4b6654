"""What the command line says when it can't do what it was asked for: one line, with the remedy."""

import io
import sqlite3
import sys
from contextlib import closing

import pytest

from mailstrom_async import Config, Email, Mailstrom, SQLiteStorage
from mailstrom_async.__main__ import main

MESSAGE = b"From: a@example.org\nTo: b@example.org\n\n\n"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([], 2, "Missing command (see mailstrom-async --help)"),
        (["--nonsense"], 2, "--nonsense"),
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["send", "--nonsense"], 2, "mailstrom-async send: No such option"),
        (["send", "--port", "70000"], 2, "70000"),
        (["send", "--security", "rot13"], 2, "rot13"),
        (["send", "no-such-file"], 2, "no-such-file"),
        (["send", "--helo", "not a name"], 1, "helo_name"),
        (["send", "--helo", "a.example.org", "--nameserver", "nonsense"], 1, "nameserver"),
        (["send", "--helo", "a.example.org", "--allow-network", "nonsense"], 1, "allowed_networks"),
        (["send", "--helo", "a.example.org", "--relay", ""], 1, "--relay"),
        (["send", "--helo", "a.example.org", "--relay", "not a name"], 1, "host"),
        (
            ["send", "--helo", "a.example.org", "--relay", "a.example.org", "--user", "me"],
            1,
            "MAILSTROM_RELAY_PASSWORD",
        ),
        (["queue", "--db", "missing.db"], 1, "missing.db"),
        (["status"], 2, "MESSAGE_ID"),
        (["demo", "--messages", "0"], 2, "0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_told_in_one_line(monkeypatch, capsys, tmp_path, arguments, status, words):
    """One line that names what is wrong, and no traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mailstrom-async", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(MESSAGE)))
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()

    assert ended.value.code == status
    (line,) = printed.err.splitlines()
    assert words in line
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


async def test_an_unknown_message_is_told(command, tmp_path):
    """`status` of a Message-ID that nobody queued."""
    async with Mailstrom(Config(helo_name="a.example.org"), SQLiteStorage(tmp_path / "mailstrom.db"), deliver=False):
        pass
    ended = await command("status", "<1@example.org>")

    assert ended.status == 1
    assert ended.err == (
        "mailstrom-async: no message with the Message-ID '1@example.org': never accepted here, or purged\n"
    )


async def test_a_database_of_another_program_is_left_alone(command, tmp_path):
    """It is refused in one line, and stays byte for byte what it was."""
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()

    for arguments in (["queue", "--db", "other.db"], ["send", "--helo", "a.example.org", "--db", "other.db"]):
        ended = await command(*arguments, stdin=MESSAGE)

        assert ended.status == 1
        (line,) = ended.err.splitlines()
        assert "another program's database" in line
    assert path.read_bytes() == before


async def test_a_status_is_told_as_json(command, tmp_path):
    """`status --json` prints what `query_status` gives, for other programs."""
    async with Mailstrom(
        Config(helo_name="a.example.org"), SQLiteStorage(tmp_path / "mailstrom.db"), deliver=False
    ) as mailer:
        message_id = await mailer.send_email(Email(from_="a@example.org", to="b@example.net", text="Hello"))
        status = await mailer.query_status(message_id)
    ended = await command("status", message_id, "--json")

    assert ended.out == status.model_dump_json() + "\n"
