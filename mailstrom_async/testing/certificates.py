"""Certificates for scripted servers, and the authority that signs them."""

import ssl
import tempfile
import weakref
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

VALIDITY = timedelta(days=30)


class CertificateAuthority:
    """Signs certificates for test servers. Whoever trusts its `ca_file` trusts them.

        authority = CertificateAuthority()
        async with SMTPServer(tls=authority.server_context("mx.example.net")) as server:
            config = Config(helo_name="a.example.org", tls="verify", ca_file=authority.ca_file)

    A second authority signs what the client does not trust. Needs the extra `testing`.

    Raises:
        ImportError: trustme is not installed: `pip install 'mailstrom-async[testing]'`.
    """

    def __init__(self) -> None:
        try:
            import trustme
        except ImportError as error:
            raise ImportError(
                "certificates are made with trustme, which is not installed: pip install 'mailstrom-async[testing]'"
            ) from error
        self._authority = trustme.CA()

    @cached_property
    def ca_file(self) -> Path:
        """Its certificate in PEM, for `Config.ca_file`; removed when the authority is."""
        with tempfile.NamedTemporaryFile(prefix="mailstrom-ca-", suffix=".pem", delete=False) as file:
            file.write(self._authority.cert_pem.bytes())
        path = Path(file.name)
        weakref.finalize(self, path.unlink, missing_ok=True)
        return path

    def client_context(self) -> ssl.SSLContext:
        """A context for clients that trusts this authority and no other."""
        return ssl.create_default_context(cadata=self._authority.cert_pem.bytes().decode("ascii"))

    def server_context(self, *names: str, expired: bool = False, not_yet_valid: bool = False) -> ssl.SSLContext:
        """A context for a server, as `SMTPServer(tls=...)` takes it.

        Args:
            names: What the certificate is for: host names, "*.example.net", or IP addresses.
            expired: It was valid until yesterday.
            not_yet_valid: It will be valid from tomorrow on.
        """
        if not names:
            raise ValueError('a certificate needs a name: server_context("mx.example.net")')
        begin = datetime.now(UTC) - timedelta(days=1)
        if expired:
            begin -= VALIDITY
        if not_yet_valid:
            begin += timedelta(days=2)
        certificate = self._authority.issue_cert(*names, not_before=begin, not_after=begin + VALIDITY)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)  # pyright: ignore[reportUnknownMemberType]
        return context
