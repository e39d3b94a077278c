"""MongoDB servers of the tests' own.

`mongod` where it is installed. Elsewhere a server that speaks MongoDB's protocol (FerretDB 1.24, from Go modules, built
once and kept in the user's cache) over Debian's PostgreSQL. It proves that results are right, and says nothing of
speed, since most of its queries read whole collections; nor is there a replica set to elect another primary in.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path

import pymongo
from pymongo.errors import PyMongoError

from tests.services.debian import program
from tests.services.docker_engine import PATIENCE
from tests.services.ports import free_port

_SOURCE = Path(__file__).parent / "mongo"
_BUILD_SECONDS = 900
#: One message must never hold more updates than these: the server would wait for itself for ever.
_CONNECTIONS = 90


class MongoServer(ABC):
    """One server on a port of the loopback address, without a password."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"mongodb://127.0.0.1:{self.port}/?directConnection=true"
        self._folder = Path(tempfile.mkdtemp(prefix="fastlane-mongo-"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MongoServer:
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._folder / "server.log").open("ab") as log:
            # Ends with the test run, however that ends.
            command = ["setpriv", "--pdeathsig", "KILL", *self._command()]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            if answers(self.url):
                return
            time.sleep(0.05)
        log_text = (self._folder / "server.log").read_text(errors="replace")[-3000:]
        raise RuntimeError(f"the MongoDB server did not start:\n{log_text}")

    def kill(self) -> None:
        """`kill -9`; what it acknowledged is still there after the next start."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def stop(self) -> None:
        """Ask it to end."""
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self) -> None:
        """Kill it, if it runs, and start it on the same data and port."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        self.start()

    def pause(self) -> None:
        """Make it hang: its sockets stay open and nothing answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        # Its threads stop one after the other, and a last answer may still come out.
        tasks = Path(f"/proc/{self._process.pid}/task")
        while any(b") T " not in (each / "stat").read_bytes() for each in tasks.iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        """Let it go on."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its data."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    @abstractmethod
    def _prepare(self) -> None:
        """Make what has to be there before the first start."""
        raise NotImplementedError

    @abstractmethod
    def _command(self) -> list[str]:
        raise NotImplementedError


class Mongod(MongoServer):
    """MongoDB itself."""

    def _prepare(self) -> None:
        (self._folder / "data").mkdir()

    def _command(self) -> list[str]:
        return [
            *(program("mongod") or "mongod", "--dbpath", f"{self._folder}/data", "--bind_ip", "127.0.0.1"),
            *("--port", str(self.port), "--unixSocketPrefix", str(self._folder), "--wiredTigerCacheSizeGB", "0.25"),
        ]


class WireServer(MongoServer):
    """The server that only speaks like MongoDB. A kill hits what speaks; its PostgreSQL lives until `close`."""

    def __init__(self) -> None:
        super().__init__()
        self._postgres: subprocess.Popen[bytes] | None = None
        self._postgres_port = free_port()

    def close(self) -> None:
        if self._postgres is not None and self._postgres.poll() is None:
            # SIGQUIT is PostgreSQL's "end at once": its processes go, its data need not last.
            self._postgres.send_signal(signal.SIGQUIT)
            try:
                self._postgres.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._postgres.kill()
                self._postgres.wait(PATIENCE)
        super().close()

    def _prepare(self) -> None:
        data, sockets = self._folder / "postgres", self._folder / "sockets"
        self._folder.chmod(0o755)
        for folder in (data, sockets):
            folder.mkdir(mode=0o700)
            if os.geteuid() == 0:
                shutil.chown(folder, "postgres", "postgres")
        tools = _postgres_tools()
        assert tools is not None
        with (self._folder / "postgres.log").open("ab") as log:
            subprocess.run(
                [
                    *(*_as_postgres(), str(tools / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust"),
                    *("-E", "UTF8", "--locale=C", "--no-sync"),
                ],
                check=True,
                stdout=log,
                stderr=log,
                cwd="/",
                timeout=PATIENCE,
            )
            settings = {
                "port": str(self._postgres_port),
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": str(sockets),
                "fsync": "off",
                "max_connections": str(_CONNECTIONS + 10),
            }
            options = [each for name, value in settings.items() for each in ("-c", f"{name}={value}")]
            self._postgres = subprocess.Popen(
                [*_as_postgres("--pdeathsig", "QUIT"), str(tools / "postgres"), "-D", str(data), *options],
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._postgres.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._postgres_port), 1):
                return
            time.sleep(0.05)
        raise RuntimeError(f"PostgreSQL did not start:\n{(self._folder / 'postgres.log').read_text()[-3000:]}")

    def _command(self) -> list[str]:
        database = f"postgres://postgres@127.0.0.1:{self._postgres_port}/postgres?pool_max_conns={_CONNECTIONS}"
        socket_path = f"{self._folder}/mongo.sock"
        return [str(_built()), "-listen", f"127.0.0.1:{self.port}", "-socket", socket_path, "-postgres", database]


def unavailable() -> str:
    """Why no server can be started here; "" if one can."""
    if program("mongod"):
        return ""
    needed = {"initdb": _postgres_tools(), "setpriv": program("setpriv"), "go": _built_path().exists() or program("go")}
    absent = [name for name, found in needed.items() if not found]
    return f"mongod is not installed, and for the server in its place there is no {', '.join(absent)}" if absent else ""


def new_server() -> MongoServer:
    """A server with its own data, to be used as a context. Slow the first time, where it has to be built."""
    return Mongod() if program("mongod") else WireServer()


def answers(url: str) -> bool:
    """Whether a server answers at `url`."""
    try:
        with pymongo.MongoClient[dict[str, object]](url, timeoutMS=5_000) as client:
            client.admin.command("ping")
    except PyMongoError:
        return False
    return True


def _built() -> Path:
    """The server's program, built if it is not there yet."""
    built = _built_path()
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            made = Path(folder) / built.name
            done = subprocess.run(
                [program("go") or "go", "build", "-trimpath", "-o", str(made), "."],
                cwd=_SOURCE,
                env={**os.environ, "CGO_ENABLED": "0"},
                capture_output=True,
                text=True,
                timeout=_BUILD_SECONDS,
                check=False,
            )
            if done.returncode != 0:
                raise RuntimeError(f"the server could not be built:\n{done.stderr[-3000:]}")
            made.rename(built)
    return built


def _built_path() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    source = b"".join(each.read_bytes() for each in sorted(_SOURCE.iterdir()))
    return base / "fastlane-tests" / f"mongo-{hashlib.sha256(source).hexdigest()[:16]}"


def _postgres_tools() -> Path | None:
    """The folder of PostgreSQL's programs: Debian has them on nobody's PATH."""
    if found := program("initdb"):
        return Path(found).resolve().parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)


def _as_postgres(*options: str) -> list[str]:
    """PostgreSQL refuses to run as root."""
    user = ["--reuid", "postgres", "--regid", "postgres", "--init-groups"] if os.geteuid() == 0 else []
    return ["setpriv", *user, *options] if user or options else []
