"""Postfix and Exim, each a private instance with a folder and a port of its own; what it takes it passes to a sink."""

import grp
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

EXIM_FOLDER = Path(os.environ.get("MAILSTROM_INTEROP_EXIM", "/var/tmp/mailstrom-interop/exim"))
START_SECONDS = 20
HOST = "mx.example.net"

POSTFIX_SERVICES = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
tlsmgr unix - - n 1000? 1 tlsmgr
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""

EXIM_SETTINGS = """\
exim_path = {program}
primary_hostname = mx.example.net
spool_directory = {base}/spool
log_file_path = {base}/log/%slog
pid_file_path = {base}/spool/exim.pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
keep_environment =
host_lookup =
# Started by us, as root: a delivery that the daemon begins would come to be without privileges, through exim_path.
queue_only = true
tls_advertise_hosts = *
tls_certificate = {base}/etc/chain.pem
tls_privatekey = {base}/etc/key.pem
acl_smtp_rcpt = rcpt

begin acl

rcpt:
  deny local_parts = nobody
       message = 5.1.1 No such person
  defer local_parts = grey
       condition = ${{if exists{{{base}/etc/known}}{{no}}{{yes}}}}
       message = 4.7.1 Greylisted, come back later
  accept domains = example.net

begin routers

sink:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = sink

begin transports

sink:
  driver = smtp
  port = {sink}
  allow_localhost
  hosts_avoid_tls = *

begin retry

* * F,1h,1m
"""


@dataclass(frozen=True)
class Server:
    """A running instance.

    Attributes:
        base: Its folder.
        hand_on: The command that makes it hand on what it holds; empty: it does so by itself.
    """

    port: int
    base: Path
    hand_on: tuple[str, ...] = ()

    @property
    def known(self) -> Path:
        """Once this file exists, Exim greylists nobody any more."""
        return self.base / "etc" / "known"

    @property
    def log(self) -> str:
        """What it logged."""
        return "".join(path.read_text(errors="replace") for path in sorted((self.base / "log").iterdir()))


def postfix_missing() -> str | None:
    """Why there is no Postfix to test with."""
    if os.getuid() != 0:
        return "Postfix can be started by root only"
    return None if shutil.which("postfix", path="/usr/sbin") else "Postfix is not installed: tests/interop/install.sh"


def exim() -> Path | None:
    """The program."""
    programs = [Path("/usr/sbin/exim4"), EXIM_FOLDER / "exim"]
    return next((program for program in programs if os.access(program, os.X_OK)), None)


def exim_missing() -> str | None:
    """Why there is no Exim to test with."""
    if os.getuid() != 0:
        return "Exim can be started by root only"
    return None if exim() is not None else "Exim is not installed: tests/interop/install.sh"


@contextmanager
def postfix(sink: int, policy: int, certificate: "Certificate") -> Iterator[Server]:
    """Postfix, which asks the policy service at a port about each recipient."""
    with _server(certificate, owner="postfix") as server:
        base = server.base
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": base / "spool",
            "data_directory": base / "data",
            "myhostname": HOST,
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "mydestination": "",
            "mynetworks": "127.0.0.0/8",
            "alias_maps": "",
            "alias_database": "",
            "relayhost": f"[127.0.0.1]:{sink}",
            "maillog_file": base / "log" / "mail.log",
            "maillog_file_prefixes": base,
            "smtpd_tls_security_level": "may",
            "smtpd_tls_cert_file": base / "etc" / "chain.pem",
            "smtpd_tls_key_file": base / "etc" / "key.pem",
            "smtp_tls_security_level": "none",
            "smtpd_forbid_unauth_pipelining": "yes",
            "smtpd_data_restrictions": "reject_unauth_pipelining",
            "smtpd_recipient_restrictions": (
                "check_recipient_access inline:{ { nobody@example.net = 550 5.1.1 No such person } },"
                f" check_policy_service inet:127.0.0.1:{policy}, permit_mynetworks, reject"
            ),
        }
        (base / "etc" / "main.cf").write_text("".join(f"{name} = {value}\n" for name, value in settings.items()))
        (base / "etc" / "master.cf").write_text(POSTFIX_SERVICES.format(port=server.port))
        control = ["/usr/sbin/postfix", "-c", str(base / "etc")]
        subprocess.run([*control, "start"], check=True, capture_output=True, timeout=60)
        try:
            _wait_for(server)
            yield server
        finally:
            subprocess.run([*control, "stop"], check=False, capture_output=True, timeout=60)


@contextmanager
def exim_server(sink: int, certificate: "Certificate") -> Iterator[Server]:
    """Exim, which knows by itself whom to refuse and whom to greylist."""
    program = exim()
    assert program is not None
    with _server(certificate, owner="Debian-exim") as server:
        settings = server.base / "etc" / "exim.conf"
        settings.write_text(EXIM_SETTINGS.format(program=program, base=server.base, port=server.port, sink=sink))
        daemon = subprocess.Popen(
            [program, "-C", settings, "-bdf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            _wait_for(server)
            yield replace(server, hand_on=(str(program), "-C", str(settings), "-qff"))
        finally:
            daemon.terminate()
            daemon.wait(20)


class Certificate:
    """A server's certificate for `HOST`, in PEM."""

    def __init__(self, chain: bytes, key: bytes, ca_file: Path) -> None:
        self.chain = chain
        self.key = key
        self.ca_file = ca_file
        ssl.create_default_context(cafile=ca_file)


@contextmanager
def _server(certificate: Certificate, *, owner: str) -> Iterator[Server]:
    # Not pytest's tmp_path, which nobody but us may enter.
    base = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="mailstrom-interop-"))
    try:
        base.chmod(0o755)
        for name in ("etc", "spool", "data", "log"):
            (base / name).mkdir()
        user, group = pwd.getpwnam(owner).pw_uid, grp.getgrnam(owner).gr_gid
        folders = ["data"] if owner == "postfix" else ["data", "spool", "log"]
        for name in folders:
            os.chown(base / name, user, group)
        (base / "etc" / "chain.pem").write_bytes(certificate.chain)
        (base / "etc" / "key.pem").write_bytes(certificate.key)
        if owner != "postfix":
            os.chown(base / "etc" / "key.pem", user, group)
        (base / "etc" / "key.pem").chmod(0o600)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        yield Server(port, base)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def _wait_for(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with socket.create_connection(("127.0.0.1", server.port), 1) as connection:
                if connection.recv(4).startswith(b"220"):
                    return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not start; its log:\n{server.log}")
        time.sleep(0.05)
