"""Workers that fire schedules: once per tick with any number of them, whatever dies, and by the rules of overlap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastlane_core.engine.faultpoints import FaultPoint
from fastlane_core.engine.schedules import due_ticks, execution_id, paused
from fastlane_core.engine.scheduling import Scheduler
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import JobOrder, JobSubmission
from fastlane_core.models import Execution, Job, Overlap, Reason, RunSpec, Schedule, Status
from tests.integration.engine_harness import Deployment, deployment, until

_HOUR = 3600.0


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
async def fastlane(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(tmp_path) as made:
        await made.queue.rebuilt()
        yield made


async def scheduled(fastlane: Deployment, command: str = "echo", *, task: str = "test", **schedule: Any) -> Job:
    """A stored job with a schedule, hourly unless it says otherwise."""
    submission = JobSubmission(fastlane.storage, fastlane.queue, fastlane.routing(), fastlane.clock)
    spec = RunSpec(image="image", command=command, timeout=600.0)
    order = JobOrder(task_id=task, spec=spec, schedule=Schedule(**{"cron": "@hourly", **schedule}))
    return (await submission.submit(order)).job


def scheduler(fastlane: Deployment, name: str = "worker", **changes: Any) -> Scheduler:
    return Scheduler(fastlane.context(name, **changes))


async def stored(fastlane: Deployment, job: Job) -> Job:
    found = await fastlane.storage.get_job(job.task_id, job.id)
    assert found is not None
    return found


async def executions(fastlane: Deployment, job: Job) -> list[Execution]:
    """Those of the job, by their ticks."""
    page = await fastlane.storage.list_executions(job.id, task_id=job.task_id, cursor=None, limit=500)
    return sorted(page.items, key=lambda each: each.tick or 0.0)


async def fire_at_tick(fastlane: Deployment, job: Job, scheduler_: Scheduler, *, late: float = 0.5) -> Job:
    """Let it be the time of the job's next tick, and fire what is due."""
    due_at = (await stored(fastlane, job)).due_at
    assert due_at is not None
    fastlane.clock.advance(due_at + late - fastlane.clock())
    await scheduler_.fire(until=fastlane.clock())
    return await stored(fastlane, job)


async def test_a_worker_runs_each_tick_of_a_schedule(fastlane: Deployment) -> None:
    job = await scheduled(fastlane)
    assert await executions(fastlane, job) == []
    ticks = []

    async with fastlane.worker():
        for count in (1, 2, 3):
            due_at = (await stored(fastlane, job)).due_at
            assert due_at is not None
            ticks.append(due_at)
            fastlane.clock.advance(due_at - fastlane.clock() + 0.1)

            async def has_run(count: int = count) -> bool:
                found = await executions(fastlane, job)
                return len(found) == count and all(each.status is Status.DONE for each in found)

            await until(has_run)

    assert [each.tick for each in await executions(fastlane, job)] == ticks
    assert ticks[2] - ticks[0] == 2 * _HOUR
    schedule = (await stored(fastlane, job)).schedule
    assert schedule is not None
    assert (schedule.last_tick_at, schedule.skipped) == (ticks[2], 0)


async def test_workers_that_fire_at_the_same_time_fire_once(fastlane: Deployment) -> None:
    jobs = [await scheduled(fastlane) for _ in range(20)]
    workers = [scheduler(fastlane, f"worker {number}") for number in range(5)]
    due_at = jobs[0].due_at
    assert due_at is not None
    fastlane.clock.advance(due_at + 0.5 - fastlane.clock())

    await asyncio.gather(*(each.fire(until=fastlane.clock()) for each in workers))

    for job in jobs:
        assert [each.tick for each in await executions(fastlane, job)] == [due_at]
        assert (await stored(fastlane, job)).due_at == due_at + _HOUR
    stats = await fastlane.queue.stats()
    assert sum(each.waiting for each in stats.values()) == len(jobs)


@pytest.mark.parametrize("point", [FaultPoint.TICKS_ADDED, FaultPoint.TICKS_QUEUED, FaultPoint.TICKS_ADVANCED])
@pytest.mark.parametrize("overlap", list(Overlap))
async def test_a_worker_that_dies_while_it_fires_loses_and_doubles_no_tick(
    fastlane: Deployment, point: FaultPoint, overlap: Overlap
) -> None:
    job = await scheduled(fastlane, overlap=overlap)
    due_at = job.due_at
    assert due_at is not None

    def reach(reached: FaultPoint) -> None:
        if reached is point:
            raise Killed

    with pytest.raises(Killed):
        await fire_at_tick(fastlane, job, scheduler(fastlane, "victim", reach=reach))
    await scheduler(fastlane, "heir").fire(until=fastlane.clock())

    assert [each.tick for each in await executions(fastlane, job)] == [due_at]
    assert await fastlane.queue.contains([execution_id(job, due_at)])
    after = await stored(fastlane, job)
    assert after.due_at == due_at + _HOUR
    assert after.schedule is not None
    assert after.schedule.skipped == 0


async def test_skip_leaves_ticks_out_while_an_earlier_execution_or_its_retry_goes_on(fastlane: Deployment) -> None:
    job = await scheduled(fastlane, overlap=Overlap.SKIP)
    one = scheduler(fastlane)
    await fire_at_tick(fastlane, job, one)

    after = await fire_at_tick(fastlane, job, one)

    assert len(await executions(fastlane, job)) == 1
    assert after.schedule is not None
    assert (after.schedule.skipped, after.schedule.last_skipped_at) == (1, (job.due_at or 0.0) + _HOUR)
    assert after.schedule.last_skipped_why == "an earlier execution had not ended"
    (execution,) = await executions(fastlane, job)
    await Stopping(fastlane.storage, fastlane.queue, fastlane.clock).stop_unfinished(job)
    assert (await fastlane.now(execution)).status is Status.STOPPED
    await fire_at_tick(fastlane, job, one)
    assert len(await executions(fastlane, job)) == 2


async def test_replace_stops_the_earlier_execution(fastlane: Deployment) -> None:
    job = await scheduled(fastlane, "wait", overlap=Overlap.REPLACE)
    one = scheduler(fastlane)
    await fire_at_tick(fastlane, job, one)

    await fire_at_tick(fastlane, job, one)

    earlier, later = await executions(fastlane, job)
    assert (earlier.status, earlier.reason, later.status) == (Status.STOPPED, Reason.STOPPED, Status.ENQUEUED)


async def test_a_worker_that_was_held_up_in_the_middle_replaces_no_later_tick(fastlane: Deployment) -> None:
    job = await scheduled(fastlane, "wait", overlap=Overlap.REPLACE)
    looked = await stored(fastlane, job)
    fastlane.clock.advance((looked.due_at or 0.0) + 0.5 - fastlane.clock())
    held_up = scheduler(fastlane, "held up")
    late = due_ticks(looked, now=fastlane.clock())
    other = scheduler(fastlane, "other")
    await other.fire(until=fastlane.clock())
    await fire_at_tick(fastlane, job, other)

    await held_up._end_replaced(late)

    earlier, later = await executions(fastlane, job)
    assert (earlier.status, later.status) == (Status.STOPPED, Status.ENQUEUED)


@pytest.mark.parametrize("overlap", [Overlap.QUEUE, Overlap.REPLACE])
async def test_ticks_that_wait_for_each_other_run_one_at_a_time(fastlane: Deployment, overlap: Overlap) -> None:
    job = await scheduled(fastlane, "sleep 600", overlap=overlap)
    one = scheduler(fastlane)

    async with fastlane.worker():
        for count in range(1, 4):
            await fire_at_tick(fastlane, job, one)

            async def one_runs(count: int = count) -> bool:
                found = await executions(fastlane, job)
                running = [each for each in found if each.status is Status.RUNNING]
                assert len(running) <= 1
                return len(found) == count and running == [found[0 if overlap is Overlap.QUEUE else -1]]

            await until(one_runs)
        if overlap is Overlap.QUEUE:
            first, second, _ = await executions(fastlane, job)
            await Stopping(fastlane.storage, fastlane.queue, fastlane.clock).stop_execution("test", job.id, first.id)
            await fastlane.running(second)
        statuses = [each.status for each in await executions(fastlane, job)]

    waiting = Status.ENQUEUED if overlap is Overlap.QUEUE else Status.RUNNING
    ran = Status.RUNNING if overlap is Overlap.QUEUE else Status.STOPPED
    assert statuses == [Status.STOPPED, ran, waiting]


async def test_stopping_a_job_ends_its_schedule(fastlane: Deployment) -> None:
    job = await scheduled(fastlane)
    one = scheduler(fastlane)
    await fire_at_tick(fastlane, job, one)

    await Stopping(fastlane.storage, fastlane.queue, fastlane.clock).stop_job(job.task_id, job.id)

    assert [each.status for each in await executions(fastlane, job)] == [Status.STOPPED]
    fastlane.clock.advance(10 * _HOUR)
    await one.fire(until=fastlane.clock())
    assert len(await executions(fastlane, job)) == 1
    assert await fastlane.storage.next_due_job() is None


async def test_a_paused_job_fires_nothing(fastlane: Deployment) -> None:
    job = await scheduled(fastlane)
    await fastlane.storage.put_job(paused(job, now=fastlane.clock()))
    fastlane.clock.advance(10 * _HOUR)

    await scheduler(fastlane).fire(until=fastlane.clock())

    assert await executions(fastlane, job) == []


async def test_a_job_that_no_lane_takes_any_more_has_its_ticks_counted_as_skipped(tmp_path: Path) -> None:
    async with deployment(tmp_path) as fastlane:
        job = await scheduled(fastlane)
        fastlane.lanes.clear()

        after = await fire_at_tick(fastlane, job, scheduler(fastlane))

        assert await executions(fastlane, job) == []
        assert after.schedule is not None
        assert after.schedule.skipped == 1
        assert "no lane takes the task" in (after.schedule.last_skipped_why or "")
        assert after.due_at is not None
        assert after.due_at > fastlane.clock()


async def test_a_schedule_that_cannot_be_read_is_in_nobodys_way(fastlane: Deployment) -> None:
    fine = await scheduled(fastlane)
    broken = await scheduled(fastlane)
    assert broken.schedule is not None
    made_elsewhere = Schedule(cron="@weird", next_tick_at=broken.schedule.next_tick_at)
    await fastlane.storage.put_job(replace(broken, schedule=made_elsewhere))
    one = scheduler(fastlane)

    await fire_at_tick(fastlane, fine, one)

    assert len(await executions(fastlane, fine)) == 1
    assert (await stored(fastlane, fine)).due_at == (fine.due_at or 0.0) + _HOUR
    put_off = (await stored(fastlane, broken)).due_at
    assert put_off is not None
    assert put_off > fastlane.clock() + 30
    assert len(fastlane.reports) == 1
    fastlane.reports.clear()


async def test_a_crowd_of_due_jobs_is_fired_once_by_workers_that_live_together(fastlane: Deployment) -> None:
    jobs = [await scheduled(fastlane, task=f"task {number % 7}") for number in range(60)]
    fastlane.clock.advance((jobs[0].due_at or 0.0) + 0.5 - fastlane.clock())

    async with fastlane.worker("one"), fastlane.worker("two"):

        async def all_have_run() -> bool:
            due = await fastlane.storage.list_due_jobs(until=fastlane.clock(), limit=1)
            return not due and not (await fastlane.storage.list_unfinished(cursor=None, limit=1)).items

        await until(all_have_run)

    for job in jobs:
        assert len(await executions(fastlane, job)) == 1
