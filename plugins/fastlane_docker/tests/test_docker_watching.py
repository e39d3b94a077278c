"""Hearing of ends: by events, without them by lists, and at a cost that does not grow with the runs waited for."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import docker
import pytest

from fastlane_core.errors import EngineUnavailable
from fastlane_core.models import JsonObject, Reason, RunOutcome
from fastlane_core.testing.runner_driver import DEADLINE, RunDriver, StartedRun
from fastlane_docker.engines.addresses import parse_address
from fastlane_docker.engines.engine import Engine
from fastlane_docker.runner import DockerRunner
from fastlane_docker.runs import containers
from tests.services.fixtures import SharedEngine
from tests.services.http_proxy import HttpProxy

pytestmark = pytest.mark.services

Build = Callable[..., DockerRunner]
#: Far longer than any test: what happens must have been told by something else.
NEVER = 3600.0
ONE_CONTAINER = r"/containers/(?!json|create)"


@pytest.fixture
def http_proxy(docker_engine: SharedEngine) -> Iterator[HttpProxy]:
    """A proxy that counts and mutes requests, in front of the shared engine."""
    scheme, _, where = docker_engine.url.partition("://")
    if scheme != "tcp":
        pytest.skip("the shared engine does not listen on TCP, so no proxy can stand before it")
    name, _, port = where.partition(":")
    with HttpProxy((name, int(port))) as proxy:
        yield proxy


async def opened(runner: DockerRunner) -> DockerRunner:
    await runner.open()
    return runner


async def until(what: str, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.02)
    assert condition(), what


class Waiting:
    """Runs that are waited for and followed, as core does it with every run."""

    def __init__(self, runs: Sequence[StartedRun]) -> None:
        self._tasks = [asyncio.create_task(self._look_after(run)) for run in runs]

    async def _look_after(self, run: StartedRun) -> RunOutcome:
        following = asyncio.create_task(run.logs())
        try:
            return await run.wait()
        finally:
            await following

    @property
    def ended(self) -> int:
        """How many have ended."""
        return sum(task.done() for task in self._tasks)

    async def outcomes(self) -> list[RunOutcome]:
        """All of them, once they have ended."""
        return await asyncio.gather(*self._tasks)


async def test_end_is_heard_by_its_event(build_runner: Build, docker_engine: SharedEngine, runs: RunDriver) -> None:
    runner = await opened(build_runner(docker_engine.url, docker_reconcile_seconds=NEVER))
    run = await runs.start(runner, "sh -c 'echo ready; exec sleep 600'")
    waiting = Waiting([run])
    await run.until_ready()

    await run.stop(0, by=await opened(build_runner(docker_engine.url)))

    assert [outcome.exit_code for outcome in await waiting.outcomes()] == [137]


async def test_success_is_told_by_events_alone_and_as_the_engine_has_it(
    build_runner: Build, http_proxy: HttpProxy, runs: RunDriver, sdk: docker.DockerClient
) -> None:
    asked = r"^GET /containers/[0-9a-f]+/json"
    runner = await opened(build_runner(http_proxy.url, docker_reconcile_seconds=NEVER))
    async with asyncio.timeout(DEADLINE):
        # The stream is opened for the first one, which may be gone by then.
        while True:
            before = http_proxy.count(asked)
            run = await runs.start(runner, "sleep 0.2")
            outcome = await run.wait()
            if http_proxy.count(asked) == before:
                break

    truth = containers.outcome(sdk.containers.get(run.handle.data["container"]).attrs["State"])
    assert (outcome.exit_code, outcome.reason) == (truth.exit_code, truth.reason) == (0, Reason.SUCCEEDED)
    for told, true in ((outcome.started_at, truth.started_at), (outcome.finished_at, truth.finished_at)):
        assert told is not None
        assert told == pytest.approx(true, abs=1.0)
    assert outcome.finished_at - outcome.started_at > 0.1
    # Engines copy labels over the attributes of their events.
    labels: JsonObject = {"labels": {"exitCode": "0"}}
    failed = await (await runs.start(runner, "sh -c 'exit 3'", options={"docker": labels})).wait()
    assert (failed.exit_code, failed.reason) == (3, Reason.EXIT_CODE)
    assert http_proxy.count(asked) == before + 1


async def test_end_whose_event_is_lost_is_noticed_by_the_list(
    build_runner: Build, http_proxy: HttpProxy, runs: RunDriver
) -> None:
    http_proxy.mute("^GET /events")
    runner = await opened(build_runner(http_proxy.url, docker_reconcile_seconds=0.5))
    lost, other = [await runs.start(runner, "sh -c 'echo ready; exec sleep 600'") for _ in range(2)]
    waiting = [Waiting([run]) for run in (lost, other)]
    for run in (lost, other):
        await run.until_ready()
    await until("the stream is open", lambda: http_proxy.count("^GET /events") > 0)

    await lost.stop(0)

    assert [outcome.exit_code for outcome in await waiting[0].outcomes()] == [137]
    assert http_proxy.count("^GET /events") == 1, "the stream was opened anew, which lists as well"
    assert waiting[1].ended == 0
    await other.stop(0)
    await waiting[1].outcomes()


async def test_list_comes_at_its_interval_however_busy_the_stream_is(
    build_runner: Build, http_proxy: HttpProxy, runs: RunDriver
) -> None:
    runner = await opened(build_runner(http_proxy.url, docker_reconcile_seconds=0.3))
    run = await runs.start(runner, "sh -c 'echo ready; exec sleep 600'")
    waiting = Waiting([run])
    await run.until_ready()
    before = http_proxy.count("^GET /containers/json")
    short = 0
    while http_proxy.count("^GET /containers/json") < before + 5:
        # Each of these is an event.
        await (await runs.start(runner, "true")).wait()
        short += 1
        assert short < 100

    await run.stop(0)
    await waiting.outcomes()


async def test_stream_that_cannot_be_opened_costs_no_call_per_container(
    build_runner: Build, http_proxy: HttpProxy, runs: RunDriver
) -> None:
    http_proxy.cut_off("^GET /events")
    runner = await opened(build_runner(http_proxy.url, docker_reconcile_seconds=0.5))
    started = [await runs.start(runner, "sh -c 'echo ready; exec sleep 600'") for _ in range(3)]
    waiting = Waiting(started)
    for run in started:
        await run.until_ready()
    lists = http_proxy.count("^GET /containers/json")
    await until("what they ask at first is answered", lambda: http_proxy.count("^GET /containers/json") > lists + 1)
    before, tries = http_proxy.count(ONE_CONTAINER), http_proxy.count("^GET /events")

    await until("the stream is tried again", lambda: http_proxy.count("^GET /events") > tries + 1)

    assert http_proxy.count(ONE_CONTAINER) == before
    for run in started:
        await run.stop(0)
    await waiting.outcomes()


@pytest.mark.parametrize("count", [2, 20])
async def test_waiting_costs_one_list_an_interval_however_many_wait(
    count: int, build_runner: Build, http_proxy: HttpProxy, runs: RunDriver
) -> None:
    runner = await opened(build_runner(http_proxy.url, docker_reconcile_seconds=0.5))
    started = [await runs.start(runner, "sh -c 'echo ready; exec sleep 600'") for _ in range(count)]
    waiting = Waiting(started)
    for run in started:
        await run.until_ready()
    # Until what they ask at first is answered.
    lists = http_proxy.count("^GET /containers/json")
    await until("it is quiet", lambda: http_proxy.count("^GET /containers/json") > lists + 1)
    begun = len(http_proxy.requests)

    lists = http_proxy.count("^GET /containers/json")
    await until("ten lists were made", lambda: http_proxy.count("^GET /containers/json") >= lists + 10)

    asked = [request for request in http_proxy.requests[begun:] if "/_ping" not in request]
    assert waiting.ended == 0
    # Besides, the stream may have been opened anew, and images listed.
    assert len(asked) < 15, asked
    assert not [request for request in asked if re.search(ONE_CONTAINER, request)]
    by = build_runner(http_proxy.url)
    await asyncio.gather(*(run.stop(0, by=by) for run in started))
    assert len(await waiting.outcomes()) == count


async def test_silent_log_is_followed_on_for_longer_than_calls_may_take(
    build_runner: Build, docker_engine: SharedEngine, http_proxy: HttpProxy, runs: RunDriver
) -> None:
    run = await runs.start(await opened(build_runner(docker_engine.url)), "sh -c 'echo ready; sleep 6; echo late'")
    http_proxy.announces_close = True
    runner = build_runner(http_proxy.url, docker_timeout_seconds=3.0, docker_reconcile_seconds=NEVER)
    await runner.open()
    handle = replace(run.handle, data={**run.handle.data, "host": http_proxy.url.removeprefix("tcp://")})

    assert (await StartedRun(runner=runner, request=run.request, handle=handle).written()).stdout == b"ready\nlate\n"

    assert http_proxy.count("/logs.*follow=1") == 1


async def test_opening_and_closing_leaves_no_thread_and_no_socket(
    build_runner: Build, docker_engine: SharedEngine, runs: RunDriver
) -> None:
    keeper = await opened(build_runner(docker_engine.url))
    run = await runs.start(keeper, "sh -c 'echo ready; exec sleep 600'")
    await run.until_ready()
    await keeper.close()

    async def once() -> None:
        runner = await opened(build_runner(docker_engine.url, docker_keep_seconds=10))
        by = StartedRun(runner=runner, request=run.request, handle=run.handle)
        waiting = asyncio.create_task(by.wait())
        await by.until_ready()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await runner.close()

    def left() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("docker")]

    await until("threads have ended", lambda: not left())
    sockets = _sockets()
    for _ in range(10):
        await once()

    async with asyncio.timeout(20):
        # Not only once the event streams were quiet for long.
        await until("threads have ended", lambda: not left())
    await until("sockets are closed", lambda: _sockets() <= sockets)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    by = await opened(build_runner(docker_engine.url))
    await run.stop(0, by=by)


async def test_engine_that_is_closed_while_it_connects_keeps_no_connection(http_proxy: HttpProxy) -> None:
    sockets = _sockets()
    engine = Engine(parse_address(http_proxy.url), 10.0, lambda kind, why: None)
    http_proxy.hold_next("^GET /version")
    calling = asyncio.create_task(engine.call("ping", lambda client: client.ping()))
    await until("it connects", http_proxy.holding.is_set)

    engine.close()
    http_proxy.let_go()

    with pytest.raises(EngineUnavailable, match="has closed its connections"):
        await calling
    await until("sockets are closed", lambda: _sockets() <= sockets)
    assert http_proxy.count("/_ping") == 0


def _sockets() -> int:
    found = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
        except FileNotFoundError:
            continue
    return found
