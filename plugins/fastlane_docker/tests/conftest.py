"""Runners on real engines, and runs on them."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import docker
import pytest
import pytest_asyncio

from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.contracts.storage import Storage
from fastlane_core.models import RunRequest
from fastlane_core.testing.runner_context import runner_context
from fastlane_core.testing.runner_driver import RunDriver
from fastlane_docker.runner import DockerRunner
from fastlane_docker.settings import DockerSettings
from tests.services.fixtures import SharedEngine
from tests.services.http_proxy import HttpProxy
from tests.services.images import add_blob
from tests.services.registry import Registry
from tests.services.tcp_proxy import TcpProxy

BuildRunner = Callable[..., DockerRunner]
ConfirmStart = Callable[[RunRequest], Awaitable[None]]
Push = Callable[..., str]


@pytest.fixture
def deployment_id() -> str:
    return f"test-{uuid.uuid4()}"


@pytest_asyncio.fixture
async def storage(tmp_path: Path) -> AsyncIterator[Storage]:
    """What the workers of a test share."""
    storage = SqliteStorage(tmp_path / "storage.db")
    await storage.open()
    yield storage
    await storage.close()


@pytest_asyncio.fixture
async def build_runner(deployment_id: str, storage: Storage) -> AsyncIterator[BuildRunner]:
    """Makes a runner on hosts, with short time-outs; `await runner.open()` it. All are closed in the end."""
    runners: list[DockerRunner] = []

    def build(
        *hosts: str,
        deployment: str | None = None,
        stop_grace_seconds: float = 10.0,
        confirm_start: ConfirmStart | None = None,
        **settings: object,
    ) -> DockerRunner:
        farm = {"hosts": list(hosts) or ["unused"], "maxRunning": 8}
        values = {
            "docker_hosts": [farm],
            "docker_timeout_seconds": 10.0,
            "docker_ping_seconds": 0.2,
            "docker_circuit_breaker_reset_timeout_seconds": 1.0,
            **settings,
        }
        section = DockerSettings.model_validate(values)
        context = runner_context(
            section,
            deployment_id=deployment or deployment_id,
            storage=storage,
            stop_grace_seconds=stop_grace_seconds,
            confirm_start=confirm_start,
        )
        runner = DockerRunner(context)
        runners.append(runner)
        return runner

    yield build
    for runner in runners:
        await runner.close()


@pytest_asyncio.fixture
async def runner(build_runner: BuildRunner, docker_engine: SharedEngine) -> DockerRunner:
    """An open runner on the shared engine."""
    runner = build_runner(docker_engine.url)
    await runner.open()
    return runner


@pytest.fixture
def sdk(docker_engine: SharedEngine) -> Iterator[docker.DockerClient]:
    """The shared engine as its operator sees it."""
    with contextlib.closing(docker.DockerClient(base_url=docker_engine.url, timeout=60)) as client:
        yield client


@pytest.fixture
def runs(deployment_id: str, sdk: docker.DockerClient) -> Iterator[RunDriver]:
    """Starts runs; their containers are removed from the shared engine when the test is over."""
    yield RunDriver(deployment_id=deployment_id, image="busybox:latest")
    for container in sdk.containers.list(all=True, filters={"label": f"fastlane.deployment={deployment_id}"}):
        container.remove(force=True, v=True)


@pytest.fixture
def push(registry: Registry, docker_engine: SharedEngine, sdk: docker.DockerClient) -> Iterator[Push]:
    """Makes an image that only the registry has; its reference. `size` in bytes, none of which can be compressed.

    What the shared engine pulls of them is removed when the test is over.
    """
    made: list[str] = []

    def push(*, size: int = 16, tag: str = "v1", name: str = "") -> str:
        made.append(str(uuid.uuid4()))
        local = f"{made[-1]}:{tag}"
        add_blob(docker_engine.url, local, size)
        pushed = registry.push(docker_engine.url, local, name.partition("/")[2] or f"some/{local}")
        sdk.images.remove(local)
        return pushed

    yield push
    for image in sdk.images.list():
        names = [*image.tags, *image.attrs["RepoDigests"]]
        if any(each in name for each in made for name in names):
            for container in sdk.containers.list(all=True, filters={"ancestor": image.id}):
                container.remove(force=True)
            sdk.images.remove(image.id, force=True)


@pytest.fixture
def proxy(docker_engine: SharedEngine) -> Iterator[TcpProxy]:
    """A proxy in front of the shared engine, which must listen on TCP for that."""
    scheme, _, where = docker_engine.url.partition("://")
    if scheme != "tcp":
        pytest.skip("the shared engine does not listen on TCP, so no proxy can stand before it")
    name, _, port = where.partition(":")
    with TcpProxy((name, int(port))) as proxy:
        yield proxy


@pytest.fixture
def http_proxy(docker_engine: SharedEngine) -> Iterator[HttpProxy]:
    """A proxy that counts and holds requests or answers them, in front of the shared engine."""
    scheme, _, where = docker_engine.url.partition("://")
    if scheme != "tcp":
        pytest.skip("the shared engine does not listen on TCP, so no proxy can stand before it")
    name, _, port = where.partition(":")
    with HttpProxy((name, int(port))) as proxy:
        yield proxy
