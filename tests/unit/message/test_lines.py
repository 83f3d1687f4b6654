"""Line ends, whatever the size of what is looked at in one go."""

from itertools import product

import pytest

from mailstrom_async._message import lines
from mailstrom_async._message.lines import WithCRLF, bytes_to_crlf, join


@pytest.mark.parametrize("block", [1, 2, 3, 5, 100])
def test_line_ends_are_mended_across_the_blocks(monkeypatch, block):
    """Row D17: a CRLF between two blocks is one line end; every text of six such octets, in one block or several."""
    monkeypatch.setattr(lines, "BLOCK", block)
    for octets in product(b"a\r\n", repeat=6):
        content = bytes(octets)
        whole = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")

        assert bytes_to_crlf(content) == (whole if whole.endswith(b"\r\n") else whole + b"\r\n")


def test_what_is_right_is_left_alone():
    """Row C19: it may be large."""
    content = b"a\r\n\r\nb\r\n"

    assert bytes_to_crlf(content) is content


@pytest.mark.parametrize("block", [1, 3, 256])
def test_pieces_are_joined_in_blocks(monkeypatch, block):
    """Row C19: large ones are cut, lazy ones made only now; nothing of it shows."""
    monkeypatch.setattr(lines, "BLOCK", block)
    pieces = [b"", b"abcdefg", WithCRLF(b"xx\ny\r\rz", 1), b"h"]

    assert join(pieces) == b"abcdefgx\r\ny\r\n\r\nz\r\nh"
    assert len(pieces[2]) == len(b"x\r\ny\r\n\r\nz\r\n")
