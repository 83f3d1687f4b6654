"""Which file system a path lies on: one over a network gives no locks to rely on."""

import os
from pathlib import Path

from mailstrom_async._errors import StorageError

NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs"),
        *("fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone", "fuse.davfs", "davfs"),
    }
)

MOUNTS = Path("/proc/self/mountinfo")


def refuse_network(path: Path) -> None:
    """Raises StorageError if the directory of a file is mounted over a network, as far as the system tells (Linux).

    Machines that mount the same directory don't see each other's locks in all cases, and then both would write; and
    SQLite's log needs memory that is shared by all who have the file open, which only one machine can have.
    """
    try:
        device = path.parent.stat().st_dev
        kind = file_system(MOUNTS.read_text("utf-8", "replace"), f"{os.major(device)}:{os.minor(device)}")
    except OSError:
        return  # not Linux; or the directory is missing, of which whoever opens the file tells
    if kind in NETWORK:
        raise StorageError(
            f"{path} lies on a file system over a network ({kind}), where locks can't be relied on: "
            "put it on a local disk, or use PostgresStorage"
        )


def file_system(mounts: str, device: str) -> str | None:
    """The type of the file system on a device, such as "0:42", from Linux' mountinfo; None: it is not listed.

    A line: id, parent, device, root, mount point, options, optional fields, "-", type, source, options.
    """
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) > 6 and fields[2] == device and "-" in fields[6:-1]:
            return fields[fields.index("-", 6) + 1]
    return None
