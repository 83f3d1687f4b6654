"""`mailstrom-async demo`, which needs nothing but the extra `cli`."""

import asyncio
import os
import pty
import re
import sys

from mailstrom_async import __version__


async def test_the_demo_ends_well_in_a_pipe(command):
    """Every mail of the demo ends as its exchanger's temper wants it, and the demo says so."""
    ended = await command("demo", "--messages", "18")

    assert (ended.status, ended.err) == (0, "")
    for sight in ("deferred", "delivered", "failed", "451 4.7.1 Greylisted", "550 5.1.1 no such person", "mx2.backup"):
        assert sight in ended.out
    found = re.search(r"18 mails, 30 recipients: (\d+) failed, (\d+) delivered\.", ended.out)
    assert found
    assert int(found[1]) + int(found[2]) == 30
    assert f"The exchangers took {found[2]} copies, one for each" in ended.out


async def test_the_demo_shows_how_recipients_change(command):
    """A greylisted recipient is seen deferred with its reply, later delivered at a later attempt."""
    ended = await command("demo", "--messages", "6")

    lines = [line for line in ended.out.splitlines() if re.match(r" +\d+\.\d\d s .*@grey\.example\.org", line)]
    assert any("deferred" in line and "attempt 1" in line and "mx.grey.example.org" in line for line in lines)
    assert any("delivered" in line and "attempt 1" not in line for line in lines)


async def test_a_terminated_demo_says_so(command):
    """SIGTERM ends it with one line and the status that shells give, and its files are gone."""
    process = await command.start("demo", "--messages", "1000", env={"TMPDIR": str(command.folder)})
    async with asyncio.timeout(20):
        await process.stdout.readline()
    process.terminate()
    ended = await command.end(process)

    assert (ended.status, ended.err) == (143, "mailstrom-async: terminated\n")
    assert list(command.folder.iterdir()) == []


async def test_the_demo_is_live_on_a_terminal(command):
    """On a terminal the table is drawn over itself while recipients change state."""
    master, slave = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mailstrom_async", "demo", "--messages", "6"),
            cwd=command.folder,
            env={**os.environ, "PYTHONPATH": str(command.project), "TERM": "xterm", "COLUMNS": "100", "LINES": "30"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        seen = await asyncio.to_thread(_read_all, master)
        status = await process.wait()
    finally:
        os.close(master)

    assert status == 0
    drawn_over = seen.count("\x1b[1A")  # the cursor goes up a line
    assert drawn_over > 10
    assert "queued" in seen
    assert "delivered" in seen


def _read_all(descriptor: int) -> str:
    pieces = []
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except OSError:  # so Linux tells that the other end is closed
            break
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces).decode()


async def test_the_version_is_told(command):
    """`--version` tells the version."""
    ended = await command("--version")

    assert ended.status == 0
    assert __version__ in ended.out


async def test_without_its_libraries_the_command_says_what_to_install(command, tmp_path):
    """Where click is missing, one line names the extra that brings it."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['click'] = None\n")
    ended = await command("demo", env={"PYTHONPATH": f"{tmp_path}:{command.project}"})

    assert ended.status == 1
    assert ended.err == "the command line needs click: pip install 'mailstrom-async[cli]'\n"
