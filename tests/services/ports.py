"""Ports for the servers of the tests, each for one test run's process alone.

A port that the kernel picks (`bind` to 0) is anybody's again until the server that it is meant for has bound it: that
of another test that runs beside, or of an outgoing connection. So these come from below the range that the kernel
picks from, and a lock keeps each for as long as the process lives that asked for it.
"""

from __future__ import annotations

import fcntl
import functools
import os
import random
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

#: Below Linux's `ip_local_port_range` (from 32,768), with as much room above for the ports of a cluster's bus.
_PORTS = range(11_000, 22_000)
#: A node of a Redis cluster listens here as well, so far above its own port.
_BUS = 10_000

_given: set[int] = set()


def free_port() -> int:
    """A port of the loopback address that nothing listens on, nor `_BUS` above it; this process's until it ends."""
    for port in random.sample(_PORTS, len(_PORTS)):
        if port not in _given and _lock(port) and _is_free(port) and _is_free(port + _BUS):
            _given.add(port)
            return port
    raise RuntimeError(f"all ports of {_PORTS} are taken")


def _lock(port: int) -> bool:
    locks = _locks()
    with suppress(OSError):
        fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
        return True
    return False


@functools.cache
def _locks() -> int:
    """The file whose byte N is locked by who has port N. Open until the process ends: closing it drops the locks."""
    path = Path(tempfile.gettempdir()) / f"fastlane-test-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _is_free(port: int) -> bool:
    with suppress(OSError), socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        return True
    return False
