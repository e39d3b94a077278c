"""What crashes, lost messages and lost data leave behind is found and mended; each mending is told and counted."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.contracts.queue import QueueItem
from fastlane_core.engine.identifiers import retry_id
from fastlane_core.engine.presence import WORKERS_SCOPE
from fastlane_core.errors import QueueUnavailable, RunnerError
from fastlane_core.models import Event, EventKind, Execution, Mending, Reason, RunHandle, Status
from fastlane_core.testing.fake_engine import FakeEngine
from fastlane_core.testing.fake_runner import FakeRunner
from tests.integration.engine_harness import PATIENCE, QUICK, Deployment, until

# Leases


async def test_adopting_what_a_worker_left_to_run_out_is_told_and_counted(fastlane: Deployment) -> None:
    execution = await fastlane.submit("true")
    await fastlane.claim("dead")
    fastlane.clock.advance(QUICK.lease_seconds + 1)
    async with fastlane.worker():
        await fastlane.ended(execution)
        await until(lambda: _reports_mending(fastlane, Mending.LEASE_ORPHANED))
    (event,) = mendings(fastlane, Mending.LEASE_ORPHANED)
    assert event.execution_id == execution.id


async def test_adopting_what_has_ended_is_told_as_well(fastlane: Deployment) -> None:
    execution = await fastlane.submit("true")
    await fastlane.claim("dead")
    stored = await fastlane.now(execution)
    await fastlane.storage.put_execution(replace(stored, status=Status.STOPPED, reason=Reason.STOPPED))
    fastlane.clock.advance(QUICK.lease_seconds + 1)
    async with fastlane.worker():
        await until(lambda: _is_empty(fastlane))
    assert [event.execution_id for event in mendings(fastlane, Mending.LEASE_ORPHANED)] == [execution.id]


async def test_adopting_what_was_handed_over_mends_nothing(fastlane: Deployment) -> None:
    async with fastlane.worker("first"):
        execution = await fastlane.running(await fastlane.submit("hang"))
    async with fastlane.worker("second"):
        await until(lambda: _is_held_by(fastlane, execution, "second"))
        fastlane.engine.end(execution.id)
        await fastlane.ended(execution)
    assert mendings(fastlane, Mending.LEASE_ORPHANED) == []


# The queue and the storage


async def test_a_queue_that_lost_its_data_is_rebuilt_and_nothing_doubles(fastlane: Deployment, tmp_path: Path) -> None:
    fastlane.lanes["fake:default"] = 3
    async with fastlane.worker("first"):
        running = [await fastlane.running(await fastlane.submit("hang")) for _ in range(3)]
        waiting = [await fastlane.submit("true") for _ in range(20)]
    await fastlane.queue.close()
    fastlane.queue = SqliteQueue(tmp_path / "empty.db", clock=fastlane.clock)
    await fastlane.queue.open()
    assert await fastlane.queue.needs_rebuild()
    async with fastlane.worker("second"):
        await until(lambda: _is_rebuilt(fastlane))
        stats = (await fastlane.queue.stats())["fake:default"]
        assert (stats.leased, stats.waiting) == (3, 20)
        # Their leases run out, as nobody who could renew them is left.
        fastlane.clock.advance(QUICK.lease_seconds + 1)
        for execution in running:
            await until(lambda execution=execution: _is_held_by(fastlane, execution, "second"))
            fastlane.engine.end(execution.id)
        for execution in [*running, *waiting]:
            assert (await fastlane.ended(execution)).status is Status.DONE
    assert set(fastlane.engine.starts.values()) == {1}


async def test_an_execution_that_the_queue_never_got_is_put_there(fastlane: Deployment) -> None:
    await fastlane.queue.rebuilt()
    execution = await fastlane.submit("true")
    await fastlane.queue.cancel(execution.id)
    fastlane.clock.advance(60)
    async with fastlane.worker():
        assert (await fastlane.ended(execution)).status is Status.DONE
    assert any(event.kind is EventKind.EXECUTION_MENDED for event in fastlane.events)


async def test_what_a_part_of_the_queue_that_is_out_of_reach_refuses_keeps_nothing_else_from_being_mended(
    fastlane: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused() -> Mapping[str, int]:
        raise QueueUnavailable("the server that has the limits is out of reach")

    await fastlane.queue.rebuilt()
    execution = await fastlane.submit("true")
    await fastlane.queue.cancel(execution.id)
    fastlane.clock.advance(60)
    monkeypatch.setattr(fastlane.queue, "limits", refused)
    async with fastlane.worker():
        assert (await fastlane.ended(execution)).status is Status.DONE


async def test_jobs_of_a_lane_that_is_not_offered_any_more_move_to_another(fastlane: Deployment) -> None:
    execution = await fastlane.submit("true")
    fastlane.lanes = {"fake:renamed": 5}
    async with fastlane.worker():
        ended = await fastlane.ended(execution)
    assert (ended.status, ended.lane) == (Status.DONE, "fake:renamed")


async def test_runs_of_a_lane_that_is_not_offered_any_more_are_adopted(fastlane: Deployment) -> None:
    async with fastlane.worker("first"):
        execution = await fastlane.running(await fastlane.submit("hang"))
    fastlane.lanes = {"fake:renamed": 5}
    async with fastlane.worker("second"):
        await until(lambda: _is_held_by(fastlane, execution, "second"))
        fastlane.engine.end(execution.id)
        assert (await fastlane.ended(execution)).status is Status.DONE
    assert fastlane.engine.starts == {execution.id: 1}


async def test_what_the_storage_does_not_know_is_dropped_when_it_is_claimed(fastlane: Deployment) -> None:
    await fastlane.queue.rebuilt()
    await fastlane.queue.put([QueueItem(execution_id="ghost", task_id="test", lane="fake:default")])
    async with fastlane.worker():
        await until(lambda: bool(mendings(fastlane, Mending.UNKNOWN_IN_QUEUE)))
        await until(lambda: _is_empty(fastlane))


async def test_what_waits_in_a_full_lane_for_nothing_is_removed(fastlane: Deployment) -> None:
    fastlane.lanes["fake:default"] = 1
    await fastlane.queue.rebuilt()
    ended = await fastlane.submit("true")
    stored = await fastlane.now(ended)
    await fastlane.storage.put_execution(replace(stored, status=Status.STOPPED, reason=Reason.STOPPED))
    fastlane.clock.advance(60)
    blocker = await fastlane.submit("hang", priority=9)
    await fastlane.queue.put([QueueItem(execution_id="ghost", task_id="test", lane="fake:default")])
    async with fastlane.worker():
        await fastlane.running(blocker)
        await until(lambda: _waiting_is(fastlane, 0))
        fastlane.engine.end(blocker.id)
        await fastlane.ended(blocker)
    assert [event.execution_id for event in mendings(fastlane, Mending.ENDED_IN_QUEUE)] == [ended.id]
    assert [event.execution_id for event in mendings(fastlane, Mending.UNKNOWN_IN_QUEUE)] == ["ghost"]
    assert fastlane.engine.starts == {blocker.id: 1}


# Executions stuck in a status


async def test_a_job_that_expires_in_a_full_lane_ends_there(fastlane: Deployment) -> None:
    fastlane.lanes["fake:default"] = 1
    async with fastlane.worker():
        blocker = await fastlane.running(await fastlane.submit("hang"))
        waiting = await fastlane.submit("true", expiration=fastlane.clock() + 30)
        patient = await fastlane.submit("true", expiration=fastlane.clock() + 3600)
        fastlane.clock.advance(59)
        expired = await fastlane.ended(waiting)
        assert (expired.status, expired.reason) == (Status.EXPIRED, Reason.EXPIRED)
        assert (await fastlane.now(patient)).status is Status.ENQUEUED
        assert await fastlane.queue.contains([waiting.id, patient.id]) == {patient.id}
        fastlane.engine.end(blocker.id)
        assert (await fastlane.ended(patient)).status is Status.DONE
    changes = [event for event in fastlane.events if event.execution_id == waiting.id]
    assert EventKind.EXECUTION_CHANGED in {event.kind for event in changes if event.status is Status.EXPIRED}
    assert waiting.id not in fastlane.engine.starts


async def test_a_stop_that_the_worker_never_heard_of_is_told_again(fastlane: Deployment) -> None:
    # One has the execution in hand and its own reconciler leaves that alone; the other sees it.
    async with fastlane.worker("holder", replace(QUICK, lease_seconds=3600)):
        execution = await fastlane.running(await fastlane.submit("hang"))
        # As if the queue had been down when the stop was asked for: the record alone tells.
        stored = await fastlane.now(execution)
        await fastlane.storage.put_execution(replace(stored, stop_requested_at=fastlane.clock()))
        fastlane.clock.advance(60)
        async with fastlane.worker("other"):
            ended = await fastlane.ended(execution)
    assert (ended.status, ended.worker) == (Status.STOPPED, "holder")
    (event,) = mendings(fastlane, Mending.STOP_UNHEARD)
    assert (event.worker, event.execution_id) == ("other", execution.id)


async def test_a_run_that_the_queue_holds_no_lease_for_is_adopted(fastlane: Deployment) -> None:
    async with fastlane.worker("first"):
        execution = await fastlane.running(await fastlane.submit("hang"))
    (lease,) = await fastlane.queue.claim("fake:default", worker="x", capacity=0, limit=1, lease_seconds=0.001)
    await fastlane.queue.ack(lease)
    fastlane.clock.advance(60)
    async with fastlane.worker("second"):
        await until(lambda: bool(mendings(fastlane, Mending.MISSING_IN_QUEUE)))
        fastlane.clock.advance(QUICK.lease_seconds + 1)
        await until(lambda: _is_held_by(fastlane, execution, "second"))
        fastlane.engine.end(execution.id)
        assert (await fastlane.ended(execution)).status is Status.DONE
    assert fastlane.engine.starts == {execution.id: 1}


async def test_an_attempt_that_was_decided_and_not_made_is_made_once(fastlane: Deployment) -> None:
    await fastlane.queue.rebuilt()
    execution = await fastlane.submit("exit 1", retries=1)
    await fastlane.queue.cancel(execution.id)
    now = fastlane.clock()
    failed = replace(await fastlane.now(execution), status=Status.FAILED, reason=Reason.EXIT_CODE, exit_code=1)
    owing = replace(failed, retry_id=retry_id(execution.id), retry_at=now, owes_at=now)
    await fastlane.storage.put_execution(owing)
    fastlane.clock.advance(60)
    async with fastlane.worker("one"), fastlane.worker("two"):
        await until(lambda: _has_ended(fastlane, execution, attempts=2))
    assert mendings(fastlane, Mending.RETRY_OWED)


# Engines


async def test_a_run_that_nobody_knows_is_stopped_and_removed(fastlane: Deployment) -> None:
    async with fastlane.worker("first"):
        execution = await fastlane.running(await fastlane.submit("hang"))
    stored = await fastlane.now(execution)
    await fastlane.storage.put_execution(replace(stored, status=Status.FAILED, reason=Reason.ENGINE_LOST))
    fastlane.clock.advance(120)
    async with fastlane.worker("second"):
        await until(lambda: not fastlane.engine.running)
        await until(lambda: bool(mendings(fastlane, Mending.LEFTOVER_RUN)))
        await until(lambda: _reports_mending(fastlane, Mending.LEFTOVER_RUN))
    (event,) = mendings(fastlane, Mending.LEFTOVER_RUN)
    assert (event.execution_id, event.place) == (execution.id, "host")


async def test_a_queue_is_rebuilt_while_a_leftover_takes_its_time_to_stop(fastlane: Deployment, tmp_path: Path) -> None:
    stopping = asyncio.Event()

    async def never_over(_: float) -> None:
        stopping.set()
        await asyncio.Event().wait()

    fastlane.engine = FakeEngine(places={"host": 50}, sleep=never_over)
    async with fastlane.worker("first"):
        execution = await fastlane.running(await fastlane.submit("hang-deaf"))
    await fastlane.queue.ack((await fastlane.claim("dead")).lease)
    stored = await fastlane.now(execution)
    await fastlane.storage.put_execution(replace(stored, status=Status.STOPPED, reason=Reason.STOPPED))
    fastlane.clock.advance(120)
    async with fastlane.worker("second"):
        await asyncio.wait_for(stopping.wait(), PATIENCE)
        with closing(sqlite3.connect(tmp_path / "queue.db", isolation_level=None)) as connection:
            connection.executescript("DELETE FROM items; DELETE FROM rebuilt;")
        # Granted only when the queue is whole again.
        assert (await fastlane.ended(await fastlane.submit("true"))).status is Status.DONE
        assert fastlane.engine.running == [execution.id]


async def test_a_place_that_takes_nothing_new_is_swept_all_the_same(fastlane: Deployment) -> None:
    async with fastlane.worker("first"):
        execution = await fastlane.running(await fastlane.submit("hang"))
    stored = await fastlane.now(execution)
    await fastlane.storage.put_execution(replace(stored, status=Status.FAILED, reason=Reason.ENGINE_LOST))
    fastlane.clock.advance(120)
    fastlane.engine.cordoned.add("host")
    async with fastlane.worker("second"):
        await until(lambda: not fastlane.engine.running)
        await until(lambda: bool(mendings(fastlane, Mending.LEFTOVER_RUN)))


@pytest.mark.parametrize("error", [RunnerError("it cannot be removed"), TypeError("not expected")])
async def test_a_leftover_that_cannot_be_cleaned_up_keeps_nothing_else_from_it(
    fastlane: Deployment, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async with fastlane.worker("first"):
        lost = [await fastlane.running(await fastlane.submit("hang")) for _ in range(5)]
    for each in lost:
        stored = await fastlane.now(each)
        await fastlane.storage.put_execution(replace(stored, status=Status.FAILED, reason=Reason.ENGINE_LOST))
    # Nobody has them in hand.
    for lease in await fastlane.queue.claim("fake:default", worker="dead", capacity=50, limit=50, lease_seconds=60.0):
        await fastlane.queue.ack(lease)
    fastlane.clock.advance(120)
    stuck = lost[0]
    discard = FakeRunner.discard

    async def fail_once(runner: FakeRunner, handle: RunHandle) -> None:
        if handle.data["execution_id"] == stuck.id and stuck.id not in failed:
            failed.append(stuck.id)
            raise error
        await discard(runner, handle)

    failed: list[str] = []
    monkeypatch.setattr(FakeRunner, "discard", fail_once)
    options = replace(QUICK, reconcile_interval_seconds=3600.0)
    async with fastlane.worker("second", options):
        await until(lambda: fastlane.engine.running == [stuck.id])
    assert failed == [stuck.id]
    async with fastlane.worker("third", options):
        await until(lambda: not fastlane.engine.running)
    assert fastlane.reports == ([] if isinstance(error, RunnerError) else [error])
    fastlane.reports.clear()


def mendings(fastlane: Deployment, kind: Mending) -> list[Event]:
    """What observers were told of mendings of one kind."""
    return [each for each in fastlane.events if each.kind is EventKind.EXECUTION_MENDED and each.mending is kind]


async def _reports_mending(fastlane: Deployment, kind: Mending) -> bool:
    reports = await fastlane.storage.list_state(WORKERS_SCOPE)
    return any(report.value["mended"].get(kind) == 1 for report in reports.values())


async def _is_empty(fastlane: Deployment) -> bool:
    return not await fastlane.queue.stats()


async def _waiting_is(fastlane: Deployment, count: int) -> bool:
    return (await fastlane.queue.stats())["fake:default"].waiting == count


async def _has_ended(fastlane: Deployment, execution: Execution, *, attempts: int) -> bool:
    found = await fastlane.attempts(execution)
    return len(found) == attempts and all(each.status.is_final and each.owes_at is None for each in found)


async def _is_held_by(fastlane: Deployment, execution: Execution, worker: str) -> bool:
    return (await fastlane.now(execution)).worker == worker


async def _is_rebuilt(fastlane: Deployment) -> bool:
    return not await fastlane.queue.needs_rebuild()
