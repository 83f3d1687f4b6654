"""Which file systems are refused for a queue."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mailstrom_async import SQLiteStorage, StorageError
from mailstrom_async.storage._sqlite import file_system as file_system_room
from mailstrom_async.storage._sqlite.file_system import file_system, refuse_network

MOUNTS = """\
22 1 0:21 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
35 22 0:42 / /srv/mail rw,relatime shared:12 master:3 - nfs4 server:/export rw,vers=4.2
36 22 0:43 /sub /mnt/with\\040blank rw - fuse.sshfs me@host: rw
37 22 0:44 / /odd rw,relatime master:1 propagate_from:2 - tmpfs - rw
a line of another kind
"""


@pytest.mark.parametrize(
    ("device", "kind"),
    [("0:21", "ext4"), ("0:42", "nfs4"), ("0:43", "fuse.sshfs"), ("0:44", "tmpfs"), ("9:99", None)],
)
def test_the_type_of_a_file_system_is_read_from_the_mounts(device, kind):
    """However many optional fields a line has."""
    assert file_system(MOUNTS, device) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.sshfs"])
async def test_a_file_on_a_network_file_system_is_refused(tmp_path, monkeypatch, kind):
    """The remedy is told: a local disk, or PostgreSQL. Nothing is made there."""
    monkeypatch.setattr(file_system_room, "MOUNTS", mounts_with(tmp_path, kind))
    folder = tmp_path / "mail"
    folder.mkdir()
    with pytest.raises(StorageError, match=rf"over a network \({kind}\).*local disk, or use PostgresStorage"):
        await SQLiteStorage(folder / "mail.db").open(datetime.now(UTC))

    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "9p"])
def test_a_file_on_a_local_file_system_is_taken(tmp_path, monkeypatch, kind):
    """As is one in a directory that is not there: of that, whoever opens the file tells."""
    monkeypatch.setattr(file_system_room, "MOUNTS", mounts_with(tmp_path, kind))
    refuse_network(tmp_path / "mail.db")
    refuse_network(tmp_path / "missing" / "mail.db")


def test_where_the_system_has_no_such_table_every_file_is_taken(tmp_path, monkeypatch):
    """As on macOS."""
    monkeypatch.setattr(file_system_room, "MOUNTS", tmp_path / "missing")
    refuse_network(tmp_path / "mail.db")


def mounts_with(folder: Path, kind: str) -> Path:
    """A table of mounts that says that of the folder's device."""
    device = folder.stat().st_dev
    mounts = folder / "mountinfo"
    mounts.write_text(f"35 22 {os.major(device)}:{os.minor(device)} / / rw - {kind} source rw\n")
    return mounts
