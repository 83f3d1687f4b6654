"""What the scripted DNS server can be told to answer, and the records that it finds for a question."""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import TypeAlias, cast

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass

from mailstrom_async.testing._actions import Gate

LONGEST_CHAIN = 32  # of CNAME records; a server has to stop somewhere, too


class Fault(Enum):
    """What goes wrong in place of an answer. The first four are response codes (RFC 1035 section 4.1.1)."""

    SERVFAIL = "SERVFAIL"
    REFUSED = "REFUSED"
    NOTIMP = "NOTIMP"
    FORMERR = "FORMERR"
    MUTE = "mute"
    """No answer at all: the client's time runs out. Over TCP the connection stays open."""
    GARBAGE = "garbage"
    """Bytes that are no DNS message."""
    SHORT = "short"
    """Half of a header."""
    WRONG_ID = "wrong id"
    """"No such domain" under another id than the question's, as a forger who guesses would send it."""
    WRONG_QUESTION = "wrong question"
    """"No such domain" in answer to another question."""


@dataclass(frozen=True, slots=True)
class Records:
    """Records with a TTL of their own, in seconds: `Records("10 mx1.example.net", "20 mx2.example.net", ttl=3600)`."""

    texts: tuple[str, ...]
    ttl: int

    def __init__(self, *texts: str, ttl: int) -> None:
        object.__setattr__(self, "texts", texts)
        object.__setattr__(self, "ttl", ttl)


@dataclass(frozen=True, slots=True)
class Late:
    """Answer after a while of real time, or when a test opens a gate: `Late(Gate(), ["10 mx.example.net"])`."""

    until: timedelta | Gate
    then: "Answer"


@dataclass(frozen=True, slots=True)
class Truncated:
    """Over UDP an empty answer with the mark of truncation, so that the client asks again over TCP: `then` is told only
    there. `Truncated(Fault.MUTE)` never tells anything."""

    then: "Answer"


@dataclass(frozen=True, slots=True)
class Forged:
    """First send a forged answer (its id is wrong: forgers guess), and right after it the true one."""

    forged: Sequence[str]
    true: "Answer"


@dataclass(slots=True, init=False, eq=False)
class InTurn:
    """Several answers, taken in turn, round and round: `InTurn(Fault.SERVFAIL, ["10 mx.example.net"])` flaps.

    Each question counts: clients repeat theirs after an error, and ask for A and AAAA apart.
    """

    answers: "tuple[Answer, ...]"
    taken: int = field(default=0)

    def __init__(self, *answers: "Answer") -> None:
        if not answers:
            raise ValueError("InTurn needs at least one answer")
        self.answers = answers
        self.taken = 0

    def next_answer(self) -> "Answer":
        self.taken += 1
        return self.answers[(self.taken - 1) % len(self.answers)]


Answer: TypeAlias = Sequence[str] | Records | Fault | Late | Truncated | Forged | InTurn
"""How a question is answered. A list of str are records as zone files write them; an empty one: there are none."""

Entry: TypeAlias = Mapping[str, Answer] | Fault | Late | InTurn
"""What holds for a name: answers by record type, or one fault for all types."""


@dataclass(frozen=True, slots=True)
class Found:
    """What there is to say to a question: the CNAMEs that were followed, and the answer at their end.

    Attributes:
        name: The last name, whose records `answer` holds.
        exists: False: there is no such name.
    """

    aliases: tuple[tuple[str, str], ...]
    name: str
    answer: Answer
    exists: bool = True


class Zone(MutableMapping[str, Entry]):
    """Entries by name; may be changed while the server runs. Letter case does not count, nor does a final dot.

    Raises:
        ValueError: A record can't be read, or a type or a name does not exist.
    """

    def __init__(self, entries: Mapping[str, Entry] | None = None) -> None:
        self._entries: dict[str, Entry] = {}
        self.update(entries if entries is not None else {})

    def __setitem__(self, name: str, entry: Entry) -> None:
        if isinstance(entry, Mapping):
            entry = {kind.upper(): answer for kind, answer in entry.items()}
            for kind, answer in entry.items():
                _check(name, kind, answer)
        self._entries[as_key(name)] = entry

    def __getitem__(self, name: str) -> Entry:
        return self._entries[as_key(name)]

    def __delitem__(self, name: str) -> None:
        del self._entries[as_key(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, name: str, kind: str, *, follow: bool = True) -> Found:
        """The answer to a question.

        Args:
            name: What is asked about.
            kind: Which records.
            follow: CNAMEs are followed to their end (RFC 1034 section 4.3.2), and not one step only.
        """
        name = as_key(name)
        aliases: list[tuple[str, str]] = []
        while len(aliases) < LONGEST_CHAIN:
            entry = self._entries.get(name)
            if entry is None:
                # RFC 8020: a name that has names below it exists, though it has no records.
                below = any(other.endswith(f".{name}") for other in self._entries)
                return Found(tuple(aliases), name, (), exists=below)
            if not isinstance(entry, Mapping):
                return Found(tuple(aliases), name, entry)
            if kind in entry or "CNAME" not in entry:
                return Found(tuple(aliases), name, entry.get(kind, ()))
            texts = entry["CNAME"]
            if isinstance(texts, str) or not isinstance(texts, list | tuple):
                return Found(tuple(aliases), name, texts)
            target = as_key(cast("Sequence[str]", texts)[0])
            if (name, target) in aliases:
                return Found(tuple(aliases), name, ())
            aliases.append((name, target))
            name = target
            if not follow:
                return Found(tuple(aliases), name, ())
        return Found(tuple(aliases), name, Fault.SERVFAIL)


def as_key(name: str) -> str:
    """A name in lower case, with A-labels, without its final dot."""
    try:
        parsed = dns.name.from_text(name, idna_codec=dns.name.IDNA_2008)
    except dns.exception.DNSException as error:
        raise ValueError(f"{name!r} is no domain name: {error}") from None
    return parsed.to_text(omit_final_dot=True).lower()


def parse(kind: str, text: str) -> dns.rdata.Rdata:
    """A record, as zone files write it. Names in it are absolute, with or without a final dot."""
    return dns.rdata.from_text(dns.rdataclass.IN, kind, text, origin=dns.name.root, relativize=False)


def _check(name: str, kind: str, answer: Answer) -> None:
    """Raise ValueError if an answer can't be given."""
    if isinstance(answer, Late | Truncated):
        _check(name, kind, answer.then)
    elif isinstance(answer, InTurn):
        for one in answer.answers:
            _check(name, kind, one)
    elif isinstance(answer, Forged):
        _check(name, kind, answer.forged)
        _check(name, kind, answer.true)
    elif not isinstance(answer, Fault):
        texts = answer.texts if isinstance(answer, Records) else answer
        if isinstance(texts, str):
            raise ValueError(f"{name} {kind}: write a list of records, [{texts!r}]")  # noqa: TRY004 - as other typos
        for text in texts:
            try:
                parse(kind, text)
            except (dns.exception.DNSException, ValueError) as error:
                raise ValueError(f"{name} {kind} {text!r}: {str(error) or 'is no such record'}") from None
