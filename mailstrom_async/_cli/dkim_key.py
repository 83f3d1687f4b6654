"""Making a key for DKIM, and telling the DNS about it."""

import os
from pathlib import Path

import click
from pydantic import ValidationError

from mailstrom_async import DKIMKey
from mailstrom_async._message.dkim_keys import KeyType, new_key

TXT_STRING = 255
"""Characters of one string in a TXT record (RFC 1035 section 3.3.14); a longer value has several."""


@click.command("dkim-key")
@click.argument("domain")
@click.argument("selector")
@click.option("--type", "kind", type=click.Choice(["rsa", "ed25519"]), default="rsa", show_default=True)
@click.option("--bits", type=click.IntRange(2048, 4096), default=2048, show_default=True, help="Of an RSA key.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The file; default: SELECTOR.DOMAIN.pem.")
def command(domain: str, selector: str, kind: KeyType, bits: int, out: Path | None) -> int:
    """Make a key that signs mail from DOMAIN, and print the DNS record that SELECTOR needs.

    The private key goes into a file that only you can read; the record goes to standard output.
    """
    try:
        name = DKIMKey(domain=domain, selector=selector, private_key=Path("unused"))
    except ValidationError as error:
        raise click.UsageError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None
    path = out or Path(f"{name.selector}.{name.domain}.pem")
    key = new_key(kind, bits)
    try:
        # Never over an old key: mail that it signed is still on its way.
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:  # noqa: PTH123
            file.write(key.pem.get_secret_value())
    except FileExistsError:
        raise click.ClickException(f"{path} exists; take another selector, or another file with --out") from None
    except OSError as error:
        raise click.ClickException(f"{path} can't be written: {error.strerror}") from None
    strings = [key.record[start : start + TXT_STRING] for start in range(0, len(key.record), TXT_STRING)]
    quoted = " ".join(f'"{string}"' for string in strings)
    click.echo(f"{name.selector}._domainkey.{name.domain}. IN TXT ( {quoted} )")
    click.echo(
        f"The private key is in {path}. Put the record above into the DNS, wait until it is to be seen there, and then "
        f'sign: Config(dkim=[DKIMKey(domain="{name.domain}", selector="{name.selector}", private_key="{path}")], ...)',
        err=True,
    )
    return 0
