"""What the composer does once its mailer is being closed."""

from datetime import UTC, datetime

import pytest

from mailstrom_async import Config, DKIMKey, Email, MailerStateError
from mailstrom_async._engine.composer import Composer
from mailstrom_async._message.compose import Envelope
from mailstrom_async._message.dkim_keys import new_key

NOW = datetime(2030, 1, 1, tzinfo=UTC)
EMAIL = Email(from_="a@example.org", to="b@example.net", text="Hello")


async def test_a_mail_that_was_composed_while_the_mailer_closed_does_not_go_unsigned():
    """Its caller sends it again; without the signature that was asked for it would end as spam."""
    key = DKIMKey(domain="example.org", selector="s", private_key=new_key("ed25519").pem)
    composer = Composer(Config(helo_name="mail.example.org", dkim=(key,)))
    await composer.open()
    prepared = await composer.prepare(EMAIL, Envelope(), NOW)
    await composer.aclose()

    assert composer.signs
    with pytest.raises(MailerStateError, match="send again"):
        await composer.sign([prepared])


async def test_without_keys_mail_goes_as_it_is():
    """Closed or not."""
    composer = Composer(Config(helo_name="mail.example.org"))
    prepared = await composer.prepare(EMAIL, Envelope(), NOW)

    assert not composer.signs
    assert await composer.sign([prepared]) == [prepared]
