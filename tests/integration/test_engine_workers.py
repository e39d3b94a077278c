"""Workers beside each other: what each leaves to others, which lanes it serves, and who may have which name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fastlane_core.engine.context import Duties
from fastlane_core.engine.machine import Machine
from fastlane_core.engine.presence import APIS_SCOPE, DEAD_AFTER_SECONDS, WORKERS_SCOPE, Identity, Presence, api_binds
from fastlane_core.engine.worker import Worker
from fastlane_core.errors import SettingsError
from fastlane_core.models import EventKind, JsonObject, Mending, Status
from tests.integration.engine_harness import QUICK, Deployment, deployment, until

HERE = Machine(boot="boot-1", installation="inst-1", host="one", pid_namespace="pid:[1]")
THERE = Machine(boot="boot-2", installation="inst-2", host="two", pid_namespace="pid:[2]")
SQLITE = Identity(machine=HERE, storage="sqlite", queue="sqlite", one_machine=("STORAGE = sqlite", "QUEUE = sqlite"))


@pytest.fixture
async def fastlane(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(tmp_path, lanes={"fake:default": 50, "fake:gpu": 5}) as made:
        yield made


async def report_of(fastlane: Deployment, worker: str) -> JsonObject:
    """What the worker tells of itself, once it does."""
    await until(lambda: _tells(fastlane, worker))
    return (await fastlane.storage.list_state(WORKERS_SCOPE))[worker].value


async def _tells(fastlane: Deployment, worker: str) -> bool:
    report = await fastlane.storage.get_state(WORKERS_SCOPE, worker)
    return report is not None and "lanes" in report.value


async def _serves(fastlane: Deployment, worker: str, lanes: list[str]) -> bool:
    return list((await report_of(fastlane, worker))["lanes"]) == lanes


# Lanes and duties


async def test_a_worker_serves_only_the_lanes_it_was_given(fastlane: Deployment) -> None:
    options = replace(QUICK, lanes=frozenset({"fake:gpu"}))
    async with fastlane.worker("gpu", options):
        left = await fastlane.submit("true")
        taken = await fastlane.ended(await fastlane.submit("true", task="fake:gpu"))
        await until(lambda: _serves(fastlane, "gpu", ["fake:gpu"]))
        assert (await fastlane.now(left)).status is Status.ENQUEUED
        async with fastlane.worker("rest"):
            assert (await fastlane.ended(left)).worker == "rest"
    assert taken.worker == "gpu"


async def test_a_worker_without_jobs_takes_over_what_runs_and_nothing_that_waits(fastlane: Deployment) -> None:
    async with fastlane.worker("first"):
        running = await fastlane.running(await fastlane.submit("hang"))
    async with fastlane.worker("keeper", replace(QUICK, duties=Duties(jobs=False))):
        waiting = await fastlane.submit("true")
        await until(lambda: _is_held_by(fastlane, running.id, "keeper"))
        fastlane.engine.end(running.id)
        assert (await fastlane.ended(running)).status is Status.DONE
        assert (await fastlane.now(waiting)).status is Status.ENQUEUED
        report = await report_of(fastlane, "keeper")
        assert (report["lanes"], report["leftOut"]) == ({}, ["jobs"])
    assert waiting.id not in fastlane.engine.starts


async def test_a_worker_without_monitor_mends_nothing(fastlane: Deployment) -> None:
    await fastlane.queue.rebuilt()
    lost = await fastlane.submit("true")
    await fastlane.queue.cancel(lost.id)
    fastlane.clock.advance(60)
    async with fastlane.worker("hand", replace(QUICK, duties=Duties(monitor=False))):
        # It works: what is in the queue is run.
        await fastlane.ended(await fastlane.submit("true"))
        assert (await fastlane.now(lost)).status is Status.ENQUEUED
        async with fastlane.worker("head", replace(QUICK, duties=Duties(jobs=False))):
            assert (await fastlane.ended(lost)).worker == "hand"
    mended = [event for event in fastlane.events if event.kind is EventKind.EXECUTION_MENDED]
    assert [(event.worker, event.mending) for event in mended] == [("head", Mending.MISSING_IN_QUEUE)]


async def test_a_worker_without_jobs_and_monitor_takes_nothing(fastlane: Deployment) -> None:
    async with fastlane.worker("first"):
        running = await fastlane.running(await fastlane.submit("hang"))
    async with fastlane.worker("idle", replace(QUICK, duties=Duties(jobs=False, monitor=False))):
        await report_of(fastlane, "idle")
        async with fastlane.worker("second"):
            await until(lambda: _is_held_by(fastlane, running.id, "second"))
            fastlane.engine.end(running.id)
            await fastlane.ended(running)


async def test_a_lane_that_takes_all_it_may_of_a_worker_leaves_the_others_theirs(fastlane: Deployment) -> None:
    full = [await fastlane.submit("hang", task="fake:default") for _ in range(5)]
    async with fastlane.worker("small", replace(QUICK, concurrency=3)):
        for each in full[:3]:
            await fastlane.running(each)
        other = await fastlane.ended(await fastlane.submit("true", task="fake:gpu"))
        assert other.status is Status.DONE
        assert [(await fastlane.now(each)).status for each in full[3:]] == [Status.ENQUEUED] * 2
        fastlane.engine.end(full[0].id)
        await fastlane.running(full[3])


@pytest.mark.parametrize(
    ("patterns", "lanes"),
    [
        (["fake:gpu"], {"fake:gpu"}),
        (["fake:*"], {"fake:default", "fake:gpu"}),
        (["fake:g*", "fake:default"], {"fake:default", "fake:gpu"}),
        (["*"], {"fake:default", "fake:gpu"}),
    ],
)
async def test_lanes_go_by_name_or_beginning(fastlane: Deployment, patterns: list[str], lanes: set[str]) -> None:
    assert fastlane.routing().lanes_matching(patterns) == lanes


@pytest.mark.parametrize("pattern", ["fake", "gpu", "docker:*", ""])
async def test_a_lane_that_does_not_exist_is_refused_with_those_that_do(fastlane: Deployment, pattern: str) -> None:
    with pytest.raises(SettingsError, match="there are: fake:default, fake:gpu"):
        fastlane.routing().lanes_matching(["fake:gpu", pattern])


# Names


async def test_a_second_worker_by_a_name_is_refused_as_long_as_the_first_lives(fastlane: Deployment) -> None:
    async with fastlane.worker("same"):
        # It has the name before the other one asks for it.
        await report_of(fastlane, "same")
        # Both live in this process, which is no proof: one is told to be of another process table.
        elsewhere = Identity(machine=replace(Machine.this(), pid_namespace="pid:[other]"))
        second = Worker(fastlane.context("same", identity=elsewhere))
        with pytest.raises(SettingsError, match=r"worker same .* lives: give this one another \(-i\)"):
            await asyncio.wait_for(second.run(asyncio.Event()), 30)
        assert "same" in await fastlane.storage.list_state(WORKERS_SCOPE)
    assert not await fastlane.storage.list_state(WORKERS_SCOPE)


async def test_the_name_of_a_worker_that_was_killed_is_free_at_once_on_its_machine(fastlane: Deployment) -> None:
    dead = {"pid": 2**22 + 1, "host": "h", "at": fastlane.clock(), "machine": Machine.this().as_json()}
    await fastlane.storage.put_state(WORKERS_SCOPE, "same", dead, revision=None)
    begun = fastlane.clock()
    async with fastlane.worker("same"):
        assert (await report_of(fastlane, "same"))["concurrency"] == QUICK.concurrency
        report = await fastlane.storage.get_state(WORKERS_SCOPE, "same")
        assert report is not None
        assert report.value["at"] >= begun


async def test_the_name_of_a_worker_that_is_silent_elsewhere_is_free_after_a_while(fastlane: Deployment) -> None:
    silent = {"pid": 1, "host": "two", "at": fastlane.clock(), "machine": THERE.as_json()}
    await fastlane.storage.put_state(WORKERS_SCOPE, "same", silent, revision=None)
    async with fastlane.worker("same"):
        await report_of(fastlane, "same")


async def test_a_worker_that_waits_for_its_name_stops_at_once(fastlane: Deployment) -> None:
    silent = {"pid": 1, "host": "two", "at": fastlane.clock(), "machine": THERE.as_json()}
    await fastlane.storage.put_state(WORKERS_SCOPE, "same", silent, revision=None)
    stop = asyncio.Event()
    running = asyncio.create_task(Worker(fastlane.context("same")).run(stop))
    await asyncio.sleep(0)
    stop.set()
    await asyncio.wait_for(running, 30)
    report = await fastlane.storage.get_state(WORKERS_SCOPE, "same")
    assert report is not None
    assert report.value == silent


# Company


def presence(fastlane: Deployment, identity: Identity, name: str, scope: str = APIS_SCOPE) -> Presence:
    return Presence(fastlane.storage, fastlane.clock, identity, scope=scope, name=name)


async def test_sqlite_is_refused_on_a_second_machine(fastlane: Deployment) -> None:
    first, second = presence(fastlane, SQLITE, "a"), presence(fastlane, replace(SQLITE, machine=THERE), "b")
    await first.enter({})
    with pytest.raises(
        SettingsError, match="this is the machine two: STORAGE = sqlite and QUEUE = sqlite works within"
    ):
        await second.enter({})
    assert list(await fastlane.storage.list_state(APIS_SCOPE)) == ["a"]
    await first.leave()
    await second.enter({})


async def test_a_queue_of_one_machine_is_refused_on_a_second_one_whatever_the_storage(fastlane: Deployment) -> None:
    mixed = Identity(machine=HERE, storage="mongo", queue="sqlite", one_machine=("QUEUE = sqlite",))
    await presence(fastlane, mixed, "a", WORKERS_SCOPE).enter({})
    with pytest.raises(SettingsError, match=r"the worker a \(process \d+ on one\) .* QUEUE = sqlite works"):
        await presence(fastlane, replace(mixed, machine=THERE), "b").enter({})


async def test_servers_are_shared_by_machines(fastlane: Deployment) -> None:
    servers = Identity(machine=HERE, storage="mongo", queue="redis")
    await presence(fastlane, servers, "a").enter({})
    await presence(fastlane, replace(servers, machine=THERE), "b").enter({})


async def test_two_queues_on_one_storage_are_refused(fastlane: Deployment) -> None:
    await presence(fastlane, SQLITE, "a").enter({})
    with pytest.raises(SettingsError, match="uses the queue sqlite, but this process QUEUE = redis"):
        await presence(fastlane, replace(SQLITE, queue="redis"), "b").enter({})


async def test_a_process_that_is_gone_for_long_stands_in_nobody_s_way(fastlane: Deployment) -> None:
    await presence(fastlane, SQLITE, "a").enter({})
    fastlane.clock.advance(DEAD_AFTER_SECONDS + 1)
    there = presence(fastlane, replace(SQLITE, machine=THERE), "b")
    await there.enter({})
    await there.tell({"bind": "127.0.0.1:1"})
    assert list(await fastlane.storage.list_state(APIS_SCOPE)) == ["b"]


async def test_the_addresses_of_apis_are_known_until_they_leave(fastlane: Deployment) -> None:
    api = presence(fastlane, SQLITE, "a")
    await api.tell({"bind": "0.0.0.0:10000"})
    assert await api_binds(fastlane.storage, now=fastlane.clock()) == {"0.0.0.0:10000"}
    await api.leave()
    assert await api_binds(fastlane.storage, now=fastlane.clock()) == frozenset()


async def _is_held_by(fastlane: Deployment, execution_id: str, worker: str) -> bool:
    stored = await fastlane.storage.get_execution(execution_id)
    return stored is not None and stored.worker == worker
