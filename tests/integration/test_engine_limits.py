"""Workers under limits: of tasks, of jobs, and of everything; told late, changed, and lost with the queue."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.contracts.queue import task_key
from fastlane_core.engine.context import Duties
from fastlane_core.engine.replacing import JobReplacement, Precondition
from fastlane_core.engine.routing import TaskLimit
from fastlane_core.engine.scheduling import Scheduler
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import JobOrder, JobSubmission
from fastlane_core.engine.task_limits import TaskLimits
from fastlane_core.errors import QueueUnavailable
from fastlane_core.models import Execution, Overlap, RunSpec, Schedule, Status
from tests.integration.engine_harness import QUICK, Deployment, deployment, until

SPEC = RunSpec(image="image", command="hang", timeout=600.0)


@pytest.fixture
async def fastlane(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(tmp_path, lanes={"fake:default": 50, "fake:gpu": 50}) as made:
        await made.queue.rebuilt()
        yield made


def limit(match: str, capacity: int) -> TaskLimit:
    return TaskLimit(pattern=re.compile(match), capacity=capacity)


def task_limits(fastlane: Deployment) -> TaskLimits:
    return TaskLimits(fastlane.storage, fastlane.queue, fastlane.clock)


async def statuses(fastlane: Deployment, executions: Sequence[Execution]) -> Counter[Status]:
    return Counter([(await fastlane.now(each)).status for each in executions])


async def settles_at(fastlane: Deployment, executions: Sequence[Execution], running: int) -> None:
    """So many of them run, and after some looks of the workers still no more."""

    async def runs() -> bool:
        return (await statuses(fastlane, executions))[Status.RUNNING] == running

    await until(runs)
    for _ in range(5):
        await asyncio.sleep(QUICK.poll_seconds)
        assert (await statuses(fastlane, executions))[Status.RUNNING] == running


async def end_one(fastlane: Deployment, executions: Sequence[Execution]) -> None:
    for each in executions:
        if (await fastlane.now(each)).status is Status.RUNNING:
            fastlane.engine.end(each.id)
            await fastlane.ended(each)
            return
    raise AssertionError("none of them runs")


async def finish(fastlane: Deployment, executions: Sequence[Execution], *, at_a_time: int) -> None:
    """End what runs, one by one, until all have."""
    left = len(executions)
    while left:
        await settles_at(fastlane, executions, min(at_a_time, left))
        await end_one(fastlane, executions)
        left -= 1


async def test_the_strictest_of_the_settings_that_match_holds_for_each_task(fastlane: Deployment) -> None:
    fastlane.task_limits = [limit("", 4), limit("report", 2), limit("ports", 1)]
    limited = [await fastlane.submit("hang", task="reports") for _ in range(5)]
    other = [await fastlane.submit("hang", task="others") for _ in range(5)]

    async with fastlane.worker("first"), fastlane.worker("second"):
        await settles_at(fastlane, other, 4)
        await finish(fastlane, limited, at_a_time=2)
        await finish(fastlane, other, at_a_time=4)


async def test_a_limit_that_comes_with_a_job_holds_for_its_task_from_then_on(fastlane: Deployment) -> None:
    before = [await fastlane.submit("hang") for _ in range(3)]
    after = await fastlane.submit("hang", task_concurrency=2)

    async with fastlane.worker():
        await finish(fastlane, [*before, after], at_a_time=2)
        task = await fastlane.storage.get_task("test")
        assert task is not None
        assert task.concurrency == 2


async def test_a_limit_is_changed_while_jobs_wait_and_run(fastlane: Deployment) -> None:
    limits = task_limits(fastlane)
    await limits.set("test", 1)
    executions = [await fastlane.submit("hang") for _ in range(8)]

    async with fastlane.worker():
        await settles_at(fastlane, executions, 1)
        await limits.set("test", 4)
        await settles_at(fastlane, executions, 4)
        await limits.set("test", 2)
        for running in (3, 2, 2):
            await end_one(fastlane, executions)
            await settles_at(fastlane, executions, running)
        await limits.set("test", None)
        await settles_at(fastlane, executions, 5)


async def test_a_job_runs_as_often_at_a_time_as_it_says(fastlane: Deployment) -> None:
    first = await fastlane.submit("hang", job_concurrency=1)
    stopping = Stopping(fastlane.storage, fastlane.queue, fastlane.clock)
    submission = JobSubmission(fastlane.storage, fastlane.queue, fastlane.routing(), fastlane.clock)
    replacement = JobReplacement(fastlane.storage, fastlane.queue, submission, stopping)

    async with fastlane.worker():
        await fastlane.running(first)
        order = JobOrder(task_id="test", job_id=first.job_id, spec=SPEC, job_concurrency=1)
        second = (await replacement.put(order, Precondition())).execution
        assert second is not None
        other = await fastlane.running(await fastlane.submit("hang"))
        await settles_at(fastlane, [first, second], 1)
        fastlane.engine.end(first.id)
        await fastlane.running(second)
        for each in (second, other):
            fastlane.engine.end(each.id)
            await fastlane.ended(each)


async def test_ticks_that_queue_up_run_one_after_another(fastlane: Deployment) -> None:
    submission = JobSubmission(fastlane.storage, fastlane.queue, fastlane.routing(), fastlane.clock)
    schedule = Schedule(cron="@hourly", overlap=Overlap.QUEUE)
    job = (await submission.submit(JobOrder(task_id="test", spec=SPEC, schedule=schedule))).job
    scheduler = Scheduler(fastlane.context("hand"))
    for _ in range(3):
        stored = await fastlane.storage.get_job("test", job.id)
        assert stored is not None
        assert stored.due_at is not None
        fastlane.clock.advance(stored.due_at + 0.1 - fastlane.clock())
        await scheduler.fire(until=fastlane.clock())
    page = await fastlane.storage.list_executions(job.id, task_id="test", cursor=None, limit=10)
    executions = sorted(page.items, key=lambda each: each.tick or 0.0)
    assert len(executions) == 3

    async with fastlane.worker():
        for number, each in enumerate(executions):
            await fastlane.running(each)
            assert (await statuses(fastlane, executions))[Status.ENQUEUED] == 2 - number
            fastlane.engine.end(each.id)
            await fastlane.ended(each)


async def test_all_lanes_and_workers_together_run_no_more_than_the_settings_say(fastlane: Deployment) -> None:
    executions = [await fastlane.submit("hang", task=task) for task in ("fake:default", "fake:gpu") for _ in range(4)]
    options = replace(QUICK, max_running=3)

    async with fastlane.worker("first", options), fastlane.worker("second", options):
        await finish(fastlane, executions, at_a_time=3)


async def test_the_run_of_a_worker_that_died_still_counts(fastlane: Deployment) -> None:
    executions = [await fastlane.submit("hang", task_concurrency=2) for _ in range(4)]
    async with fastlane.worker("first"):
        await settles_at(fastlane, executions, 2)

    async with fastlane.worker("second"):
        await settles_at(fastlane, executions, 2)
        fastlane.clock.advance(QUICK.lease_seconds + 1)
        await finish(fastlane, executions, at_a_time=2)


async def test_a_queue_that_lost_its_data_learns_the_limits_before_it_grants(
    fastlane: Deployment, tmp_path: Path
) -> None:
    fastlane.task_limits = [limit("settings", 1)]
    executions = [await fastlane.submit("hang", task_concurrency=2, job_concurrency=1) for _ in range(5)]
    by_settings = [await fastlane.submit("hang", task="settings") for _ in range(3)]
    async with fastlane.worker("first"):
        await settles_at(fastlane, [*executions, *by_settings], 3)
    await fastlane.queue.close()
    fastlane.queue = SqliteQueue(tmp_path / "empty.db", clock=fastlane.clock)
    await fastlane.queue.open()

    async with fastlane.worker("second"):
        await settles_at(fastlane, executions, 2)
        assert await fastlane.queue.limits() == {task_key("test"): 2}
        fastlane.clock.advance(QUICK.lease_seconds + 1)
        await finish(fastlane, executions, at_a_time=2)
        await finish(fastlane, by_settings, at_a_time=1)


async def test_changed_settings_hold_for_what_waits_already(fastlane: Deployment) -> None:
    fastlane.task_limits = [limit("test", 1), limit("freed", 1)]
    executions = [await fastlane.submit("hang") for _ in range(5)]
    freed = [await fastlane.submit("hang", task="freed") for _ in range(3)]
    new = [await fastlane.submit("hang", task="new", priority=5) for _ in range(3)]
    fastlane.task_limits = [limit("test", 3), limit("new", 2)]

    # Nothing is claimed before the settings are told.
    keeper = replace(QUICK, duties=Duties(jobs=False))
    async with fastlane.worker("keeper", keeper):

        async def are_told() -> bool:
            items = await fastlane.queue.peek("fake:default", 100)
            told = {each.task_id: [limit.capacity for limit in each.limits] for each in items}
            return told == {"test": [3], "freed": [], "new": [2]}

        await until(are_told)
    async with fastlane.worker("second"):
        await settles_at(fastlane, executions, 3)
        await settles_at(fastlane, freed, 3)
        await settles_at(fastlane, new, 2)


class DeafQueue(SqliteQueue):
    """Does not hear of limits for a while."""

    deaf = True

    async def set_limit(self, key: str, capacity: int | None) -> None:
        if self.deaf:
            raise QueueUnavailable("it does not listen")
        await super().set_limit(key, capacity)


async def test_a_queue_that_did_not_hear_of_a_limit_is_told_later(fastlane: Deployment, tmp_path: Path) -> None:
    await fastlane.queue.close()
    queue = fastlane.queue = DeafQueue(tmp_path / "queue.db", clock=fastlane.clock)
    await queue.open()
    limits = task_limits(fastlane)
    await limits.set("set", 2)
    queue.deaf = False
    await limits.set("lifted", 3)
    queue.deaf = True
    await limits.set("lifted", None)
    assert await queue.limits() == {task_key("lifted"): 3}
    queue.deaf = False

    async with fastlane.worker():

        async def is_told() -> bool:
            return await queue.limits() == {task_key("set"): 2}

        await until(is_told)


async def test_many_limits_are_compared_some_at_a_time(fastlane: Deployment) -> None:
    for number in range(1_200):
        await fastlane.storage.limit_task(f"{number}", 2, now=1.0)
    for number in range(1_300):
        await fastlane.queue.set_limit(task_key(f"{number}"), 1 if number % 2 else 2)
    limits = task_limits(fastlane)

    for _ in range(4):
        await limits.compare()

    assert await fastlane.queue.limits() == {task_key(f"{number}"): 2 for number in range(1_200)}
