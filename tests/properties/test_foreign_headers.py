"""The quick look at a header finds what the thorough one finds, or leaves it to that one."""

from hypothesis import example, given
from hypothesis import strategies as st

from mailstrom_async import InvalidEmail
from mailstrom_async._message.foreign import _fields, _plain_fields

PIECES = ["To", "X-a", ":", " ", "\t", "\r\n", "a", "b@c", ";", "\x01", "\x7f", "é", "From ", "\r", "\n"]
headers = st.lists(st.sampled_from(PIECES), max_size=20).map(lambda pieces: ("".join(pieces) + "\r\n").encode())


@given(headers)
@example(b"To: a\r\n b\r\n\tc \r\nX-a:\r\n b\r\n")
@example(b"To: a\r\n \r\nX-a: b\r\n")
@example(b"To: a\r\n \r\n")
@example(b"To:\r\n")
def test_what_is_found_at_a_glance_is_what_there_is(header: bytes):
    """Names and values are the same, and what the thorough look refuses is never passed."""
    found = _plain_fields(header)

    try:
        expected = _fields(header)
    except InvalidEmail:
        assert found is None
        return
    assert found is None or found == expected


@given(
    st.lists(
        st.tuples(st.from_regex("[!-9;-~]{1,9}", fullmatch=True), st.from_regex("[ -~]{0,9}", fullmatch=True)),
        min_size=1,
    )
)
def test_a_plain_header_is_read_at_a_glance(fields: list[tuple[str, str]]):
    """Whatever its names and values are."""
    header = "".join(f"{name}:{value}\r\n" for name, value in fields).encode()

    assert _plain_fields(header) == [(name, value.lstrip()) for name, value in fields]
