"""The scripts of examples/, run as their first lines say."""

import re
import sqlite3
from contextlib import closing

import pytest

from mailstrom_async.testing import CertificateAuthority, SMTPServer

from .conftest import EXAMPLES

SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


async def test_the_script_delivers(run, internet):
    """script.py prints where the mail went, and ends with 0."""
    status, out = await run(f"{EXAMPLES}/script.py", "ada@example.net")

    assert (status, out) == (0, "ada@example.net: delivered to mx.example.net (250 2.0.0 Taken as 1)\n")
    (received,) = internet.exchangers["mx.example.net"].messages
    (attachment,) = received.email.iter_attachments()
    assert attachment.get_filename() == "report.csv"


async def test_the_script_tells_why_not(run):
    """script.py prints the reason, and ends with 1."""
    status, out = await run(f"{EXAMPLES}/script.py", "nobody@example.net")

    assert (status, out) == (
        1,
        "nobody@example.net: failed: mx.example.net answered RCPT with: 550 5.1.1 no such person\n",
    )


@pytest.mark.parametrize("way", ["password", "token"])
async def test_the_relay_is_used_with_a_login(run, way):
    """relay.py logs in under verified TLS, with a password or an OAuth token."""
    authority = CertificateAuthority()
    context = authority.server_context("127.0.0.1")
    async with SMTPServer(tls=context, users={"app": "secret"}, tokens={"app": "fresh"}) as relay:
        login = {"RELAY_PASSWORD": "secret"} if way == "password" else {"RELAY_TOKEN": "fresh"}
        environment = {
            "RELAY_HOST": relay.host,
            "RELAY_PORT": str(relay.port),
            "RELAY_USER": "app",
            "RELAY_CA_FILE": str(authority.ca_file),
        }
        status, out = await run(f"{EXAMPLES}/relay.py", "ada@example.net", env=environment | login)

        assert status == 0, out
        assert re.search(r"delivered through 127\.0\.0\.1 under TLSv1\.\d", out)
        assert relay.messages[0].session.username == "app"


async def test_a_relay_that_refuses_the_login_defers(run):
    """relay.py with a wrong password: deferred, and the worker says that it is degraded."""
    authority = CertificateAuthority()
    context = authority.server_context("127.0.0.1")
    async with SMTPServer(tls=context, users={"app": "secret"}) as relay:
        status, out = await run(
            f"{EXAMPLES}/relay.py",
            "ada@example.net",
            env={
                "RELAY_HOST": relay.host,
                "RELAY_PORT": str(relay.port),
                "RELAY_USER": "app",
                "RELAY_PASSWORD": "wrong",
                "RELAY_CA_FILE": str(authority.ca_file),
            },
        )

    assert status == 1
    assert "worker: degraded" in out
    assert "deferred: " in out
    assert "wrong" not in out


async def test_an_order_that_is_rolled_back_sends_no_mail(run, internet, tmp_path):
    """outbox_sqlite.py: one order and one mail are there in the end, both of the same transaction."""
    status, out = await run(f"{EXAMPLES}/outbox_sqlite.py", "ada@example.net")

    assert (status, out) == (0, "tea: ordered, its mail is delivered\na yacht: not ordered, and no mail\n")
    (received,) = internet.exchangers["mx.example.net"].messages
    assert received.email["Subject"] == "Your order 1"
    with closing(sqlite3.connect(tmp_path / "mail.db")) as connection:
        assert connection.execute("SELECT article FROM orders").fetchall() == [("tea",)]


async def test_failures_are_watched(run):
    """watch_failures.py tells which address is not to be written to again."""
    status, out = await run(f"{EXAMPLES}/watch_failures.py", "ada@example.net", "nobody@example.net")

    assert status == 0, out
    assert out == (
        "nobody@example.net failed: mx.example.net answered RCPT with: 550 5.1.1 no such person; "
        "not to be written to again\n1 of 2 addresses are good\n"
    )


@pytest.mark.parametrize("example", ["custom_storage.py", "test_greylisting.py"])
async def test_the_tests_among_the_examples_pass(run, example):
    """Those that are run by pytest, as their first lines say."""
    status, out = await run(f"-m pytest -q -p no:cacheprovider -o anyio_mode=auto {EXAMPLES / example}")

    assert status == 0, out
    assert re.search(r"\d+ passed", out)
    assert "failed" not in out


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_example_says_how_it_is_used(name):
    """Every file opens with what it shows, requires, how it is run and what it prints; the index has it."""
    text = (EXAMPLES / name).read_text()

    for head in ("What it shows:", "Requires:", "To run:", "It should print:"):
        assert f"\n{head}" in text.split('"""')[1]
    assert f"[{name}]({name})" in (EXAMPLES / "README.md").read_text()


def test_the_index_lists_no_more_than_there_is():
    """Every file of the index exists."""
    listed = re.findall(r"\]\(([^)]+)\)", (EXAMPLES / "README.md").read_text())

    assert sorted(name for name in listed if name.endswith(".py")) == SCRIPTS
