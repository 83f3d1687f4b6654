"""The commands of SMTP, as the scripted server understands them (RFC 5321, 1870, 2920, 3030, 3207, 4954, 6152,
6531)."""

import re
import ssl
from dataclasses import dataclass, field

from mailstrom_async.testing._actions import Action, Context, Script
from mailstrom_async.testing._auth import Accounts, Exchange
from mailstrom_async.testing._connection import Connection, Settle, requested_name, settle_nothing
from mailstrom_async.testing._content import Came, Chunk, Content, Whole, faults
from mailstrom_async.testing._records import Ledger, ReceivedMessage, now

LONGEST_COMMAND = 64 * 1024

_PATH = re.compile(r'(?i:FROM|TO):( *)<((?:"(?:\\.|[^"\\])*"|[^">])*)>(?: (.*))?$')

# Which extension allows which parameter of MAIL and RCPT.
_MAIL_PARAMETERS = {
    "SIZE": "SIZE",
    "BODY": "8BITMIME",
    "SMTPUTF8": "SMTPUTF8",
    "RET": "DSN",
    "ENVID": "DSN",
    "AUTH": "AUTH",
    "REQUIRETLS": "REQUIRETLS",
    "MT-PRIORITY": "MT-PRIORITY",
}
_RCPT_PARAMETERS = {"NOTIFY": "DSN", "ORCPT": "DSN"}

# After these a client has to wait for the answer (RFC 2920 section 3.1; RFC 3207; RFC 4954).
_LAST_OF_GROUP = frozenset({"EHLO", "HELO", "DATA", "STARTTLS", "AUTH", "VRFY", "NOOP", "QUIT"})


@dataclass(slots=True)
class Settings:
    """What a server is like."""

    name: str
    script: Script
    extensions: list[str]
    tls: ssl.SSLContext | None
    implicit_tls: bool
    accounts: Accounts
    max_sessions: int | None

    @property
    def size_limit(self) -> int | None:
        """What the SIZE extension says."""
        for extension in self.extensions:
            keyword, _, limit = extension.partition(" ")
            if keyword.upper() == "SIZE" and limit.isdecimal() and int(limit):
                return int(limit)
        return None


@dataclass(slots=True)
class _Transaction:
    sender: str | None = None
    mail_options: tuple[str, ...] = ()
    recipients: list[str] = field(default_factory=list[str])
    rcpt_options: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])
    mail_tried: bool = False
    rcpt_tried: int = 0
    content: Content = field(default_factory=Content)
    arrived: bytes | None = None  # the content, from its end until its reply


class SMTPSession(Connection):
    """A session with one client."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        super().__init__(ledger)
        self._settings = settings
        self._offered: frozenset[str] = frozenset()
        self._transaction = _Transaction()
        self._greeted = False
        self._exchange: Exchange | None = None
        self._commands = {
            "EHLO": self._hello,
            "HELO": self._hello,
            "STARTTLS": self._starttls,
            "AUTH": self._auth,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "BDAT": self._bdat,
            "RSET": self._rset,
            "NOOP": self._noop,
            "VRFY": self._vrfy,
            "QUIT": self._quit,
        }

    # Begin and end

    def begin(self) -> None:
        peer = self.transport.get_extra_info("peername")
        self.record = self.ledger.begin(str(peer[0]) if peer else "")
        self._perform(("connect",), b"", lambda reply, replaced: self._connected())
        self.flush()

    def _connected(self) -> None:
        if self._settings.implicit_tls and self._settings.tls is not None:
            self.upgrade(self._settings.tls, self._implicit_tls_begun)
        else:
            self._greet()

    def _implicit_tls_begun(self, connection: ssl.SSLObject) -> None:
        self._note_tls(connection)
        self._greet()

    def _greet(self) -> None:
        limit = self._settings.max_sessions
        if limit is not None and self.ledger.open_sessions > limit:
            self.write(f"421 4.7.0 {self._settings.name} Too many connections\r\n".encode())
            self.close()
            return
        if self.buffer:
            self._violation("spoke before the greeting")
        usual = f"220 {self._settings.name} ESMTP\r\n".encode()
        self._perform(("greeting",), usual, self._greeting_sent)

    def _greeting_sent(self, reply: bytes, replaced: bool) -> None:
        self._greeted = True
        if reply.startswith(b"421"):
            self.close()

    def finish(self, error: Exception | None) -> None:
        self.record.aborted = error is not None or self._transaction.content.pending
        self.ledger.end(self.record)

    def _perform(
        self,
        moments: tuple[str, ...],
        usual: bytes,
        settle: Settle,
        *,
        command: str = "",
        recipient: str | None = None,
    ) -> None:
        """Act at a moment, which has several names: the specific ones first, the general one last."""
        script = self._settings.script
        action: Action | None = script.next_action(*moments) if script else None
        if action is None:
            self.write(usual)
            settle(usual, False)
            return
        transaction = self._transaction
        context = Context(
            moments[-1],
            self.record,
            command,
            transaction.sender,
            recipient,
            tuple(transaction.recipients),
            self.record.transactions + (moments[-1] == "MAIL"),
        )
        self.carry_out(action, context, usual, settle)

    def _violation(self, what: str) -> None:
        self.ledger.violation(self.record, what)

    # Lines

    def pump(self) -> None:
        while (self.buffer or self._transaction.content.awaits_nothing) and not self.busy:
            read = self._read_content if self._transaction.content.pending else self._read_command
            if not read():
                return

    def _read_command(self) -> bool:
        """Obey the next line; tell whether there may be something more to do."""
        end = self.buffer.find(b"\n") + 1
        if not end:
            if len(self.buffer) > LONGEST_COMMAND:
                self.write(b"500 5.5.2 Line too long\r\n")
                self.close()
            return False
        line = bytes(self.buffer[:end])
        del self.buffer[:end]
        self._obey(line)
        return True

    def _obey(self, raw: bytes) -> None:
        text = raw.removesuffix(b"\n").removesuffix(b"\r")
        if not raw.endswith(b"\r\n") or b"\r" in text:
            self._violation("bare CR or LF in a command")
        if b"\0" in text:
            self._violation("NUL in a command")
        line = text.decode("utf-8", "surrogateescape")
        if self._exchange is not None:
            self._note("***")
            self._answer_challenge(self._exchange, line)
            return
        verb, _, argument = line.partition(" ")
        verb = verb.upper()
        if verb == "AUTH" and " " in argument.strip():
            line = f"{verb} {argument.split()[0]} ***"
        self._note(line)
        if not text.isascii() and "SMTPUTF8" not in self._offered:
            self._violation(f"{verb} is not ASCII, and SMTPUTF8 was not offered")
        if self.buffer:
            self._check_pipelining(verb)
        obey = self._commands.get(verb)
        if obey is None:
            self._violation(f"unknown command {verb[:20]!r}")
            self.write(b"500 5.5.1 Command not recognized\r\n")
        else:
            obey(verb, argument.strip(), line)

    def _note(self, line: str) -> None:
        if self.ledger.keep:
            self.record.commands.append(line)

    def _check_pipelining(self, verb: str) -> None:
        if verb == "STARTTLS":
            self._violation("plaintext behind STARTTLS")
        elif verb in _LAST_OF_GROUP:
            self._violation(f"sent more behind {verb} before it was answered")
        elif verb == "BDAT":
            return  # its octets; `_read_content` looks at what comes behind them
        elif "PIPELINING" not in self._offered:
            self._violation(f"pipelined behind {verb}, and PIPELINING was not offered")
        self.record.pipelined += 1

    # Commands

    def _hello(self, verb: str, argument: str, line: str) -> None:
        self._transaction = _Transaction()
        if verb == "HELO":
            offered = list[str]()
            usual = f"250 {self._settings.name}\r\n"
        else:
            offered = self._extensions()
            lines = [self._settings.name, *offered]
            usual = "".join(f"250{'-' if n < len(lines) else ' '}{text}\r\n" for n, text in enumerate(lines, 1))

        def settle(reply: bytes, replaced: bool) -> None:
            if reply.startswith(b"2"):
                self.record.helo = argument
                said = reply.decode("utf-8", "replace").upper().splitlines()[1:] if verb == "EHLO" else []
                self._offered = frozenset(part[4:].partition(" ")[0] for part in said)

        self._perform((verb,), usual.encode(), settle, command=line)

    def _extensions(self) -> list[str]:
        settings = self._settings
        extensions = list(settings.extensions)
        if settings.tls is not None and self.record.tls is None:
            extensions.append("STARTTLS")
        if settings.accounts and (self.record.tls is not None or settings.accounts.without_tls):
            extensions.append(" ".join(["AUTH", *settings.accounts.mechanisms]))
        return extensions

    def _starttls(self, verb: str, argument: str, line: str) -> None:
        context = self._settings.tls
        if context is None or self.record.tls is not None:
            self._violation("STARTTLS, which was not offered")
            usual = b"503 5.5.1 TLS is not available\r\n"
        else:
            usual = b"220 2.0.0 Go ahead\r\n"

        def settle(reply: bytes, replaced: bool) -> None:
            if reply.startswith(b"220") and context is not None and not replaced:
                self.buffer.clear()
                self.upgrade(context, self._tls_begun)

        self._perform(("STARTTLS",), usual, settle, command=line)

    def _tls_begun(self, connection: ssl.SSLObject) -> None:
        # RFC 3207 section 4.2: what was said before does not count any more.
        self._note_tls(connection)
        self._offered = frozenset()
        self.record.helo = None
        self._transaction = _Transaction()

    def _note_tls(self, connection: ssl.SSLObject) -> None:
        self.record.tls = connection.version()
        self.record.server_name = requested_name(connection)

    def tls_failed(self, failure: Exception) -> None:
        self.record.tls_error = str(failure) or type(failure).__name__

    def _auth(self, verb: str, argument: str, line: str) -> None:
        accounts = self._settings.accounts
        mechanism, _, initial = argument.partition(" ")
        exchange = None
        if not accounts:
            usual = b"502 5.5.1 AUTH is not available\r\n"
        elif self.record.tls is None and not accounts.without_tls:
            self._violation("AUTH without TLS")
            usual = b"538 5.7.11 Encryption required for authentication\r\n"
        elif self.record.username is not None:
            usual = b"503 5.5.1 Already authenticated\r\n"
        else:
            exchange = Exchange(accounts, mechanism.upper(), initial or None)
            usual = exchange.reply
        self._exchange = exchange
        self._perform(("AUTH",), usual, self._auth_answered, command=line)

    def _answer_challenge(self, exchange: Exchange, line: str) -> None:
        exchange.answer(line)
        self.write(exchange.reply)
        self._auth_answered(exchange.reply, False)

    def _auth_answered(self, reply: bytes, replaced: bool) -> None:
        exchange = self._exchange
        if reply.startswith(b"235"):
            self.record.username = exchange.username if exchange is not None else None
        if not reply.startswith(b"334"):
            self._exchange = None

    def _mail(self, verb: str, argument: str, line: str) -> None:
        path = _PATH.match(argument)
        if self.record.helo is None:
            self._violation("MAIL before EHLO")
        if self._transaction.sender is not None:
            self._violation("MAIL inside a transaction")
            usual = b"503 5.5.1 Nested MAIL\r\n"
        elif self._settings.accounts and self.record.username is None:
            usual = b"530 5.7.0 Authentication required\r\n"
        else:
            usual = self._judge_path(path, verb, _MAIL_PARAMETERS) or b"250 2.1.0 Sender accepted\r\n"
        sender, options = (path[2], tuple((path[3] or "").split())) if path is not None else ("", ())
        if usual.startswith(b"2") and self._declared_size(options) > (self._settings.size_limit or float("inf")):
            usual = b"552 5.3.4 Message too big\r\n"

        def settle(reply: bytes, replaced: bool) -> None:
            self._transaction = _Transaction(mail_tried=True)
            if reply.startswith(b"2"):
                self._transaction.sender = sender
                self._transaction.mail_options = options
                self.record.transactions += 1

        self._perform((f"MAIL FROM:<{sender}>", "MAIL"), usual, settle, command=line)

    def _judge_path(self, path: re.Match[str] | None, verb: str, parameters: dict[str, str]) -> bytes | None:
        """What speaks against an address and its parameters, if anything."""
        if path is None:
            self._violation(f"{verb} that can't be parsed")
            return b"501 5.5.4 Syntax: write an address in angle brackets\r\n"
        if path[1]:
            self._violation(f"space before the address of {verb}")
        for option in (path[3] or "").split():
            keyword = option.partition("=")[0].upper()
            if parameters.get(keyword) not in self._offered:
                self._violation(f"{verb} with {keyword}, which was not offered")
                return b"555 5.5.4 Unsupported parameter\r\n"
        return None

    @staticmethod
    def _declared_size(options: tuple[str, ...]) -> int:
        sizes = [option[5:] for option in options if option.upper().startswith("SIZE=")]
        return int(sizes[0]) if sizes and sizes[0].isdecimal() else 0

    def _rcpt(self, verb: str, argument: str, line: str) -> None:
        transaction = self._transaction
        path = _PATH.match(argument)
        recipient, options = (path[2], tuple((path[3] or "").split())) if path is not None else ("", ())
        transaction.rcpt_tried += 1
        if transaction.sender is None:
            if not transaction.mail_tried:
                self._violation("RCPT before MAIL")
            usual = b"503 5.5.1 MAIL first\r\n"
        elif not recipient:
            usual = self._judge_path(None, verb, _RCPT_PARAMETERS) or b""
        else:
            usual = self._judge_path(path, verb, _RCPT_PARAMETERS) or b"250 2.1.5 Recipient accepted\r\n"

        def settle(reply: bytes, replaced: bool) -> None:
            if reply.startswith(b"2") and transaction.sender is not None:
                transaction.recipients.append(recipient)
                transaction.rcpt_options.append(options)

        moments = (f"RCPT TO:<{recipient}>", f"RCPT #{transaction.rcpt_tried}", "RCPT")
        self._perform(moments, usual, settle, command=line, recipient=recipient)

    def _data(self, verb: str, argument: str, line: str) -> None:
        transaction = self._transaction
        if not transaction.rcpt_tried:
            self._violation("DATA before RCPT")
            usual = b"503 5.5.1 RCPT first\r\n"
        else:
            usual = self._no_content() or b"354 End with a dot on a line by itself\r\n"

        def settle(reply: bytes, replaced: bool) -> None:
            if reply.startswith(b"354"):
                transaction.content.begin()

        self._perform(("DATA",), usual, settle, command=line)

    def _bdat(self, verb: str, argument: str, line: str) -> None:
        chunk = Chunk.parse(argument)
        if "CHUNKING" not in self._offered:
            self._violation("BDAT, and CHUNKING was not offered")
            self.write(b"502 5.5.1 BDAT is not available\r\n")
        elif chunk is None:
            self._violation("BDAT that can't be parsed")
            refusal = b"501 5.5.4 Syntax: BDAT size [LAST]\r\n"
            self.write(refusal)
            self._chunk_answered(refusal, False)
        else:
            # Whatever will be said to it: the octets come, and are not to be read as commands (RFC 3030 section 2).
            self._transaction.content.announce(chunk)
            if not self._transaction.rcpt_tried:
                self._violation("BDAT before RCPT")

    # Content

    def _read_content(self) -> bool:
        """Take what has come of the content; tell whether there may be something more to do."""
        came = self._transaction.content.take(self.buffer, self._settings.size_limit)
        if came is None:
            return False
        if came is Came.START:
            self._perform(("body",), b"", settle_nothing)
            return True
        if self.buffer:
            # The content may be the first of a group (RFC 2920 section 3.1).
            if "PIPELINING" not in self._offered:
                self._violation("sent more behind content before it was answered")
            self.record.pipelined += 1
        if isinstance(came, Whole):
            self._content_ended(came)
        else:
            usual = self._no_content() or b"250 2.0.0 Octets received\r\n"
            self._perform(("BDAT",), usual, self._chunk_answered)
        return True

    def _chunk_answered(self, reply: bytes, replaced: bool) -> None:
        if not reply.startswith(b"2"):
            # The transaction has failed. More chunks may be on their way, and are no fault (RFC 3030 section 2).
            self._transaction = _Transaction(mail_tried=True, rcpt_tried=self._transaction.rcpt_tried)

    def _content_ended(self, whole: Whole) -> None:
        for fault in faults(whole.content, self._transaction.mail_options):
            self._violation(fault)
        usual = self._no_content()
        if usual is None and whole.too_big:
            usual = b"552 5.3.4 Message too big\r\n"
        elif usual is None:
            usual = f"250 2.0.0 Taken as {self.ledger.received + 1}\r\n".encode()
        self._transaction.arrived = whole.content
        self._perform(("end of data",), usual, self._content_answered)

    def _no_content(self) -> bytes | None:
        """Why no content can be taken now, if so."""
        if self._transaction.sender is None:
            return b"503 5.5.1 MAIL first\r\n"
        return None if self._transaction.recipients else b"554 5.5.1 No valid recipients\r\n"

    def _content_answered(self, reply: bytes, replaced: bool) -> None:
        if reply.startswith(b"2"):
            self.take()
        self._transaction = _Transaction()

    def take(self) -> None:
        transaction = self._transaction
        content, transaction.arrived = transaction.arrived, None
        if content is None or not transaction.recipients or transaction.sender is None:
            return
        self.ledger.take(
            ReceivedMessage(
                transaction.sender,
                tuple(transaction.recipients),
                content,
                transaction.mail_options,
                tuple(transaction.rcpt_options),
                self.record,
                now(),
                self.record.tls is not None,
            )
        )

    # The small ones

    def _rset(self, verb: str, argument: str, line: str) -> None:
        def settle(reply: bytes, replaced: bool) -> None:
            if reply.startswith(b"2"):
                self._transaction = _Transaction()

        self._perform((verb,), b"250 2.0.0 Reset\r\n", settle, command=line)

    def _noop(self, verb: str, argument: str, line: str) -> None:
        self._perform((verb,), b"250 2.0.0 Fine\r\n", settle_nothing, command=line)

    def _vrfy(self, verb: str, argument: str, line: str) -> None:
        self._perform((verb,), b"252 2.5.0 Send some mail and see\r\n", settle_nothing, command=line)

    def _quit(self, verb: str, argument: str, line: str) -> None:
        self.record.quit = True

        def settle(reply: bytes, replaced: bool) -> None:
            if reply.startswith(b"2"):
                self.close()

        self._perform((verb,), b"221 2.0.0 Bye\r\n", settle, command=line)
