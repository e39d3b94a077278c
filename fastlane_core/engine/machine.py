"""Which machine, and which of its process tables, this process belongs to."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastlane_core.models import Json


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """One running kernel, as processes see it that may be in containers; "" is unknown."""

    #: Changes with every boot, and is the same in all containers: what shares it shares memory and file locks.
    boot: str
    #: Stays over boots; containers may lack it, or have that of their image.
    installation: str
    host: str
    #: In which process ids mean the same.
    pid_namespace: str

    @classmethod
    def this(cls) -> Machine:
        """The one that this process runs on."""
        return cls(
            boot=_line("/proc/sys/kernel/random/boot_id"),
            installation=_line("/etc/machine-id"),
            host=socket.gethostname(),
            pid_namespace=_link("/proc/self/ns/pid"),
        )

    @classmethod
    def told(cls, report: Mapping[str, Json]) -> Machine:
        """The one that a process told of by `as_json`."""
        found = report.get("machine")
        told = found if isinstance(found, Mapping) else {}
        return cls(**{name: str(told.get(name) or "") for name in ("boot", "installation", "host", "pid_namespace")})

    def as_json(self) -> dict[str, Json]:
        """For a process's report."""
        return {
            "boot": self.boot,
            "installation": self.installation,
            "host": self.host,
            "pid_namespace": self.pid_namespace,
        }

    def is_other(self, other: Machine) -> bool:
        """Whether the two are different machines for all that is known, rather than one before and after a boot."""
        if self.boot and other.boot:
            rebooted = self.installation and (self.installation, self.host) == (other.installation, other.host)
            return self.boot != other.boot and not rebooted
        return bool(self.host and other.host) and self.host != other.host

    def has_ended(self, other: Machine, pid: int) -> bool:
        """Whether the process `pid`, which told to be on `other`, has certainly ended, as it can be seen from here."""
        if not self.boot or not self.pid_namespace:
            return False
        if self.boot != other.boot:
            return not self.is_other(other)
        if self.pid_namespace != other.pid_namespace:
            return False
        if pid == os.getpid():
            return True
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def _line(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
