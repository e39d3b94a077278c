"""Which file system a file is on: SQLite's write-ahead log needs one of this machine.

https://www.sqlite.org/wal.html: "All processes using a database must be on the same host computer; WAL does not work
over a network filesystem."
"""

from __future__ import annotations

from pathlib import Path

#: Types of file systems that several machines share, as Linux names them.
_SHARED = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs"}
    | {"lustre", "beegfs", "gpfs", "gfs2", "ocfs2", "afs", "orangefs", "fuse.juicefs", "fuse.cephfs", "fuse.rclone"}
)


def shared_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the file system of `path` if machines share it; None for a local one, or where nobody can tell.

    `mounts` replaces what `/proc/self/mountinfo` says.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
        except OSError:
            return None
    file_system, longest = None, -1
    for line in mounts.splitlines():
        before, separator, after = line.partition(" - ")
        fields = before.split()
        if not separator or len(fields) < 5:
            continue
        point = fields[4].encode("latin-1", "replace").decode("unicode_escape")
        # A later line of the same mount point hides the earlier one.
        if path.resolve().is_relative_to(point) and len(point) >= longest:
            file_system, longest = after.split()[0], len(point)
    return file_system if file_system in _SHARED else None
