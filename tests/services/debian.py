"""Installing the servers that Debian packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

#: Package by the program that tells it is there; paths where the program is on nobody's PATH.
PACKAGES = {
    "dockerd": "docker.io",
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "/bin/busybox": "busybox-static",
    "debootstrap": "debootstrap",
    "docker-registry": "docker-registry",
    "docker-compose": "docker-compose",
    "redis-server": "redis-server",
    "redis-sentinel": "redis-sentinel",
    "redis-cli": "redis-tools",
    "curl": "curl",
    "pg_ctlcluster": "postgresql",
    "setpriv": "util-linux",
}
_ENVIRONMENT = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
_LOCK_SECONDS = 300
_INSTALL_SECONDS = 900


def program(name: str) -> str | None:
    """Where a program is, also in the folders that only root has on its PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")


def absent() -> list[str]:
    """The packages whose programs are missing."""
    return [package for name, package in PACKAGES.items() if program(name) is None]


def install() -> int:
    """Install what is missing; the exit code of the command."""
    packages = absent()
    if not packages:
        return 0
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        print(f"Missing for some tests, which will be skipped: {', '.join(packages)}", file=sys.stderr)
        print(f"On Debian: sudo apt-get install --no-install-recommends {' '.join(packages)}", file=sys.stderr)
        return 0
    print(f"Installing {' '.join(packages)} ...", flush=True)
    apt = ["apt-get", "-qq", "-o", f"DPkg::Lock::Timeout={_LOCK_SECONDS}"]
    # Services of the packages must not be started: tests start their own.
    policy = Path("/usr/sbin/policy-rc.d")
    blocked = not policy.exists()
    if blocked:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        _run([*apt, "update"])
        _run([*apt, "install", "-y", "--no-install-recommends", *packages])
    except subprocess.SubprocessError as error:
        print(f"Could not install them: {error}", file=sys.stderr)
        return 1
    finally:
        if blocked:
            policy.unlink(missing_ok=True)
    return 0


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, env=_ENVIRONMENT, timeout=_INSTALL_SECONDS, check=False, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise subprocess.SubprocessError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
