"""The outbound half of a mail server as an asyncio library.

    mailer = Mailstrom(Config(helo_name="mail.example.org"), SQLiteStorage("mail.db"))
    async with mailer:
        message_id = await mailer.send_email(
            Email(from_="App <app@example.org>", to="Ada <ada@example.net>", subject="Welcome", text="Hello Ada")
        )
        status = await mailer.query_status(message_id)

The way of a message, and where to read it:

1. `send_email` composes the `Email` (`_message/compose.py`) and stores it (`storage/`); then it returns.
2. The scheduler (`_engine/scheduler.py`) claims what is due, fairly over destinations (`_queue/`).
3. The router (`_engine/routing.py`) finds out where the destination leads (`dns/`, `_policy/hosts.py`).
4. It waits at its site (`_engine/site.py`) until a carrier (`_engine/carrier.py`) takes it over a session (`smtp/`);
   each reply is judged (`_policy/verdict.py`).
5. The outcomes are settled into results (`_queue/recipient.py`) and recorded; deferred ones are due again later.
"""

import importlib
import typing

__version__ = "0.1.0"

if typing.TYPE_CHECKING:
    from mailstrom_async._public import *  # noqa: F403 - as it is at run time
else:

    def __getattr__(name):
        """All the public names, when the first of them is wanted (PEP 562).

        Whoever needs only a room of ours, such as `mailstrom_async.testing` or the command line's help, does not wait
        for the others.
        """
        if name.startswith("_") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = vars(importlib.import_module("mailstrom_async._public"))
        globals().update({each: public[each] for each in ["__all__", *public["__all__"]]})
        if name not in globals():  # also the rooms that were entered by that, such as `storage`
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals()[name]

    def __dir__():
        return sorted({*globals(), *__getattr__("__all__")})
