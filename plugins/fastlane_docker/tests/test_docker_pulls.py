"""Pulls under way: what is told of them, who shares and ends them, and registries and engines in trouble meanwhile."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
from collections.abc import Callable, Iterator

import docker
import pytest
from docker.errors import NotFound

from fastlane_core.errors import EngineUnavailable, PullFailed
from fastlane_core.models import Progress, RunRequest
from fastlane_core.testing.runner_driver import DEADLINE, RunDriver, ignore_progress
from fastlane_docker.engines.engine import PULLS
from fastlane_docker.runner import DockerRunner
from tests.services.docker_engine import DockerEngine
from tests.services.fixtures import SharedEngine, started_engine
from tests.services.registry import Registry
from tests.services.tcp_proxy import TcpProxy

pytestmark = pytest.mark.services

Build = Callable[..., DockerRunner]
Push = Callable[..., str]

MIB = 1024**2
#: Seconds between pieces of 64 KiB: four MiB take some two seconds.
SLOW = 0.03


@pytest.fixture
def front(registry: Registry) -> Iterator[TcpProxy]:
    """A proxy in front of the registry."""
    with TcpProxy(("127.0.0.1", registry.port)) as front:
        yield front


@pytest.fixture
def slow_image(push: Push, registry: Registry, front: TcpProxy) -> str:
    """An image of 4 MiB behind the proxy, which is slow."""
    front.pass_on(delay=SLOW)
    return push(size=4 * MIB).replace(registry.address, f"127.0.0.1:{front.port}")


@pytest.fixture
async def request_of(runner: DockerRunner, runs: RunDriver, slow_image: str) -> RunRequest:
    """A request for that image on the shared engine."""
    return await runs.request(runner, "true", image=slow_image)


class Told:
    """What a listener hears."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self._news = asyncio.Event()

    def __call__(self, progress: Progress) -> None:
        self.messages.append(progress.message)
        self._news.set()

    async def until(self, text: str) -> None:
        async with asyncio.timeout(DEADLINE):
            while not any(text in message for message in self.messages):
                self._news.clear()
                await self._news.wait()


async def opened(runner: DockerRunner) -> DockerRunner:
    await runner.open()
    return runner


async def until(what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        await asyncio.sleep(0.02)


# What is told


async def test_progress_is_told_in_mebibytes_to_all_who_wait_and_at_once_to_who_comes_late(
    runner: DockerRunner, request_of: RunRequest
) -> None:
    first, late = Told(), Told()
    waiting = [asyncio.create_task(runner.prepare(request_of, first))]
    await first.until(" MiB")
    before = len(first.messages)
    waiting.append(asyncio.create_task(runner.prepare(request_of, late)))

    await until("the late one was told", lambda: bool(late.messages))
    assert re.fullmatch(r"pulling \S+: \d+\.\d of [456]\.\d MiB", late.messages[0])
    assert late.messages[0] in first.messages[before - 1 :]
    await asyncio.gather(*waiting)

    image = request_of.spec.image
    assert first.messages[0] == f"pulling {image}"
    assert first.messages[-1] == late.messages[-1] == f"pulled {image}"
    assert len(first.messages) == len(set(first.messages))


async def test_pull_that_waits_for_others_says_so(
    runner: DockerRunner, runs: RunDriver, registry: Registry, front: TcpProxy
) -> None:
    front.hang()
    requests = [
        await runs.request(runner, "true", image=f"127.0.0.1:{front.port}/none:{number}") for number in range(PULLS + 1)
    ]
    *others, last = [Told() for _ in requests]
    pulls = [
        asyncio.create_task(runner.prepare(request, told)) for request, told in zip(requests, others, strict=False)
    ]
    for told in others:
        await told.until("pulling")

    pulls.append(asyncio.create_task(runner.prepare(requests[-1], last)))

    image = requests[-1].spec.image
    await last.until(f"waiting to pull {image}: {PULLS} other images are being pulled onto")
    front.pass_on()
    await last.until(f"pulling {image}")
    await asyncio.gather(*pulls, return_exceptions=True)
    assert last.messages == [last.messages[0], f"pulling {image}"]


# Who ends it


async def test_stopping_one_of_two_leaves_the_pull_to_the_other(runner: DockerRunner, request_of: RunRequest) -> None:
    told = Told()
    stopped = asyncio.create_task(runner.prepare(request_of, told))
    other = asyncio.create_task(runner.prepare(request_of, ignore_progress))
    await told.until(" MiB")

    stopped.cancel()

    await asyncio.wait_for(other, DEADLINE)
    assert told.messages[-1] != f"pulled {request_of.spec.image}"


async def test_pull_that_nobody_wants_any_more_ends_on_the_engine_and_can_be_asked_for_again(
    runner: DockerRunner, request_of: RunRequest, front: TcpProxy, sdk: docker.DockerClient
) -> None:
    front.pass_on(delay=10 * SLOW)
    told = Told()
    wanted = asyncio.create_task(runner.prepare(request_of, told))
    await told.until(" MiB")

    # So slow that the rest takes minutes. Not hung: Docker 20.10 heeds the end of a pull with the registry's next byte.
    front.pass_on(delay=100 * SLOW)
    assert front.connections
    wanted.cancel()

    await until("the engine has hung up on the registry", lambda: not front.connections)
    with pytest.raises(NotFound):
        sdk.images.get(request_of.spec.image)
    front.pass_on()
    await asyncio.wait_for(runner.prepare(request_of, ignore_progress), DEADLINE)


# Registries in trouble


async def test_registry_that_refuses_fails_the_pull_and_is_no_trouble_of_the_engine(
    runner: DockerRunner, request_of: RunRequest, front: TcpProxy
) -> None:
    front.refuse()

    with pytest.raises(PullFailed, match=rf"127\.0\.0\.1:{front.port}.*connection refused"):
        await runner.prepare(request_of, ignore_progress)

    assert (await runner.availability(request_of.lane)).places
    front.pass_on()
    await runner.prepare(request_of, ignore_progress)


async def test_registry_that_nobody_knows_fails_the_pull(runner: DockerRunner, runs: RunDriver) -> None:
    request = await runs.request(runner, "true", image="not-found.invalid:5000/denied/unauthorized:v1")

    with pytest.raises(PullFailed, match=r"not-found\.invalid"):
        await runner.prepare(request, ignore_progress)


@pytest.mark.parametrize("moment", ["at first", "in the middle"])
async def test_registry_that_hangs_fails_the_pull_after_the_quiet_time(
    build_runner: Build,
    docker_engine: SharedEngine,
    runs: RunDriver,
    slow_image: str,
    front: TcpProxy,
    moment: str,
) -> None:
    runner = await opened(build_runner(docker_engine.url, docker_pull_quiet_seconds=5.0))
    request, told = await runs.request(runner, "true", image=slow_image), Told()
    if moment == "at first":
        front.hang()
    pull = asyncio.create_task(runner.prepare(request, told))
    if moment == "in the middle":
        await told.until(" MiB")
        front.hang()

    with pytest.raises(PullFailed, match=f"no news of the registry 127.0.0.1:{front.port} for 5 s"):
        await asyncio.wait_for(pull, DEADLINE)

    assert (await runner.availability(request.lane)).places


async def test_registry_that_is_too_slow_fails_the_pull_after_its_time(
    build_runner: Build, docker_engine: SharedEngine, runs: RunDriver, slow_image: str, front: TcpProxy
) -> None:
    runner = await opened(build_runner(docker_engine.url, docker_pull_timeout_seconds=1.5))
    front.pass_on(delay=0.2)

    with pytest.raises(PullFailed, match=r"longer than 1\.5 s"):
        await asyncio.wait_for(
            runner.prepare(await runs.request(runner, "true", image=slow_image), ignore_progress), DEADLINE
        )


async def test_registry_that_cuts_in_the_middle_is_asked_again_by_the_engine(
    runner: DockerRunner, request_of: RunRequest, front: TcpProxy
) -> None:
    told = Told()
    pull = asyncio.create_task(runner.prepare(request_of, told))
    await told.until(" MiB")

    front.cut()

    await told.until("(retrying in")
    await asyncio.wait_for(pull, DEADLINE)


# Engines in trouble


async def test_engine_that_is_cut_off_in_the_middle_is_unavailable(
    build_runner: Build, proxy: TcpProxy, runs: RunDriver, slow_image: str
) -> None:
    runner = await opened(build_runner(proxy.url))
    told = Told()
    pull = asyncio.create_task(runner.prepare(await runs.request(runner, "true", image=slow_image), told))
    await told.until(" MiB")

    proxy.cut()

    with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{proxy.port}"):
        await asyncio.wait_for(pull, DEADLINE)


async def test_engine_that_hangs_in_the_middle_is_unavailable(
    build_runner: Build, proxy: TcpProxy, runs: RunDriver, slow_image: str
) -> None:
    runner = await opened(build_runner(proxy.url, docker_pull_quiet_seconds=5.0))
    told = Told()
    pull = asyncio.create_task(runner.prepare(await runs.request(runner, "true", image=slow_image), told))
    await told.until(" MiB")

    proxy.hang()

    with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{proxy.port}"):
        await asyncio.wait_for(pull, DEADLINE)


async def test_engine_that_is_killed_in_the_middle_is_unavailable_and_pulls_when_it_is_back(
    build_runner: Build, own_docker_engine: DockerEngine, runs: RunDriver, slow_image: str, front: TcpProxy
) -> None:
    runner = await opened(build_runner(own_docker_engine.url))
    request, told = await runs.request(runner, "true", image=slow_image), Told()
    pull = asyncio.create_task(runner.prepare(request, told))
    await told.until(" MiB")

    own_docker_engine.kill()

    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(pull, DEADLINE)
    await asyncio.to_thread(own_docker_engine.start)
    front.pass_on()
    await asyncio.wait_for(runner.prepare(request, ignore_progress), DEADLINE)


@pytest.fixture
def small_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    """An engine with room for 24 MiB."""
    folder = tmp_path_factory.mktemp("small")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={24 * MIB}", "fastlane-test", str(folder)]
    subprocess.run(mount, check=True, capture_output=True, timeout=DEADLINE)
    try:
        inner = folder / "engine"
        inner.mkdir()
        with started_engine(inner) as engine:
            yield engine
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True, timeout=DEADLINE)


async def test_full_disk_fails_the_pull(
    build_runner: Build, small_engine: DockerEngine, runs: RunDriver, push: Push
) -> None:
    runner = await opened(build_runner(small_engine.url))
    request = await runs.request(runner, "true", image=push(size=16 * MIB))

    with pytest.raises(PullFailed, match="no space left on device"):
        await runner.prepare(request, ignore_progress)

    assert (await runner.availability(request.lane)).places
