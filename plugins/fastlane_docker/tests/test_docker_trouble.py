"""Engines that refuse, hang, are cut off, die and come back, and workers that die."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import docker
import pytest

from fastlane_core.errors import EngineUnavailable, StartLost, StorageUnavailable
from fastlane_core.models import Output, Reason, RunRequest
from fastlane_core.testing.runner_driver import DEADLINE, RunDriver, StartedRun, Written, ignore_progress
from fastlane_docker.runner import DockerRunner
from tests.services.docker_engine import DockerEngine
from tests.services.fixtures import SharedEngine, started_engine
from tests.services.tcp_proxy import TcpProxy

pytestmark = pytest.mark.services

Build = Callable[..., DockerRunner]


async def until(what: str, condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not await condition():
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        await asyncio.sleep(0.05)


def sh(script: str) -> str:
    return f"sh -c '{script}'"


async def opened(runner: DockerRunner) -> DockerRunner:
    await runner.open()
    return runner


async def test_engine_that_refuses_is_unavailable_and_comes_back(
    build_runner: Build, proxy: TcpProxy, runs: RunDriver
) -> None:
    runner = await opened(build_runner(proxy.url))
    request = await runs.request(runner, "echo hi")
    proxy.refuse()

    with pytest.raises(EngineUnavailable, match=f"127.0.0.1:{proxy.port}.*refused"):
        await runner.prepare(request, ignore_progress)
    with pytest.raises(EngineUnavailable):
        await runner.start(request)
    with pytest.raises(EngineUnavailable):
        _ = [owned async for owned in runner.list_owned(request.place)]

    async def is_out() -> bool:
        return not (await runner.availability(request.lane)).places

    await until("the lane has no place", is_out)
    assert "cannot be reached" in (await runner.availability(request.lane)).reason

    async def is_told() -> bool:
        hosts: Any = (await runner.health())["hosts"]
        (host,) = hosts
        assert (host["available"], host["port"]) == (False, proxy.port)
        return "refused" in host["error"]

    await until("the host's error says that it refuses", is_told)
    assert [report.error != "" for report in await runner.prune(older_than=0, dry_run=False)] == [True]

    proxy.pass_on()

    async def is_back() -> bool:
        return bool((await runner.availability(request.lane)).places)

    await until("the lane has a place", is_back)
    run = await runs.start_request(runner, request)
    assert (await run.written()).stdout == b"hi\n"


async def test_engine_that_hangs_delays_no_other(
    build_runner: Build, proxy: TcpProxy, docker_engine: SharedEngine, runs: RunDriver
) -> None:
    runner = await opened(build_runner(proxy.url, docker_engine.url))
    place = docker_engine.url.removeprefix("tcp://")
    stuck_request = await runs.request(runner, "true")
    proxy.hang()
    hanging = [asyncio.create_task(runner.start(_at(stuck_request, f"127.0.0.1:{proxy.port}"))) for _ in range(100)]
    await asyncio.sleep(0)

    run = await runs.start_request(runner, _at(await runs.request(runner, "echo hi"), place))

    assert (await run.written()).stdout == b"hi\n"
    assert (await run.wait()).exit_code == 0
    assert not any(task.done() for task in hanging)

    async def is_out() -> bool:
        return list((await runner.availability("docker:0")).places) == [place]

    await until("the hanging engine is offered no more", is_out)
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)


async def test_call_to_an_engine_that_hangs_ends_in_time(build_runner: Build, proxy: TcpProxy, runs: RunDriver) -> None:
    runner = await opened(build_runner(proxy.url, docker_timeout_seconds=1.0))
    request = await runs.request(runner, "true")
    proxy.hang()

    calls = [asyncio.create_task(runner.prepare(request, ignore_progress)) for _ in range(40)]
    errors = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), DEADLINE)

    assert {type(error) for error in errors} == {EngineUnavailable}


async def test_slow_engine_gives_exact_results(build_runner: Build, proxy: TcpProxy, runs: RunDriver) -> None:
    runner = await opened(build_runner(proxy.url))
    proxy.pass_on(delay=0.05)

    run = await runs.start(runner, sh("echo out; echo err >&2; exit 3"))

    assert await run.written() == Written(stdout=b"out\n", stderr=b"err\n")
    assert (await run.wait()).exit_code == 3


async def test_whoever_waits_hears_that_the_engine_hangs(build_runner: Build, proxy: TcpProxy, runs: RunDriver) -> None:
    runner = await opened(build_runner(proxy.url))
    run = await runs.start(runner, sh("echo ready; exec sleep 60"))
    waiting = asyncio.create_task(runner.wait(run.handle))
    await run.until_ready()
    proxy.hang()

    with pytest.raises(EngineUnavailable) as first:
        await asyncio.wait_for(waiting, DEADLINE)
    with pytest.raises(EngineUnavailable) as second:
        await run.wait()
    assert (first.value.had_answered, second.value.had_answered) == (True, False)

    proxy.pass_on()
    await run.stop(0, by=await opened(build_runner(proxy.url)))


async def test_log_goes_on_exactly_after_the_connection_was_cut(
    build_runner: Build, proxy: TcpProxy, runs: RunDriver
) -> None:
    runner = await opened(build_runner(proxy.url))
    run = await runs.start(runner, sh("for i in $(seq 1 60); do echo $i; echo e$i >&2; sleep 0.05; done; printf end"))
    outputs: list[Output] = []
    cuts = 0
    while True:
        try:
            async for output in runner.logs(run.handle, after=outputs[-1].position if outputs else None, follow=True):
                outputs.append(output)
                if len(outputs) >= 20 * (cuts + 1) and cuts < 4:
                    cuts += 1
                    proxy.cut()
            break
        except EngineUnavailable:
            continue

    numbers = range(1, 61)
    assert Written.of(outputs) == Written(
        stdout=b"".join(b"%d\n" % number for number in numbers) + b"end",
        stderr=b"".join(b"e%d\n" % number for number in numbers),
    )
    assert cuts


async def test_wait_outlives_cuts_of_the_event_stream(build_runner: Build, proxy: TcpProxy, runs: RunDriver) -> None:
    runner = await opened(build_runner(proxy.url))
    run = await runs.start(runner, sh("sleep 1; exit 6"))

    async def wait() -> int | None:
        while True:
            try:
                return (await runner.wait(run.handle)).exit_code
            except EngineUnavailable:
                continue

    waiting = asyncio.create_task(wait())
    while not waiting.done():
        proxy.cut()
        await asyncio.wait([waiting], timeout=0.1)

    assert await waiting == 6


@pytest.fixture
def surviving_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    """An engine whose containers live on while its daemon is down."""
    with started_engine(tmp_path_factory.mktemp("live"), arguments=("--live-restore",)) as engine:
        yield engine


async def test_run_that_outlives_its_engine_s_daemon_is_followed_to_its_end(
    build_runner: Build, surviving_engine: DockerEngine, runs: RunDriver
) -> None:
    engine = surviving_engine
    runner = await opened(build_runner(engine.url))
    run = await runs.start(runner, sh("echo begin; sleep 10; echo end; exit 5"))
    await run.logs_until(lambda outputs: b"begin" in Written.of(outputs).stdout)
    waiting = asyncio.create_task(runner.wait(run.handle))

    engine.kill()

    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(waiting, DEADLINE)
    await asyncio.to_thread(engine.start)
    outcome = await run.wait()
    assert (outcome.exit_code, outcome.reason) == (5, Reason.EXIT_CODE)
    assert (await run.written()).stdout == b"begin\nend\n"


async def test_run_that_ends_with_its_engine_is_told(build_runner: Build, own_docker_engine: DockerEngine) -> None:
    engine = own_docker_engine
    runs = RunDriver(deployment_id="restarted", image="busybox:latest")
    runner = await opened(build_runner(engine.url, deployment="restarted"))
    run = await runs.start(runner, sh("echo begin; exec sleep 600"))
    await run.logs_until(lambda outputs: b"begin" in Written.of(outputs).stdout)

    engine.kill()
    await asyncio.to_thread(engine.start)

    outcome = await run.wait()
    assert (outcome.reason, outcome.exit_code in (137, 143)) == (Reason.ENGINE_LOST, True)
    assert (await run.written()).stdout == b"begin\n"
    again = await runs.start_request(runner, run.request)
    assert await again.wait() == outcome


async def test_run_that_its_engine_ends_to_end_itself_is_told_from_one_that_was_killed(
    build_runner: Build, own_docker_engine: DockerEngine
) -> None:
    engine = own_docker_engine
    runs = RunDriver(deployment_id="restarted", image="busybox:latest")
    runner = await opened(build_runner(engine.url, deployment="restarted"))
    killed = await runs.start(runner, sh("exit 137"))
    assert (await killed.wait()).reason is Reason.SIGNAL
    run = await runs.start(runner, sh("exec sleep 600"))
    waiting = asyncio.create_task(runner.wait(run.handle))

    await asyncio.to_thread(engine.stop)
    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(waiting, DEADLINE)
    await asyncio.to_thread(engine.start)

    assert (await run.wait()).reason is Reason.ENGINE_LOST


#: A worker that starts a run, or gets half way, and is killed.
VICTIM = """
import asyncio, os, signal, sys
from fastlane_core.models import RunRequest, RunSpec
from fastlane_core.testing.runner_context import runner_context
from fastlane_docker.engines.addresses import parse_address
from fastlane_docker.engines.client import Client
from fastlane_docker.runs.creating import create
from fastlane_docker.options.policies import resolve
from fastlane_docker.runner import DockerRunner
from fastlane_docker.settings import DockerSettings

url, deployment, execution, script, moment = sys.argv[1:]
settings = DockerSettings.model_validate({"docker_hosts": [{"hosts": [url]}]})
request = RunRequest(
    execution_id=execution, job_id="job", task_id="suite", argv=("sh", "-c", script), lane="docker:0", fence=1,
    spec=RunSpec(image="busybox:latest", command="", timeout=60), place=parse_address(url).key,
    deployment_id=deployment, max_log_bytes=1 << 20,
)
if moment == "created":
    create(Client.connected(url, 30, connections=4), request, resolve(None, request.spec), settings)
else:
    asyncio.run(DockerRunner(runner_context(settings, deployment_id=deployment)).start(request))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["created", "started"])
async def test_run_of_a_worker_that_was_killed_is_adopted(
    moment: str,
    runner: DockerRunner,
    runs: RunDriver,
    docker_engine: SharedEngine,
    sdk: docker.DockerClient,
) -> None:
    script = "echo begin; sleep 1; echo end"
    request = await runs.request(runner, sh(script))
    victim = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", VICTIM, docker_engine.url, request.deployment_id, request.execution_id, script, moment],
        timeout=DEADLINE,
        check=False,
    )
    assert victim.returncode == -signal.SIGKILL
    owned = await runs.owned(runner, request.place)
    assert owned[request.execution_id].running is (moment == "started")

    run = await runs.start_request(runner, request)

    assert (await run.written()).stdout == b"begin\nend\n"
    assert (await run.wait()).exit_code == 0
    names = [each.name for each in sdk.containers.list(all=True, filters={"name": request.execution_id})]
    assert names == [f"fastlane-job-{request.execution_id}"]


async def test_run_that_its_engine_may_have_started_before_it_went_down_is_not_started_again(
    build_runner: Build, own_docker_engine: DockerEngine
) -> None:
    engine = own_docker_engine
    runs = RunDriver(deployment_id="restarted", image="busybox:latest")
    runner = await opened(build_runner(engine.url, deployment="restarted"))
    request = await runs.request(runner, "true")
    arguments = [engine.url, request.deployment_id, request.execution_id, "true", "created"]
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", VICTIM, *arguments], timeout=DEADLINE, check=False)
    assert request.execution_id in await runs.owned(runner, request.place)

    engine.kill()
    await asyncio.to_thread(engine.start)

    # A worker may die, or lose the execution to another, before it has recorded what it was told.
    for _ in range(2):
        with pytest.raises(StartLost, match=f"127.0.0.1:{engine.port} may have started it"):
            await runs.start_request(runner, request)
    left = (await runs.owned(runner, request.place))[request.execution_id]
    assert not left.running
    await runner.discard(left.handle)
    assert await runs.owned(runner, request.place) == {}


async def test_storage_that_hangs_before_a_start_is_no_trouble_of_the_engine(
    build_runner: Build, docker_engine: SharedEngine, runs: RunDriver
) -> None:
    async def hang(request: RunRequest) -> None:
        await asyncio.Event().wait()

    runner = build_runner(docker_engine.url, confirm_start=hang, docker_timeout_seconds=12.0)
    await runner.open()
    request = await runs.request(runner, "true")

    with pytest.raises(StorageUnavailable, match=f"whether execution {request.execution_id} may be started"):
        await runs.start_request(runner, request)

    (host,) = _hosts(await runner.health())
    assert (host["available"], host["circuit"]) == (True, "closed")


async def test_worker_that_comes_too_late_starts_nothing(
    runner: DockerRunner, runs: RunDriver, sdk: docker.DockerClient
) -> None:
    run = await runs.start(runner, "echo once")
    outcome = await run.wait()
    await runner.finish(run.handle)

    late = StartedRun(runner=runner, request=run.request, handle=await runner.start(run.request))

    assert await late.wait() == outcome
    assert (await late.written()).stdout == b"once\n"
    names = [each.name for each in sdk.containers.list(all=True, filters={"name": run.request.execution_id})]
    assert names == [f"defunct-fastlane-job-{run.request.execution_id}"]


def _hosts(health: Any) -> Any:
    return health["hosts"]


def _at(request: RunRequest, place: str) -> RunRequest:
    return replace(request, place=place)
