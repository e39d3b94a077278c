"""Redis servers of the tests' own: single ones, a master with replicas and sentinels, and a cluster.

Needs Debian's `redis-server` and `redis-sentinel`. Every process has a free port and a folder of its own, and is
ended by its pid.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import redis

from tests.services.certificates import Identity
from tests.services.debian import program
from tests.services.ports import free_port

#: Far beyond what a start or a failover takes on a busy machine.
PATIENCE = 60.0
MASTER_NAME = "the-master"


def unavailable() -> str:
    """Why none can be started here; "" if they can."""
    absent = [name for name in ("redis-server", "redis-sentinel", "redis-cli") if program(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


class RedisServer:
    """One `redis-server`, or one sentinel, on a port of the loopback address."""

    def __init__(
        self,
        folder: Path,
        *,
        persistent: bool = False,
        sentinel: bool = False,
        tls: Identity | None = None,
        ca: str | None = None,
        options: Sequence[str] = (),
        credentials: tuple[str, str] | None = None,
    ) -> None:
        """`folder` is its own. Without `persistent` its data end with it. With `tls` the port speaks TLS alone, and
        takes clients that show a certificate of `ca`. `options` are further lines of its configuration; `credentials`
        are the user and password by which the tests reach it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._sentinel = sentinel
        self._tls, self._ca = tls, ca
        self._credentials = credentials
        self.port = free_port()
        lines = [
            f"dir {folder}",
            "bind 127.0.0.1",
            "protected-mode no",
            *([f"port {self.port}"] if tls is None else ["port 0", f"tls-port {self.port}"]),
            f"unixsocket {folder}/redis.sock",
            'save ""' if not sentinel else "",
            f"appendonly {'yes' if persistent else 'no'}\nappendfsync always" if not sentinel else "",
            *([f"tls-cert-file {tls.cert}", f"tls-key-file {tls.key}", f"tls-ca-cert-file {ca}"] if tls else []),
            *options,
        ]
        self._config = folder / "redis.conf"
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """As in REDIS_URL."""
        scheme = "rediss" if self._tls else "redis"
        user = f"{self._credentials[0]}:{self._credentials[1]}@" if self._credentials else ""
        return f"{scheme}://{user}127.0.0.1:{self.port}"

    @property
    def socket_path(self) -> str:
        """Of its Unix socket."""
        return str(self._folder / "redis.sock")

    @property
    def pid(self) -> int:
        """Its own."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [program("redis-server") or "redis-server", str(self._config)]
        if self._sentinel:
            command.append("--sentinel")
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(redis.RedisError), self.client() as client:
                client.ping()
                return
            time.sleep(0.02)
        log_text = (self._folder / "redis.log").read_text(errors="replace")[-2000:]
        self.close()
        raise RuntimeError(f"redis-server did not start:\n{log_text}")

    def client(self) -> redis.Redis:
        """For what tests ask of it directly."""
        if self._tls is None:
            return redis.Redis(
                host="127.0.0.1",
                port=self.port,
                socket_timeout=5,
                protocol=2,
                **({"username": self._credentials[0], "password": self._credentials[1]} if self._credentials else {}),
            )
        return redis.Redis(
            unix_socket_path=self.socket_path,
            socket_timeout=5,
            protocol=2,
            **({"username": self._credentials[0], "password": self._credentials[1]} if self._credentials else {}),
        )

    def flush(self) -> None:
        """Empty it."""
        with self.client() as client:
            client.flushall()

    def kill(self) -> None:
        """`kill -9`."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE)

    def pause(self) -> None:
        """Make it hang: its sockets stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        if self._process is not None and self._process.poll() is None:
            self.resume()
            self.kill()


class SentinelGroup:
    """A master with two replicas, and three sentinels; nothing is kept on disk."""

    def __init__(
        self,
        folder: Path,
        *,
        password: str = "",
        sentinel_password: str = "",
        tls: Identity | None = None,
        ca: str | None = None,
    ) -> None:
        """With `password` the servers want it, with `sentinel_password` the sentinels do. `tls` and `ca` are those of
        all servers and sentinels."""
        self.password, self.sentinel_password = password, sentinel_password
        self._tls, self._ca = tls, ca
        self._folder = folder
        protected = [f"requirepass {password}", f"masterauth {password}"] if password else []
        if tls is not None:
            protected.append("tls-replication yes")
        self.servers = [self._server(0, protected)]
        for number in (1, 2):
            self.servers.append(self._server(number, [*protected, f"replicaof 127.0.0.1 {self.servers[0].port}"]))
        self.sentinels: list[RedisServer] = []

    def __enter__(self) -> SentinelGroup:
        try:
            for server in self.servers:
                server.start()
            until(self._replicas_follow, "replicas that follow the master")
            for number in range(3):
                self.sentinels.append(self._sentinel(number))
                self.sentinels[-1].start()
            until(self._sentinels_agree, "sentinels that know each other")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for each in (*self.sentinels, *self.servers):
            each.close()

    @property
    def url(self) -> str:
        """As in REDIS_URL."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        user = f":{self.password}@" if self.password else ""
        scheme = "rediss+sentinel" if self._tls else "redis+sentinel"
        return f"{scheme}://{user}{hosts}/0?master={MASTER_NAME}"

    def master(self) -> RedisServer:
        """Which one the sentinels name now."""
        return self.master_by(self.sentinels[-1])

    def master_by(self, sentinel: RedisServer) -> RedisServer:
        """Which one that sentinel names."""
        with sentinel.client() as client:
            _, port = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME)
        return next(server for server in self.servers if server.port == int(port))

    def is_failing_over(self) -> bool:
        """Whether one of the sentinels is in the middle of it."""
        return any("failover_in_progress" in self._told_by(each)["flags"] for each in self.sentinels)

    def _told_by(self, sentinel: RedisServer) -> Mapping[str, str]:
        """What that sentinel knows of the master."""
        with sentinel.client() as client:
            return _pairs(client.execute_command("SENTINEL", "MASTER", MASTER_NAME))

    def _server(self, number: int, options: Sequence[str]) -> RedisServer:
        credentials = ("default", self.password) if self.password else None
        folder = self._folder / f"server-{number}"
        return RedisServer(folder, options=options, credentials=credentials, tls=self._tls, ca=self._ca)

    def _sentinel(self, number: int) -> RedisServer:
        lines = [
            f"sentinel monitor {MASTER_NAME} 127.0.0.1 {self.servers[0].port} 2",
            f"sentinel down-after-milliseconds {MASTER_NAME} 2000",
            f"sentinel failover-timeout {MASTER_NAME} 5000",
            *(["tls-replication yes"] if self._tls else []),
            *([f"sentinel auth-pass {MASTER_NAME} {self.password}"] if self.password else []),
            *(
                [f"requirepass {self.sentinel_password}", f"sentinel sentinel-pass {self.sentinel_password}"]
                if self.sentinel_password
                else []
            ),
        ]
        credentials = ("default", self.sentinel_password) if self.sentinel_password else None
        folder = self._folder / f"sentinel-{number}"
        return RedisServer(folder, sentinel=True, options=lines, credentials=credentials, tls=self._tls, ca=self._ca)

    def _replicas_follow(self) -> bool:
        with self.servers[0].client() as client:
            replication = client.info("replication")
        states = [each["state"] for key, each in replication.items() if key.startswith("slave")]
        return states == ["online", "online"]

    def _sentinels_agree(self) -> bool:
        for sentinel in self.sentinels:
            found = self._told_by(sentinel)
            if (found.get("num-other-sentinels"), found.get("num-slaves")) != ("2", "2"):
                return False
        return True


class ClusterGroup:
    """Three masters with a replica each; nothing is kept on disk."""

    def __init__(self, folder: Path) -> None:
        options = ["cluster-enabled yes", "cluster-node-timeout 1000", "cluster-require-full-coverage no"]
        self.servers = [RedisServer(folder / f"node-{number}", options=options) for number in range(6)]

    def __enter__(self) -> ClusterGroup:
        try:
            for server in self.servers:
                server.start()
            nodes = [f"127.0.0.1:{server.port}" for server in self.servers]
            command = [program("redis-cli") or "redis-cli", "--cluster", "create", *nodes]
            subprocess.run(
                [*command, "--cluster-replicas", "1", "--cluster-yes"],
                check=True,
                capture_output=True,
                timeout=PATIENCE,
            )
            until(self._is_ready, "a cluster in which every node knows all slots and replicas follow")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers:
            server.close()

    @property
    def url(self) -> str:
        """As in REDIS_URL, with two of the nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:2])

    def masters(self) -> Sequence[RedisServer]:
        """Those that hold slots now."""
        return [server for server in self.servers if self._role(server) == "master"]

    def holder(self, key: str) -> RedisServer:
        """The master that holds a key."""
        for server in self.masters():
            with server.client() as client, contextlib.suppress(redis.ResponseError):
                client.exists(key)
                return server
        raise LookupError(key)

    def _role(self, server: RedisServer) -> str:
        with contextlib.suppress(redis.ConnectionError), server.client() as client:
            return str(client.info("replication")["role"])
        return "down"

    def _is_ready(self) -> bool:
        for server in self.servers:
            with server.client() as client:
                state, replication = cluster_info(client), client.info("replication")
            if state["cluster_state"] != "ok" or state["cluster_slots_ok"] != "16384":
                return False
            if replication["role"] == "slave" and replication["master_link_status"] != "up":
                return False
        return len(self.masters()) == 3


@contextlib.contextmanager
def one_node_cluster(
    folder: Path, *, tls: Identity | None = None, ca: str | None = None, options: Sequence[str] = ()
) -> Iterator[RedisServer]:
    """A server that holds all slots of a cluster; the rest is as for any server."""
    options = ["cluster-enabled yes", "cluster-announce-ip 127.0.0.1", *options]
    if tls is not None:
        options.append("tls-cluster yes")
    with RedisServer(folder, options=options, tls=tls, ca=ca) as server, server.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        until(lambda: cluster_info(client)["cluster_state"] == "ok", "a cluster that is whole")
        yield server


def cluster_info(client: redis.Redis) -> Mapping[str, str]:
    """What a node tells of its cluster."""
    found = client.execute_command("CLUSTER", "INFO")
    return found if isinstance(found, dict) else dict(line.split(":") for line in found.decode().split())


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for it; RuntimeError when it never comes."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if holds():
            return
        time.sleep(0.05)
    raise RuntimeError(f"waited in vain for {what}")


def _pairs(found: object) -> Mapping[str, str]:
    """A flat reply as a mapping."""
    if isinstance(found, Mapping):
        return {_text(key): _text(value) for key, value in found.items()}
    assert isinstance(found, list)
    return {_text(key): _text(value) for key, value in zip(found[::2], found[1::2], strict=True)}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
