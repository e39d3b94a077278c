"""The connections to Redis: one server, a master found by sentinels, or a cluster, all called the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fastlane_core.builtin.redis.cluster import Cluster
from fastlane_core.builtin.redis.scripts import script
from fastlane_core.builtin.redis.sentinels import Sentinels
from fastlane_core.builtin.redis.url import RedisAddress, Topology
from fastlane_core.coarse_timeout import coarse_timeout
from fastlane_core.errors import QueueUnavailable

Answer = TypeVar("Answer")
Part = TypeVar("Part")
#: What a script answers: integers, bytes, None, and lists of these.
Reply = Any

#: Seconds before the second attempt of a call; twice as long before each further one.
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 0.5
#: Seconds that a cancelled task has for closing its connections before it is cancelled again.
_CLEAN_UP_SECONDS: Final = 2.0
#: Of all the time that a call has, the part that one attempt may take.
_ATTEMPT_SHARE: Final = 0.4
#: The part of it that the sentinels have to answer.
_SENTINEL_SHARE: Final = 0.2
#: The oldest server whose scripts and commands these are.
OLDEST_SERVER: Final = (6, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsFiles:
    """Paths of PEM files; None for the system's authorities, and for no client certificate."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectionOptions:
    """How to connect."""

    address: RedisAddress
    tls: TlsFiles
    sentinel_username: str | None
    sentinel_password: str | None
    #: Seconds that a call may take in all.
    timeout: float
    #: Calls under way at a time, to each server.
    connections: int


class Servers:
    """Calls Redis with a bounded number of connections and of attempts, each call within its time."""

    def __init__(self, options: ConnectionOptions) -> None:
        self._options = options
        self.timeout = options.timeout
        self.place = options.address.place
        #: Whether one server holds everything, so that a script may touch any keys.
        self.holds_all = options.address.topology is not Topology.CLUSTER
        #: Calls under way, by server: one that hangs must not hold up calls to others.
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._client: Redis | Cluster | None = None
        self._sentinel: Sentinels | None = None

    async def open(self) -> None:
        """Connect. Raises QueueUnavailable."""
        self._client = self._connect()
        await self.call(lambda client, _: client.execute_command("TIME"))

    async def close(self) -> None:
        """Let go of all connections."""
        client, self._client = self._client, None
        if isinstance(client, Cluster):
            await client.stop()
        elif client is not None:
            await client.aclose()
        sentinel, self._sentinel = self._sentinel, None
        if sentinel is not None:
            await sentinel.aclose()

    async def run(self, name: str, keys: Sequence[str], arguments: Sequence[str | bytes | int | float] = ()) -> Reply:
        """Run a script, which learns from its first argument whether this call may have run before."""
        found = script(name)

        async def attempt(client: Redis | Cluster, repeated: bool) -> Reply:
            rest = (len(keys), *keys, int(repeated), *arguments)
            try:
                return await client.execute_command("EVALSHA", found.sha, *rest)
            except NoScriptError:
                # A server that was restarted, or has just become the master.
                return await client.execute_command("EVAL", found.source, *rest)

        return await self.call(attempt, key=keys[0])

    async def call(
        self, attempt: Callable[[Redis | Cluster, bool], Awaitable[Answer]], *, key: str | None = None
    ) -> Answer:
        """Try until it works or the time is up. `key` is one of those that are asked for. Raises QueueUnavailable."""
        trouble: Exception | None = None
        task = asyncio.current_task()
        cancellations = task.cancelling() if task is not None else 0
        try:
            with coarse_timeout(self.timeout):
                pause = _FIRST_PAUSE
                while True:
                    client = self._opened()
                    try:
                        async with self._slot(client, key):
                            answer = await attempt(client, trouble is not None)
                        # redis-py sends with asyncio.wait_for, which may drop a cancellation before Python 3.12.
                        if task is not None and task.cancelling() > cancellations:
                            raise asyncio.CancelledError
                        return answer
                    except (RedisError, RedisClusterException, OSError) as error:
                        trouble = error
                        if not _may_pass(error):
                            raise self._unavailable(error) from error
                        if isinstance(error, ReadOnlyError) and isinstance(client, Redis):
                            # It was the master once; the name may lead to the new one now.
                            await client.connection_pool.disconnect(inuse_connections=False)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        except TimeoutError as error:
            raise self._unavailable(trouble or error) from (trouble or error)

    async def new_node_client(self) -> Redis:
        """A client of one server for messages: any node of a cluster, else the master. The caller closes it."""
        client = self._opened()
        if isinstance(client, Cluster):
            await client.initialize()
            node = client.get_random_node()
            return Redis.from_pool(self._pool(host=node.host, port=node.port))
        if self._options.address.topology is Topology.SENTINEL:
            return self._master()
        return Redis.from_pool(self._pool(**self._target()))

    def client_of(self, host: tuple[str, int] | None = None) -> Redis:
        """A client of one server, or of the only one, to ask about itself. The caller closes it."""
        return Redis.from_pool(self._pool(**(self._target() if host is None else {"host": host[0], "port": host[1]})))

    def client_of_sentinel(self, host: tuple[str, int]) -> Redis:
        """A client of one sentinel. The caller closes it."""
        username, password = self._options.sentinel_username, self._options.sentinel_password
        return Redis.from_pool(self._pool(host=host[0], port=host[1], username=username, password=password))

    async def information(self) -> Mapping[str, str]:
        """What one of the servers tells of itself, its memory and its cluster. Raises QueueUnavailable."""

        async def ask(client: Redis | Cluster, repeated: bool) -> Mapping[str, str]:
            node = await self.new_node_client()
            try:
                text = await node.info("all")
            finally:
                await node.aclose()
            return {str(key): str(value) for key, value in text.items()}

        return await self.call(ask)

    def _slot(self, client: Redis | Cluster, key: str | None) -> asyncio.Semaphore:
        server = ""
        if key is not None and isinstance(client, Cluster):
            with suppress(SlotNotCoveredError):
                node = client.get_node_from_key(key)
                server = node.name if node is not None else ""
        return self._slots.setdefault(server, asyncio.Semaphore(self._options.connections))

    def _opened(self) -> Redis | Cluster:
        if self._client is None:
            raise QueueUnavailable("the Redis queue is not open")
        return self._client

    def _unavailable(self, error: Exception) -> QueueUnavailable:
        if isinstance(error, TimeoutError | RedisTimeoutError):
            why = f"did not answer within {self.timeout:g} s"
        else:
            why = f"cannot be used: {str(error) or type(error).__name__}"
        return QueueUnavailable(f"Redis at {self.place} {why}; check REDIS_URL and the server")

    def _connect(self) -> Redis | Cluster:
        address = self._options.address
        if address.topology is Topology.CLUSTER:
            arguments = {**self._arguments(), **self._tls(), "retry": Retry(NoBackoff(), 0)}
            return Cluster(startup_nodes=[ClusterNode(*host) for host in address.hosts], **arguments)
        if address.topology is Topology.SENTINEL:
            return self._master()
        return Redis.from_pool(self._pool(**self._target()))

    def _master(self) -> Redis:
        address = self._options.address
        if self._sentinel is None:
            credentials = {
                "username": self._options.sentinel_username,
                "password": self._options.sentinel_password,
            }
            self._sentinel = Sentinels(
                address.hosts,
                seconds=self.timeout * _SENTINEL_SHARE,
                retry=Retry(NoBackoff(), 0),
                **{**self._arguments(), **self._tls(), **credentials},
            )
        # The client has the pool to itself, so closing it closes the pool.
        return cast(
            "Redis",
            self._sentinel.master_for(
                address.master,
                **self._arguments(),
                **self._tls(),
                db=address.database,
                retry=Retry(NoBackoff(), 0),
            ),
        )

    def _target(self) -> dict[str, Any]:
        address = self._options.address
        if address.path is not None:
            return {"path": address.path, "db": address.database}
        ((host, port),) = address.hosts
        return {"host": host, "port": port, "db": address.database}

    def _pool(self, **target: Any) -> ConnectionPool:
        arguments = {**self._arguments(), **target, "retry": Retry(NoBackoff(), 0)}
        kind: type[Any] = Connection
        if "path" in target:
            kind = UnixDomainSocketConnection
        elif self._options.address.tls:
            kind = SSLConnection
            arguments.update({name: value for name, value in self._tls().items() if name != "ssl"})
        return ConnectionPool(connection_class=kind, **arguments)

    def _arguments(self) -> dict[str, Any]:
        """What every kind of client takes. Calls are limited by `_slots`, so the pools never run out."""
        seconds = self.timeout * _ATTEMPT_SHARE
        return {
            "username": self._options.address.username,
            "password": self._options.address.password,
            "socket_timeout": seconds,
            "socket_connect_timeout": seconds,
            "max_connections": 2 * self._options.connections + 2,
            "protocol": 2,
        }

    def _tls(self) -> dict[str, Any]:
        if not self._options.address.tls:
            return {}
        files = self._options.tls
        return {"ssl": True, "ssl_ca_certs": files.ca, "ssl_certfile": files.cert, "ssl_keyfile": files.key}


async def ask(client: Redis, *command: str) -> Reply:
    """What one server answers. Raises RedisError, OSError."""
    return await client.execute_command(*command)  # type: ignore[no-untyped-call]


async def of_those_that_answer(calls: Mapping[Part, Awaitable[Answer]]) -> Mapping[Part, Answer]:
    """What calls to parts of a queue give, without those that cannot be reached. QueueUnavailable if none can."""
    answers: dict[Part, Answer] = {}
    trouble: QueueUnavailable | None = None
    for name, answer in zip(calls, await asyncio.gather(*calls.values(), return_exceptions=True), strict=True):
        if isinstance(answer, QueueUnavailable):
            trouble = answer
        elif isinstance(answer, BaseException):
            raise answer
        else:
            answers[name] = answer
    if trouble is not None and not answers:
        raise trouble
    return answers


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel it until it has ended: redis-py may drop a cancellation before Python 3.12."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_CLEAN_UP_SECONDS)


def _may_pass(error: Exception) -> bool:
    """Whether the same call may succeed soon."""
    if isinstance(error, AuthenticationError | AuthorizationError):
        return False
    if isinstance(error, ReadOnlyError | ClusterDownError | TryAgainError | RedisConnectionError | RedisTimeoutError):
        return True
    if isinstance(error, ResponseError):
        # A failover or a start is under way.
        return str(error).startswith(("LOADING", "MASTERDOWN", "NOREPLICAS", "UNBLOCKED", "BUSY ", "MOVED", "ASK"))
    return True
