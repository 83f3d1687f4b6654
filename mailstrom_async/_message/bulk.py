"""What mail to many lacks of what Gmail and Yahoo have asked of it since February 2024."""

from mailstrom_async._config import Config
from mailstrom_async._email import Addresses, Email
from mailstrom_async._errors import DKIMKeyError
from mailstrom_async._message.addresses import Mailbox, mailboxes_of, read_addresses
from mailstrom_async._message.compose import domains_of, is_one_click
from mailstrom_async._message.dkim import signers_for
from mailstrom_async._message.dkim_keys import load_signers
from mailstrom_async._message.place import Place

# Their DMARC records tell receivers to reject mail that they did not send themselves.
FREE_MAIL = frozenset(
    {"gmail.com", "googlemail.com", "yahoo.com", "aol.com", "outlook.com", "hotmail.com", "icloud.com"}
)


def bulk_problems(email: Email, config: Config) -> list[str]:
    """What this email lacks to be welcome as one of thousands: a sentence for each, none if nothing is missing.

    It sees the email and the settings only. That the From domain has SPF and DMARC records, that the address we connect
    from has a name of its own, and that the text has a visible link to unsubscribe, is for the sender to see to.

    Raises:
        InvalidEmail: An address can't be read.
    """
    domains = domains_of(config)

    def named(field: str, value: Addresses) -> list[Mailbox]:
        return mailboxes_of(read_addresses(Place(field), value, domains))

    authors = named("from_", email.from_)
    problems = _unsubscribing(email)
    if len(authors) == 1:
        problems += _signing(authors[0].domain, config)
    else:
        problems.append("from_ names several authors or a group; receivers check one From domain, so name one author")
    if len(named("to", email.to) + named("cc", email.cc) + named("bcc", email.bcc)) > 1:
        problems.append(
            "it has several recipients: send each a mail of its own (email.but(to=...)), so that a click unsubscribes "
            "the one who clicked, and nobody sees the others"
        )
    if config.tls == "none":
        problems.append('Config.tls is "none", and Gmail takes bulk mail over TLS only; leave it at "may"')
    if config.helo_name.startswith("[") or "." not in config.helo_name:
        problems.append("Config.helo_name is not a full host name; use the one that this host's address has in the DNS")
    return problems


def _unsubscribing(email: Email) -> list[str]:
    urls = [email.list_unsubscribe] if isinstance(email.list_unsubscribe, str) else email.list_unsubscribe or ()
    if not any(map(is_one_click, urls)):
        missing = "list_unsubscribe is no https URL, so there is no unsubscribing with one click (RFC 8058)"
        return [f"{missing}; give one that tells the recipient apart and answers a POST"]
    return []


def _signing(domain: str, config: Config) -> list[str]:
    if domain in FREE_MAIL:
        return [f"From is an address at {domain}, for which only {domain} can sign; use a domain of your own"]
    try:
        signers = signers_for(load_signers(config.dkim), domain)
    except DKIMKeyError as error:
        return [f"{error}, so nothing is sent at all"]
    if not signers:
        missing = f"no key of Config.dkim is {domain}'s or a domain's above it, so no signature speaks for From"
        return [f"{missing}; make one with mailstrom-async dkim-key {domain} SELECTOR, unless a relay signs for you"]
    if all(signer.algorithm != "rsa-sha256" for signer in signers):
        return [f"{domain} has an Ed25519 key only, which many receivers can't verify; add an RSA key"]
    return []
