"""The guide of `mailstrom_async.testing` does what it says."""

import re
import textwrap

import mailstrom_async
from mailstrom_async import testing


async def test_the_example_of_the_guide_works():
    """The greylisting provider of the module's docstring, executed as it stands there."""
    lines = testing.__doc__.splitlines()
    begin = lines.index("    from datetime import timedelta")
    end = lines.index("**What there is**")
    namespace = {}

    exec(textwrap.dedent("\n".join(lines[begin:end])), namespace)
    await namespace["test_a_greylisted_mail_is_delivered_later"]()


def test_all_that_the_guide_names_exists():
    """Every capitalised word in backquotes is exported here, or belongs to the library."""
    named = set(re.findall(r"`([A-Z]\w+)", testing.__doc__))

    assert {name for name in named if not hasattr(testing, name) and not hasattr(mailstrom_async, name)} == set()


def test_all_actions_are_in_the_guide():
    """What is exported is mentioned, but for the types that only annotations need."""
    types = {"Action", "Answer", "Entry", "Question", "ReceivedMessage", "Script", "Scripted", "SessionRecord", "Zone"}

    assert {name for name in testing.__all__ if name not in testing.__doc__} <= types
