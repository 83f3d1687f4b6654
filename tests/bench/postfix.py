"""Postfix as a peer: a private instance with folders and ports of its own. Needs root and Debian's postfix."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SESSIONS = 20

SERVICES = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


def available() -> bool:
    return os.getuid() == 0 and all(
        shutil.which(program, path="/usr/sbin:/usr/bin") for program in ("postfix", "smtp-source")
    )


class Postfix:
    """A running instance."""

    def __init__(self, port: int, spool: Path) -> None:
        self._port = port
        self._spool = spool

    def carry(self, count: int, size: int, *, wait: bool) -> float:
        """Hand messages in over SMTP; how many seconds until the last was accepted, or with `wait` had left."""
        begun = time.perf_counter()
        subprocess.run(
            [
                "/usr/sbin/smtp-source", "-s", str(SESSIONS), "-m", str(count), "-l", str(size), "-d",
                "-f", "app@example.org", "-t", "ada@example.net", f"127.0.0.1:{self._port}",
            ],
            check=True,
            timeout=250,
        )  # fmt: skip
        while wait and self._waiting():
            time.sleep(0.02)
        return time.perf_counter() - begun

    def _waiting(self) -> bool:
        return any(
            files for queue in ("incoming", "active", "maildrop") for _, _, files in os.walk(self._spool / queue)
        )


@contextmanager
def running(relay: int, *, hold: bool) -> Iterator[Postfix]:
    """A Postfix with its default settings that relays everything to a port, or with `hold` keeps it in its queue."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="bench-postfix-"))
    base.chmod(0o755)
    folders = {name: base / name for name in ("etc", "spool", "data", "log")}
    for folder in folders.values():
        folder.mkdir()
    os.chown(folders["data"], pwd.getpwnam("postfix").pw_uid, -1)
    settings = {
        "compatibility_level": "3.6",
        "queue_directory": folders["spool"],
        "data_directory": folders["data"],
        "myhostname": "bench.example.org",
        "inet_interfaces": "127.0.0.1",
        "inet_protocols": "ipv4",
        "mydestination": "",
        "mynetworks": "127.0.0.0/8",
        "alias_maps": "",
        "alias_database": "",
        "local_recipient_maps": "",
        "relayhost": f"[127.0.0.1]:{relay}",
        "maillog_file": folders["log"] / "mail.log",
        "maillog_file_prefixes": base,
    }
    if hold:
        settings["smtpd_client_restrictions"] = "check_client_access static:HOLD"
        settings["in_flow_delay"] = "0"
    folders["etc"].joinpath("main.cf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
    folders["etc"].joinpath("master.cf").write_text(SERVICES.format(port=port))
    control = ["/usr/sbin/postfix", "-c", str(folders["etc"])]
    subprocess.run([*control, "start"], check=True, capture_output=True, timeout=60)
    try:
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 0.5).close()
                break
            except OSError:
                time.sleep(0.05)
        yield Postfix(port, folders["spool"])
    finally:
        subprocess.run([*control, "stop"], check=False, capture_output=True, timeout=60)
        shutil.rmtree(base, ignore_errors=True)
