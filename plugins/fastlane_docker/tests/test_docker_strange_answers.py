"""Engines that answer, but not as they should, and loops that meet what they do not expect."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fastlane_core.contracts.storage import Storage
from fastlane_core.errors import EngineUnavailable, RunnerError, RunNotFound
from fastlane_core.testing.runner_driver import DEADLINE, RunDriver
from fastlane_docker.engines.loops import kept_going
from fastlane_docker.farm import pool
from fastlane_docker.farm.cordons import Cordon, put_cordon
from fastlane_docker.runner import DockerRunner
from tests.services.http_proxy import HttpProxy

Build = Callable[..., DockerRunner]
LANE = "docker:0"


async def until(what: str, condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not await condition():
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        await asyncio.sleep(0.05)


async def _is_offered(runner: DockerRunner) -> bool:
    return bool((await runner.availability(LANE)).places)


async def _is_out(runner: DockerRunner, words: str) -> bool:
    availability = await runner.availability(LANE)
    return not availability.places and words in availability.reason


@pytest.mark.services
@pytest.mark.parametrize("status", [401, 403, 404, 500])
async def test_whatever_but_success_answers_a_ping_is_trouble_of_the_host_until_it_is_over(
    build_runner: Build, http_proxy: HttpProxy, status: int
) -> None:
    runner = build_runner(http_proxy.url)
    await runner.open()
    await until("a ping was answered", lambda: _pinged(http_proxy))
    assert await _is_offered(runner)

    http_proxy.answer("GET /_ping", status)

    await until("it is out", lambda: _is_out(runner, f"status {status}"))
    await until("its circuit is open", lambda: _circuit_is(runner, "open"))
    http_proxy.behave()
    await until("it is offered again", lambda: _is_offered(runner))


@pytest.mark.services
@pytest.mark.parametrize(("status", "body"), [(200, "[]"), (200, "null"), (200, "{}"), (200, "words"), (403, "{}")])
async def test_what_tells_no_version_is_no_engine_until_it_does(
    build_runner: Build, http_proxy: HttpProxy, status: int, body: str
) -> None:
    http_proxy.answer("GET /version", status, body)
    runner = build_runner(http_proxy.url)
    await runner.open()

    await until("it is out", lambda: _is_out(runner, "like a Docker engine"))

    http_proxy.behave()
    await until("it is offered", lambda: _is_offered(runner))


@pytest.mark.services
async def test_an_answer_that_is_no_engine_s_is_trouble_of_the_host_and_no_word_about_a_container(
    build_runner: Build, http_proxy: HttpProxy, runs: RunDriver
) -> None:
    runner = build_runner(http_proxy.url)
    await runner.open()
    run = await runs.start(runner, "sleep 600")
    http_proxy.answer("/containers/", 404, '{"error": "no route"}')

    with pytest.raises(EngineUnavailable, match="status 404, not like a Docker engine"):
        await runner.stop(run.handle, 0.0)


@pytest.mark.services
async def test_a_run_that_another_worker_is_removing_is_discarded_without_an_error(
    build_runner: Build, http_proxy: HttpProxy, runs: RunDriver
) -> None:
    runner = build_runner(http_proxy.url)
    await runner.open()
    run = await runs.start(runner, "sleep 600")
    busy = '{"message": "removal of container is already in progress"}'
    http_proxy.answer("DELETE /containers/", 409, busy)

    await runner.discard(run.handle)

    http_proxy.answer("DELETE /containers/", 500, '{"message": "device or resource busy"}')
    with pytest.raises(RunnerError, match="device or resource busy") as raised:
        await runner.discard(run.handle)
    assert not isinstance(raised.value, EngineUnavailable)
    http_proxy.behave()
    await runner.discard(run.handle)
    with pytest.raises(RunNotFound):
        await runner.wait(run.handle)


@pytest.mark.services
@pytest.mark.parametrize("hangs", [False, True])
async def test_an_engine_that_answers_all_but_starts_opens_its_circuit(
    build_runner: Build, http_proxy: HttpProxy, runs: RunDriver, hangs: bool
) -> None:
    settings = {"docker_timeout_seconds": 1.0} if hangs else {}
    runner = build_runner(http_proxy.url, docker_circuit_breaker_reset_timeout_seconds=600.0, **settings)
    await runner.open()
    request = await runs.request(runner, "true")
    if hangs:
        http_proxy.swallow("POST /containers/create")
    else:
        http_proxy.answer("POST /containers/create", 500, '{"message": "containerd is not there"}')

    for failures in range(5):
        assert await _circuit_is(runner, "closed"), failures
        # What else is asked for is answered all the time.
        await until_pinged(http_proxy)
        with pytest.raises(EngineUnavailable):
            await runner.start(request)

    assert await _circuit_is(runner, "open")
    assert await runner.rank(LANE, "busybox", {}) == []


async def until_pinged(proxy: HttpProxy) -> None:
    before = proxy.count("GET /_ping")

    async def pinged() -> bool:
        return proxy.count("GET /_ping") > before + 1

    await until("pings were answered", pinged)


async def test_a_loop_that_crashes_is_begun_again() -> None:
    turns: list[str] = []
    went_on = asyncio.Event()

    async def loop() -> None:
        turns.append("turn")
        if len(turns) < 3:
            raise TypeError("not expected")
        went_on.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(kept_going("loop", loop, pause=0.0))
    try:
        await asyncio.wait_for(went_on.wait(), DEADLINE)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


async def test_cordons_are_learned_after_a_look_that_failed_in_no_known_way(
    build_runner: Build, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = build_runner("127.0.0.1:1")
    await runner.open()
    failed = asyncio.Event()
    look = pool.cordons

    async def fail(storage: Storage) -> Any:
        failed.set()
        raise TypeError("not expected")

    monkeypatch.setattr(pool, "cordons", fail)
    await asyncio.wait_for(failed.wait(), DEADLINE)
    monkeypatch.setattr(pool, "cordons", look)
    await put_cordon(storage, "127.0.0.1:1", Cordon(since=1.0))

    await until("the cordon is known", lambda: _is_blacklisted(runner))


async def _is_blacklisted(runner: DockerRunner) -> bool:
    health: Any = (await runner.health())["hosts"]
    return bool(health[0]["blacklisted"])


async def _pinged(proxy: HttpProxy) -> bool:
    return proxy.count("GET /_ping") > 1


async def _circuit_is(runner: DockerRunner, *wanted: str) -> bool:
    health: Any = (await runner.health())["hosts"]
    return health[0]["circuit"] in wanted
