"""No two test processes get the same port, nor one that the kernel gives away."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.services.ports import free_port

#: Of 11,000: by chance alone, eight of them would be given twice.
_MANY = 300


def test_a_port_is_given_once_as_long_as_its_owner_lives() -> None:
    own = {free_port() for _ in range(_MANY)}

    program = f"from tests.services.ports import free_port\nfor _ in range({_MANY}): print(free_port())"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    others = {int(line) for line in other.stdout.split()}

    assert len(own) == len(others) == _MANY
    assert not own & others


def test_the_kernel_gives_none_of_them_away() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

    assert free_port() < lowest
