"""Servers as fixtures, shared by all test folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.certificates import Authority, Identity
from tests.services.docker_engine import DockerEngine, EngineTls, answers
from tests.services.images import add_busybox, add_hello_world, add_ubuntu, can_make_ubuntu
from tests.services.mongodb import MongoServer, new_server
from tests.services.mongodb import answers as mongo_answers
from tests.services.mongodb import unavailable as mongo_unavailable
from tests.services.redis_server import ClusterGroup, RedisServer, SentinelGroup
from tests.services.redis_server import unavailable as redis_unavailable
from tests.services.registry import Registry
from tests.services.requirement import missing


@dataclass(frozen=True)
class SharedEngine:
    """An engine with busybox on it, for every test that does not harm it."""

    #: As in DOCKER_HOST.
    url: str


@pytest.fixture(scope="session")
def docker_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedEngine]:
    """The engine that DOCKER_HOST names, else this machine's own, else one started for the test run."""
    given = os.environ.get("DOCKER_HOST")
    for url in filter(None, [given, "unix:///var/run/docker.sock"]):
        if answers(url):
            add_busybox(url)
            yield SharedEngine(url)
            return
        if url == given:
            missing("Docker", f"the engine that DOCKER_HOST names does not answer: {given}")
    with started_engine(tmp_path_factory.mktemp("engine")) as engine:
        yield SharedEngine(engine.url)


@dataclass(frozen=True)
class SharedTlsEngine:
    """An engine with busybox behind TLS, for every test that does not harm it."""

    #: https://127.0.0.1:port; its certificate is for 127.0.0.1 alone.
    url: str
    port: int
    #: As its operator reaches it.
    socket_url: str
    #: Signed its certificate, and signs those of the clients that it takes.
    authority: Authority
    #: A client that it takes.
    client: Identity

    @property
    def tls(self) -> dict[str, str]:
        """As the `tls` of a farm."""
        return {"ca": self.authority.ca, "cert": self.client.cert, "key": self.client.key}


@pytest.fixture(scope="session")
def tls_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedTlsEngine]:
    """An engine that takes clients with a certificate alone, started for the test run."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    tls = EngineTls(authority.issue("127.0.0.1"), authority.ca)
    with started_engine(tmp_path_factory.mktemp("tls-engine"), tls=tls) as engine:
        yield SharedTlsEngine(engine.url, engine.port, engine.socket_url, authority, authority.issue("fastlane"))


@pytest.fixture
def own_docker_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    """An engine of the test's own, to be killed and started as it likes."""
    with started_engine(tmp_path_factory.mktemp("own-engine")) as engine:
        yield engine


@pytest.fixture(scope="session")
def walk_images(docker_engine: SharedEngine) -> SharedEngine:
    """The shared engine, with the images of the getting-started walk."""
    if not can_make_ubuntu():
        missing("the image ubuntu", "debootstrap is not installed, or this is not root")
    add_hello_world(docker_engine.url)
    add_ubuntu(docker_engine.url)
    return docker_engine


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """An empty image registry."""
    if why := Registry.unavailable():
        missing("a registry", why)
    with Registry(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture(scope="session")
def registry_with_credentials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """An empty image registry that lets in `tests.services.registry.USER` alone."""
    if why := Registry.unavailable():
        missing("a registry", why)
    with Registry(tmp_path_factory.mktemp("registry"), with_credentials=True) as started:
        yield started


@pytest.fixture(scope="session")
def mongo_url() -> Iterator[str]:
    """The server that MONGODB_URL names, else one started for the test run: tests use databases of their own."""
    if given := os.environ.get("MONGODB_URL"):
        if not mongo_answers(given):
            missing("MongoDB", "the server that MONGODB_URL names does not answer")
        yield given
        return
    with started_mongo() as server:
        yield server.url


@pytest.fixture
def own_mongo() -> Iterator[MongoServer]:
    """A server of the test's own, to be killed and started as it likes."""
    with started_mongo() as server:
        yield server


def started_mongo() -> MongoServer:
    """A new MongoDB server, to be used as a context."""
    if why := mongo_unavailable():
        missing("MongoDB", f"no server is given (MONGODB_URL), and {why}")
    return new_server()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis server, for every test that does not harm it; its data are whatever tests have left."""
    require_redis()
    with RedisServer(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture(scope="session")
def redis_sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelGroup]:
    """A master, two replicas and three sentinels, like `redis_server`."""
    require_redis()
    with SentinelGroup(tmp_path_factory.mktemp("sentinel"), password="secret", sentinel_password="other") as started:
        yield started


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterGroup]:
    """Six nodes, like `redis_server`."""
    require_redis()
    with ClusterGroup(tmp_path_factory.mktemp("cluster")) as started:
        yield started


def require_redis() -> None:
    """Skip or fail where no Redis can be started."""
    if why := redis_unavailable():
        missing("Redis", why)


def started_engine(folder: Path, *, arguments: tuple[str, ...] = (), tls: EngineTls | None = None) -> DockerEngine:
    """A new engine with busybox, to be used as a context; `arguments` are passed on to the daemon."""
    if why := DockerEngine.unavailable():
        missing("Docker", f"no engine is given (DOCKER_HOST) or running, and {why}")
    return _EngineWithBusybox(folder, arguments=arguments, tls=tls)


class _EngineWithBusybox(DockerEngine):
    def __enter__(self) -> DockerEngine:
        super().__enter__()
        add_busybox(self.socket_url)
        return self
