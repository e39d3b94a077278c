"""File systems that machines share are told from local ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastlane_core.builtin.sqlite.local_disk import shared_file_system

MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 0:40 / /home rw,relatime shared:2 master:1 - nfs4 files:/home rw,vers=4.2
31 30 254:2 / /home/local rw - xfs /dev/vdb rw
32 22 0:41 / /mnt/two\\040words rw - cifs //files/share rw
33 22 0:42 / /over rw - nfs files:/over rw
34 33 0:43 / /over rw - tmpfs tmpfs rw
not a line of it
"""


@pytest.mark.parametrize(
    ("path", "file_system"),
    [
        ("/var/lib/fastlane.db", None),
        ("/home/ann/fastlane.db", "nfs4"),
        ("/home/local/fastlane.db", None),
        ("/homestead/fastlane.db", None),
        ("/mnt/two words/a/fastlane.db", "cifs"),
        ("/over/fastlane.db", None),
    ],
)
def test_the_nearest_mount_decides(path: str, file_system: str | None) -> None:
    assert shared_file_system(Path(path), MOUNTS) == file_system


def test_this_machine_is_asked_without_trouble(tmp_path: Path) -> None:
    assert shared_file_system(tmp_path / "fastlane.db") is None
