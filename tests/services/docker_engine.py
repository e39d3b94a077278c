"""Docker engines of the tests' own: any number side by side, each with its own bridge, folders and pid.

Needs root and Debian's `docker.io`. An engine can be killed and started again on the same data.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import docker
import requests
from docker.errors import DockerException

from tests.services.debian import program

#: Far beyond what a start takes on a busy machine.
PATIENCE = 60.0


class DockerEngine:
    """One `dockerd` on a socket and on a port of the loopback address."""

    def __init__(self, folder: Path, *, port: int | None = None, arguments: tuple[str, ...] = ()) -> None:
        """`folder` is new and its own; `arguments` are passed on to the daemon."""
        self._folder = folder
        self._arguments = arguments
        self.port = port or free_port()
        #: As jobs' engines are named in the settings.
        self.url = f"tcp://127.0.0.1:{self.port}"
        self.socket_url = f"unix://{folder}/docker.sock"
        self._bridge = f"flt{secrets.token_hex(4)}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DockerEngine:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @staticmethod
    def unavailable() -> str:
        """Why no engine can be started here; "" if one can."""
        if os.geteuid() != 0:
            return "starting one needs root"
        needed = [name for name in ("dockerd", "containerd", "runc", "iptables", "ip") if program(name) is None]
        return f"not installed: {', '.join(needed)}" if needed else ""

    @property
    def pid(self) -> int:
        """The daemon's."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        if not Path(f"/sys/class/net/{self._bridge}").exists():
            self._make_bridge()
        folder = self._folder
        (folder / "docker.pid").unlink(missing_ok=True)
        arguments = [
            program("dockerd") or "dockerd",
            *("-H", self.socket_url, "-H", self.url),
            *("--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "-p", f"{folder}/docker.pid"),
            *("--bridge", self._bridge, "--log-level", "warn", "--shutdown-timeout", "2"),
            *self._arguments,
        ]
        environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
        with (folder / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, start_new_session=True)
        self._wait_until_ready()

    def kill(self) -> None:
        """`kill -9` of the daemon; its containers may live on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def stop(self) -> None:
        """Ask the daemon to end; its containers end too."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def pause(self) -> None:
        """Make it hang: its sockets stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it with everything that it has started, and leave nothing behind."""
        if self._process is not None and self._process.poll() is None:
            self.resume()
            with contextlib.suppress(DockerException, requests.RequestException):
                client = docker.APIClient(base_url=self.socket_url, version="auto", timeout=10)
                for container in client.containers(all=True, quiet=True):
                    client.remove_container(container["Id"], force=True)
            self.stop()
        for pid in self._left_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for mount in self._mounts():
            subprocess.run(["umount", "-l", mount], check=False, capture_output=True, timeout=PATIENCE)
        _ip("link", "del", self._bridge, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if answers(self.socket_url):
                return
            time.sleep(0.05)
        log = (self._folder / "dockerd.log").read_text(errors="replace")[-3000:]
        self.close()
        raise RuntimeError(f"dockerd did not start:\n{log}")

    def _make_bridge(self) -> None:
        taken = subprocess.run(
            [program("ip") or "ip", "-o", "-4", "addr"], capture_output=True, text=True, check=True, timeout=PATIENCE
        ).stdout
        for _ in range(100):
            network = ipaddress.ip_network(f"10.213.{random.randrange(256)}.0/24")
            if f" {network.network_address + 1}/" not in taken:
                break
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{network.network_address + 1}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")

    def _left_processes(self) -> list[int]:
        """containerd, shims and the like that this engine left, told by its folder in their command lines."""
        marker = f"{self._folder}/".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if marker in (entry / "cmdline").read_bytes().replace(b"\0", b" ") + b"/":
                        found.append(int(entry.name))
        return found

    def _mounts(self) -> list[str]:
        lines = Path("/proc/self/mounts").read_text().splitlines()
        points = [line.split()[1] for line in lines]
        return [point for point in reversed(points) if point.startswith(f"{self._folder}/")]


def answers(url: str) -> bool:
    """Whether an engine answers at `tcp://name:port` or `unix:///path`."""
    scheme, _, where = url.partition("://")
    family, address = (socket.AF_UNIX, where) if scheme == "unix" else (socket.AF_INET, _pair(where))
    try:
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            connection.connect(address)
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def _pair(where: str) -> tuple[str, int]:
    name, _, port = where.partition(":")
    return name, int(port or 2375)


def free_port() -> int:
    """A port of the loopback address that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ip(*arguments: str, check: bool = True) -> None:
    command = [program("ip") or "ip", *arguments]
    subprocess.run(command, check=check, capture_output=True, timeout=PATIENCE)
