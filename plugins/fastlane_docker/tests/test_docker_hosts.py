"""Which hosts get new runs: blacklisted ones, drained ones, troubled ones, and how runs are spread over the rest."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from quart.typing import TestClientProtocol as Client

from fastlane_core.api import create_api
from fastlane_core.app import open_application
from fastlane_core.contracts.storage import Storage
from fastlane_core.errors import ImageNotFound
from fastlane_core.models import Reason
from fastlane_core.testing.runner_driver import DEADLINE, RunDriver, ignore_progress
from fastlane_docker.farm.cordons import Cordon, Then, cordons, lift_cordon, put_cordon
from fastlane_docker.runner import DockerRunner
from tests.services.fixtures import SharedEngine
from tests.services.registry import Registry
from tests.services.tcp_proxy import TcpProxy

Build = Callable[..., DockerRunner]
LANE = "docker:0"


async def until(what: str, condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not await condition():
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        await asyncio.sleep(0.05)


# Placement


async def test_runs_go_to_the_least_loaded_host_by_weight_and_ties_at_random(build_runner: Build) -> None:
    runner = build_runner("a", {"host": "b", "weight": 2}, {"host": "c", "maxRunning": 3})

    assert (await runner.availability(LANE)).places == {"a:2375": 8, "b:2375": 8, "c:2375": 3}
    ranked = await runner.rank(LANE, "busybox", {"a:2375": 2, "b:2375": 3, "c:2375": 1})
    assert ranked == ["c:2375", "b:2375", "a:2375"]
    firsts = Counter([(await runner.rank(LANE, "busybox", {}))[0] for _ in range(300)])
    assert min(firsts[host] for host in ("a:2375", "b:2375", "c:2375")) > 50


async def test_a_blacklisted_host_is_offered_no_more_at_once_and_by_no_worker(
    build_runner: Build, storage: Storage
) -> None:
    one, other = build_runner("a", "b"), build_runner("a", "b")

    await put_cordon(storage, "a:2375", Cordon(since=1.0))

    for runner in (one, other):
        offered = [await runner.is_offered(LANE, place) for place in ("a:2375", "b:2375")]
        assert offered == [False, True]
        assert await runner.rank(LANE, "busybox", {}) == ["b:2375"]
        assert list((await runner.availability(LANE)).places) == ["b:2375"]
        assert (await runner.availability(LANE)).reached == {"a:2375", "b:2375"}
    await put_cordon(storage, "b:2375", Cordon(since=1.0))
    assert await one.rank(LANE, "busybox", {}) == []
    assert (await one.availability(LANE)).reached == {"a:2375", "b:2375"}
    assert (await one.availability(LANE)).reason == "every host of farm 0 is blacklisted"
    health: Any = (await one.health())["hosts"]
    assert [(host["blacklisted"], host["available"], host["error"]) for host in health] == [
        (True, False, "server is blacklisted")
    ] * 2
    await lift_cordon(storage, "a:2375")
    assert await other.rank(LANE, "busybox", {}) == ["a:2375"]


# Circuits


@pytest.mark.services
async def test_an_engine_that_refuses_opens_its_circuit_and_one_that_answers_closes_it(
    build_runner: Build, proxy: TcpProxy
) -> None:
    runner = build_runner(proxy.url, docker_circuit_breaker_reset_timeout_seconds=0.5)
    await runner.open()

    async def circuit_is(*wanted: str) -> bool:
        health: Any = (await runner.health())["hosts"]
        return health[0]["circuit"] in wanted

    assert await circuit_is("closed")
    proxy.refuse()
    await until("the circuit is open", lambda: circuit_is("open"))
    assert await runner.rank(LANE, "busybox", {}) == []
    availability = await runner.availability(LANE)
    assert "the circuit of the Docker host" in availability.reason
    assert not availability.reached

    proxy.pass_on()

    await until("the circuit is closed", lambda: circuit_is("closed"))
    assert len(await runner.rank(LANE, "busybox", {})) == 1


@pytest.mark.services
async def test_images_and_containers_in_trouble_leave_the_circuit_closed(
    build_runner: Build, docker_engine: SharedEngine, runs: RunDriver, registry: Registry
) -> None:
    runner = build_runner(docker_engine.url, docker_circuit_breaker_max_fails=1)
    await runner.open()

    for _ in range(3):
        request = await runs.request(runner, "true", image=f"{registry.address}/no/such-image:none")
        with pytest.raises(ImageNotFound):
            await runner.prepare(request, ignore_progress)
        run = await runs.start(runner, "no-such-command")
        assert (await run.wait()).reason is Reason.COMMAND_NOT_FOUND

    health: Any = (await runner.health())["hosts"]
    assert (health[0]["circuit"], health[0]["available"]) == ("closed", True)


# Drains


@pytest.mark.services
async def test_a_drain_stops_what_still_runs_when_its_deadline_has_passed(
    build_runner: Build, docker_engine: SharedEngine, runs: RunDriver, storage: Storage
) -> None:
    runner = build_runner(docker_engine.url)
    await runner.open()
    run = await runs.start(runner, "sh -c 'trap \"exit 3\" TERM; echo ready; while true; do sleep 0.1; done'")
    well = await runs.start(runner, "sh -c 'trap \"exit 0\" TERM; echo ready; while true; do sleep 0.1; done'")
    for each in (run, well):
        await each.until_ready()
    waits = [asyncio.create_task(each.wait()) for each in (run, well)]
    place = run.request.place
    await put_cordon(storage, place, Cordon(since=1.0, drains=True, deadline=time.time(), then=Then.STOP))

    outcome, ended_well = await asyncio.gather(*waits)
    assert (outcome.reason, outcome.exit_code) == (Reason.DRAINED, 3)
    assert place in outcome.message
    assert (ended_well.reason, ended_well.exit_code) == (Reason.SUCCEEDED, 0)


@pytest.mark.services
async def test_a_drain_gives_runs_the_grace_of_the_settings_or_their_own(
    build_runner: Build, docker_engine: SharedEngine, runs: RunDriver, storage: Storage
) -> None:
    runner = build_runner(docker_engine.url, stop_grace_seconds=0.0)
    await runner.open()
    command = "sh -c 'trap \"sleep 3; exit 3\" TERM; echo ready; while true; do sleep 0.1; done'"
    usual = await runs.start(runner, command)
    own = await runs.start(runner, command, options={"docker": {"stopGrace": 600}})
    for each in (usual, own):
        await each.until_ready()
    waits = [asyncio.create_task(each.wait()) for each in (usual, own)]
    cordon = Cordon(since=1.0, drains=True, deadline=time.time(), then=Then.STOP)
    await put_cordon(storage, usual.request.place, cordon)

    killed, ended = await asyncio.gather(*waits)
    assert (killed.reason, killed.exit_code) == (Reason.DRAINED, 137)
    assert (ended.reason, ended.exit_code) == (Reason.DRAINED, 3)


# The routes

FARMS = [{"name": "x", "match": "", "hosts": ["docker1", "docker2:1234", "https://docker4", "unix:///run/docker.sock"]}]


#: How a host may be named, and which it is.
NAMES = [
    ("docker1", "docker1:2375"),
    ("docker2", "docker2:1234"),
    ("tcp://docker1", "docker1:2375"),
    ("tcp://docker4", "docker4:2376"),
    ("unix:///run/docker.sock", "unix:///run/docker.sock"),
]


@asynccontextmanager
async def api(tmp_path: Path) -> AsyncIterator[tuple[Client, Storage]]:
    overrides = {"SQLITE_PATH": str(tmp_path / "api.db"), "DOCKER_HOSTS": json.dumps(FARMS), "RUNNERS": ["docker"]}
    async with open_application(overrides=overrides) as application:
        context = application.api_context(host="127.0.0.1", port=1, closing=asyncio.Event())
        yield create_api(context, application.blueprints).test_client(), application.storage


@pytest.mark.parametrize("path", ["/docker-executor/blacklist", "/docker-executor/blacklist/"])
@pytest.mark.parametrize(("add", "remove"), [("POST", "DELETE"), ("PUT", "DEL")])
async def test_hosts_are_blacklisted_and_taken_back_as_clients_know_it(
    tmp_path: Path, path: str, add: str, remove: str
) -> None:
    async with api(tmp_path) as (client, storage):
        for text, host in NAMES:
            answer = await client.open(path, method=add, data=json.dumps({"host": text}))
            assert (answer.status_code, await answer.get_data()) == (200, b"")
            assert list(await cordons(storage)) == [host]
            listed = json.loads(await (await client.get(path)).get_data())
            assert [each["host"] for each in listed["hosts"]] == [host]
            for _ in range(2):
                answer = await client.open(path, method=remove, data=json.dumps({"host": text}))
                assert (answer.status_code, await answer.get_data()) == (200, b"")
            assert not await cordons(storage)


@pytest.mark.parametrize(
    ("body", "field", "part"),
    [
        (b"", "", "JSON object"),
        (b"[]", "", "JSON object"),
        (b"{", "", "JSON object"),
        (b"{}", "host", "a host that a farm names"),
        (b'{"host": 5}', "host", "a host that a farm names"),
        (b'{"host": "docker3"}', "host", "docker1:2375, docker2:1234, docker4:2376, unix:///run/docker.sock"),
        (b'{"host": "docker2:2375"}', "host", "docker1:2375, docker2:1234"),
        (b'{"host": "docker1", "deadline": "soon"}', "deadline", "10m"),
        (b'{"host": "docker1", "deadline": -1}', "deadline", "10m"),
        (b'{"host": "docker1", "deadline": "99d"}', "deadline", "30 days"),
        (b'{"host": "docker1", "then": "kill"}', "then", '"stop" or "wait"'),
        (b'{"host": "docker1", "then": "stop"}', "deadline", "is missing"),
        (b'{"host": "docker1", "hots": 1}', "hots", "JSON object"),
    ],
)
async def test_bad_requests_are_refused_with_the_field(tmp_path: Path, body: bytes, field: str, part: str) -> None:
    async with api(tmp_path) as (client, storage):
        answer = await client.post("/docker-executor/blacklist", data=body)

        told = json.loads(await answer.get_data())
        assert (answer.status_code, told["field"]) == (400, field)
        assert part in told["error"]
        assert not await cordons(storage)


async def test_a_drain_keeps_its_deadline_and_what_is_to_become_of_runs(tmp_path: Path) -> None:
    async with api(tmp_path) as (client, storage):
        body = {"host": "docker1", "deadline": "10m", "then": "stop"}
        begun = time.time()
        assert (await client.post("/docker-executor/blacklist", data=json.dumps(body))).status_code == 200

        (cordon,) = (await cordons(storage)).values()
        assert cordon.deadline is not None
        assert begun + 600 <= cordon.deadline <= time.time() + 600
        assert (cordon.drains, cordon.then) == (True, Then.STOP)
        assert not cordon.stops_runs(cordon.deadline - 1)
        assert cordon.stops_runs(cordon.deadline)
