"""Docker engines of the tests' own: any number side by side, each with its own bridge, folders and pid.

Needs root and Debian's `docker.io`. An engine can be killed and started again on the same data. What a test run that
was killed has left behind is found by the name of its bridge, which tells the pid of its owner, and removed by the next
one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import requests
from docker.errors import DockerException

from tests.services.certificates import Identity
from tests.services.debian import program
from tests.services.ports import free_port

#: Far beyond what a start takes on a busy machine.
PATIENCE = 60.0


@dataclass(frozen=True)
class EngineTls:
    """TLS of an engine: who it is, and the authority of the clients that it takes."""

    identity: Identity
    client_ca: str

    @property
    def arguments(self) -> tuple[str, ...]:
        """As the daemon wants it."""
        files = ("--tlscacert", self.client_ca, "--tlscert", self.identity.cert, "--tlskey", self.identity.key)
        return ("--tlsverify", *files)


class DockerEngine:
    """One `dockerd` on a socket and on a port of the loopback address."""

    def __init__(self, folder: Path, *, arguments: tuple[str, ...] = (), tls: EngineTls | None = None) -> None:
        """`folder` is its own, and made; `arguments` are passed on to the daemon. With `tls` its port speaks TLS."""
        self._folder = folder
        self._arguments = (*arguments, *tls.arguments) if tls else arguments
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        #: As jobs' engines are named in the settings.
        self.url = f"{'https' if tls else 'tcp'}://127.0.0.1:{self.port}"
        self.socket_url = f"unix://{folder}/docker.sock"
        self._bridge = f"flt{os.getpid()}x{secrets.token_hex(2)}"
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
            _sweep()
            self._make_bridge()
        folder = self._folder
        # Left by a daemon that was killed: a pid of the dead may look alive where nobody buries them.
        for left in ("docker.pid", "exec/containerd/containerd.pid"):
            (folder / left).unlink(missing_ok=True)
        arguments = [
            program("dockerd") or "dockerd",
            *("-H", self.socket_url, "-H", f"tcp://127.0.0.1:{self.port}"),
            *("--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "-p", f"{folder}/docker.pid"),
            *("--bridge", self._bridge, "--log-level", "warn", "--shutdown-timeout", "2"),
            # Several engines would take the machine's rules from each other, and no container of a test needs them.
            "--iptables=false",
            *self._arguments,
        ]
        environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
        with (folder / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environment, start_new_session=True)
        self._wait_until_ready()

    def kill(self) -> None:
        """`kill -9` of the daemon; its containers may live on."""
        assert self._process is not None
        children = _descendants([self.pid])
        self._process.kill()
        self._process.wait(PATIENCE)
        # Its containerd dies with it, but stays a zombie where init is slow: a new daemon would take it for alive.
        for pid in children:
            _kill(pid)
        (self._folder / "exec/containerd/containerd.pid").unlink(missing_ok=True)

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
                with contextlib.closing(client):
                    for container in client.containers(all=True, quiet=True):
                        client.remove_container(container["Id"], force=True)
            self.stop()
        _remove(self._folder, self._bridge)

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
        # Without an address of its own it takes one of its ports', and each container that comes or goes changes that:
        # packets of the others then go astray until they have asked for the new one.
        address = (bytes([0x02, 0x42]) + secrets.token_bytes(4)).hex(":")
        _ip("link", "add", self._bridge, "address", address, "type", "bridge")
        _ip("addr", "add", f"{network.network_address + 1}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")


def _sweep() -> None:
    """Remove the engines of test runs that were killed before they could."""
    alive = {pid for pid, _ in _processes()} | {os.getpid()}
    for bridge in Path("/sys/class/net").glob("flt*x*"):
        owner = re.fullmatch(r"flt(\d+)x[0-9a-f]{4}", bridge.name)
        if owner is None or int(owner[1]) in alive:
            continue
        folder: Path | None = None
        for pid, arguments in _processes():
            if arguments[0].endswith("dockerd") and bridge.name in arguments and "--data-root" in arguments:
                folder = Path(arguments[arguments.index("--data-root") + 1]).parent
                _kill(pid)
        _remove(folder, bridge.name)


def _remove(folder: Path | None, bridge: str) -> None:
    """Remove what an engine that has ended left: containers' processes, mounts, its bridge and its folder."""
    if folder is not None:
        # containerd and the shims are told by the folder in their command lines; containers end with their shim's
        # namespace, so they go first.
        left = [pid for pid, arguments in _processes() if any(f"{folder}/" in argument for argument in arguments)]
        for pid in [*_descendants(left), *left]:
            _kill(pid)
        points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for point in reversed(points):
            if point.startswith(f"{folder}/"):
                subprocess.run(["umount", "-l", point], check=False, capture_output=True, timeout=PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)
    _ip("link", "del", bridge, check=False)


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Pid and command line of every other process, without zombies: they have none."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if arguments[0]:
                    yield int(entry.name), arguments


def _descendants(pids: list[int]) -> list[int]:
    """Children of the processes, and theirs."""
    parents: dict[int, list[int]] = {}
    for pid, _ in _processes():
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(pid)
    found: list[int] = []
    waiting = list(pids)
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


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


def _ip(*arguments: str, check: bool = True) -> None:
    command = [program("ip") or "ip", *arguments]
    subprocess.run(command, check=check, capture_output=True, timeout=PATIENCE)
