"""Removing processed containers without being asked: at once, or on a schedule that all workers share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace

import docker
import pytest
from docker.errors import NotFound

from fastlane_core.contracts.runner import PruneReport
from fastlane_core.contracts.storage import Storage
from fastlane_core.errors import FastlaneError, RunNotFound
from fastlane_core.models import RunRequest
from fastlane_core.testing.runner_context import runner_context
from fastlane_core.testing.runner_driver import RunDriver, StartedRun
from fastlane_docker.runner import DockerRunner
from fastlane_docker.runs import starting
from fastlane_docker.runs.retention import Retention, turn_seconds
from fastlane_docker.settings import DockerSettings
from tests.services.fixtures import SharedEngine

Build = Callable[..., DockerRunner]


class Clock:
    """Time that the test moves on."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """One worker's part, and what it pruned."""

    def __init__(self, storage: Storage, hosts: list[str], clock: Clock) -> None:
        self.pruned: Counter[str] = Counter()
        self.hangs = asyncio.Event()
        self.hangs.set()
        self.retention = Retention(storage, hosts, self._prune, clock=clock, every=60.0)

    async def _prune(self, host: str) -> PruneReport:
        self.pruned[host] += 1
        await self.hangs.wait()
        return PruneReport(place=host, error="it is out of reach" if host == "bad" else "")


async def test_each_host_is_pruned_by_one_worker_each_turn(storage: Storage) -> None:
    clock = Clock()
    hosts = [f"host{number}" for number in range(20)]
    workers = [Worker(storage, hosts, clock) for _ in range(5)]

    for turn in range(1, 4):
        await asyncio.gather(*(worker.retention.prune_due() for worker in workers))
        await asyncio.gather(*(worker.retention.prune_due() for worker in workers))

        total = sum((worker.pruned for worker in workers), Counter[str]())
        assert total == Counter(dict.fromkeys(hosts, turn))
        clock.now += 60.0


async def test_worker_that_dies_in_its_turn_costs_that_turn_only(storage: Storage) -> None:
    clock = Clock()
    victim, heir = (Worker(storage, ["one"], clock) for _ in range(2))
    victim.hangs.clear()
    dying = asyncio.create_task(victim.retention.prune_due())
    while not victim.pruned:
        await asyncio.sleep(0.01)

    await heir.retention.prune_due()
    assert not heir.pruned
    dying.cancel()
    clock.now += 60.0
    await heir.retention.prune_due()

    assert heir.pruned == Counter(one=1)


async def test_worker_whose_clock_is_ahead_keeps_no_other_from_its_turn(storage: Storage) -> None:
    wrong, right = Clock(), Clock()
    wrong.now += 86_400.0
    await Worker(storage, ["one"], wrong).retention.prune_due()
    worker = Worker(storage, ["one"], right)

    await worker.retention.prune_due()

    assert worker.pruned == Counter(one=1)


async def test_host_that_cannot_be_pruned_keeps_no_other_from_it(storage: Storage) -> None:
    worker = Worker(storage, ["bad", "good", "better"], Clock())

    await worker.retention.prune_due()

    assert worker.pruned == Counter(bad=1, good=1, better=1)


@pytest.mark.parametrize(("keep", "turn"), [(0.0, 60.0), (3600.0, 360.0), (7 * 86_400.0, 3600.0)])
def test_turns_come_more_often_the_shorter_containers_are_kept(keep: float, turn: float) -> None:
    assert turn_seconds(keep) == turn


@pytest.mark.services
async def test_container_is_removed_at_once_where_nothing_is_kept(
    build_runner: Build, docker_engine: SharedEngine, runs: RunDriver, sdk: docker.DockerClient
) -> None:
    runner = build_runner(docker_engine.url, docker_keep_seconds=0)
    await runner.open()
    run = await runs.start(runner, "echo hi")
    assert (await run.written()).stdout == b"hi\n"
    await run.wait()

    await runner.finish(run.handle)
    await runner.finish(run.handle)

    with pytest.raises(NotFound):
        sdk.containers.get(run.handle.data["container"])
    assert await runs.owned(runner, run.request.place) == {}
    with pytest.raises(RunNotFound):
        await runner.wait(run.handle)


class Refused(FastlaneError):
    """Core's word that nothing must be started any more."""


@pytest.mark.services
async def test_start_that_core_does_not_confirm_creates_but_starts_nothing(
    docker_engine: SharedEngine, runner: DockerRunner, runs: RunDriver, deployment_id: str, storage: Storage
) -> None:
    asked: list[bool] = []

    async def confirm(request: RunRequest) -> None:
        # Asked once the container is there: what was created before may be removed, and this one is not.
        asked.append(request.execution_id in await runs.owned(runner, request.place))
        raise Refused

    late = late_runner(docker_engine, deployment_id, storage, confirm)
    request = replace(await runs.request(runner, "echo twice"), may_exist=False)

    with pytest.raises(Refused):
        await late.start(request)
    with pytest.raises(Refused):
        await late.start(request)

    assert asked == [True, True]
    owned = (await runs.owned(runner, request.place))[request.execution_id]
    assert not owned.running
    assert (await StartedRun(runner=runner, request=request, handle=owned.handle).written(follow=False)).stdout == b""
    run = await runs.start_request(runner, request)
    assert (await run.written()).stdout == b"twice\n"
    await late.close()


@pytest.mark.services
@pytest.mark.parametrize("why", ["asked for before", "held up"])
async def test_late_start_that_core_does_not_confirm_creates_nothing(
    docker_engine: SharedEngine,
    runner: DockerRunner,
    runs: RunDriver,
    deployment_id: str,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    if why == "held up":
        monkeypatch.setattr(starting, "_HELD_UP_SECONDS", 0.0)

    async def confirm(request: RunRequest) -> None:
        raise Refused

    late = late_runner(docker_engine, deployment_id, storage, confirm)
    request = replace(await runs.request(runner, "echo late"), may_exist=why == "asked for before")

    with pytest.raises(Refused):
        await late.start(request)

    assert await runs.owned(runner, request.place) == {}
    await late.close()


def late_runner(
    engine: SharedEngine, deployment_id: str, storage: Storage, confirm: Callable[[RunRequest], Awaitable[None]]
) -> DockerRunner:
    """Another one of the same engine, whose starts are confirmed or not by `confirm`."""
    settings = DockerSettings.model_validate({"docker_hosts": [{"hosts": [engine.url]}]})
    return DockerRunner(runner_context(settings, deployment_id=deployment_id, storage=storage, confirm_start=confirm))
