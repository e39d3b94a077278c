"""Stopping jobs and executions, with workers over an engine in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fastlane_core.engine.schedules import STOP_SECONDS, is_stopping, stopped_for_good
from fastlane_core.engine.submission import queue_item
from fastlane_core.models import Execution, Status
from tests.integration.engine_harness import Deployment, until
from tests.integration.engine_requests import LONG, NOW, attempts, has_attempts, stopping


async def test_a_job_that_waits_for_its_time_is_stopped_at_once(fastlane: Deployment) -> None:
    execution = await fastlane.submit("true", start_at=fastlane.clock() + 1000)
    await fastlane.stop_job(execution)
    assert (await fastlane.now(execution)).status is Status.STOPPED
    assert not await fastlane.queue.stats()


async def test_a_pull_is_stopped_while_it_lasts(fastlane: Deployment) -> None:
    async with fastlane.worker():
        with fastlane.engine.pulling("big") as pull:
            execution = await fastlane.submit("true", image="big", retries=3)
            await until(lambda: pull.waiting == 1)
            await fastlane.stop_job(execution)
            (stopped,) = await attempts(fastlane, execution, 1)
            assert pull.waiting == 0
    assert stopped.status is Status.STOPPED
    assert not fastlane.engine.starts


async def test_stopping_answers_while_the_engine_hangs_and_is_done_when_it_is_back(fastlane: Deployment) -> None:
    async with fastlane.worker():
        execution = await fastlane.running(await fastlane.submit("hang", retries=3))
        with fastlane.engine.hanging():
            await asyncio.wait_for(fastlane.stop_job(execution), 10)
            assert (await fastlane.now(execution)).status is Status.RUNNING
            assert fastlane.engine.running == [execution.id]
        (stopped,) = await attempts(fastlane, execution, 1)
    assert stopped.status is Status.STOPPED
    assert not fastlane.engine.running


async def test_a_retry_that_waits_is_stopped_with_its_job(fastlane: Deployment) -> None:
    async with fastlane.worker():
        first = await fastlane.ended(await fastlane.submit("exit 1", retries=3, retry=LONG))
        await until(lambda: has_attempts(fastlane, first, 2))
        await fastlane.stop_job(first)
        assert [each.status for each in await attempts(fastlane, first, 2)] == [Status.FAILED, Status.STOPPED]


async def test_every_execution_of_a_stopped_job_ends_however_many_newer_ones_have(fastlane: Deployment) -> None:
    execution = await fastlane.submit("hang")
    async with fastlane.worker():
        running = await fastlane.running(execution)
        newer = [
            replace(execution, id=f"newer {n}", status=Status.DONE, created_at=running.created_at + n + 1, revision=0)
            for n in range(150)
        ]
        await fastlane.storage.add_executions(newer)
        await fastlane.stop_job(execution)
        assert (await fastlane.ended(execution)).status is Status.STOPPED


async def test_a_stop_answers_before_a_long_backlog_has_ended_and_all_of_it_ends(fastlane: Deployment) -> None:
    execution = await fastlane.submit("hang")
    waiting = [replace(execution, id=f"later {n}", tick=1000.0 + n, revision=0) for n in range(1500)]
    await fastlane.storage.add_executions(waiting)
    stopping_it = stopping(fastlane)

    await stopping_it.stop_job(execution.task_id, execution.job_id, within=0.0)

    left = await _unfinished(fastlane, execution)
    assert left >= 1000
    await until(lambda: _is_nothing_left(fastlane, execution))


async def test_what_a_stop_had_not_come_to_when_its_process_died_ends_when_it_is_claimed(fastlane: Deployment) -> None:
    other = await fastlane.submit("hang")
    ticks = [replace(other, id=f"tick {n}", tick=1000.0 + n, revision=0) for n in range(300)]
    await fastlane.storage.add_executions(ticks)
    await fastlane.queue.put([queue_item(each, fastlane.routing()) for each in ticks])
    await stopping(fastlane).stop_job(other.task_id, other.job_id, within=0.0)
    _die_with_what_was_to_be_told()
    assert await _unfinished(fastlane, other) >= 100
    async with fastlane.worker():
        await until(lambda: _is_nothing_left(fastlane, other))
    assert not fastlane.engine.starts


async def test_runs_that_a_stop_had_not_come_to_when_its_process_died_are_ended_by_a_scheduler(
    fastlane: Deployment,
) -> None:
    first = await fastlane.submit("hang")
    async with fastlane.worker():
        await until(lambda: _is_running(fastlane, first))
        job = await fastlane.storage.get_job(first.task_id, first.job_id)
        assert job is not None
        # As a process leaves it that dies right after it has noted the stop.
        await fastlane.storage.put_job(stopped_for_good(job, now=fastlane.clock()))

        fastlane.clock.advance(STOP_SECONDS + 0.1)

        assert (await fastlane.ended(first)).status is Status.STOPPED
        await until(lambda: _is_told(fastlane, first))


async def test_a_stop_whose_job_is_run_again_stops_nothing_more(fastlane: Deployment) -> None:
    execution = await fastlane.submit("hang")
    waiting = [replace(execution, id=f"later {n}", tick=1000.0 + n, revision=0) for n in range(1500)]
    await fastlane.storage.add_executions(waiting)
    stopping_it = stopping(fastlane)
    job = await stopping_it.stop_job(execution.task_id, execution.job_id, within=0.0)
    await fastlane.storage.put_job(replace(job, stop_requested_at=None))

    await asyncio.wait_for(stopping_it.go_on(job), 30)

    assert await _unfinished(fastlane, execution) >= 1000


def _die_with_what_was_to_be_told() -> None:
    for task in asyncio.all_tasks():
        if "_tell_all" in repr(task):
            task.cancel()


async def _is_running(fastlane: Deployment, execution: Execution) -> bool:
    stored = await fastlane.storage.get_execution(execution.id)
    return stored is not None and stored.status is Status.RUNNING


async def _is_told(fastlane: Deployment, execution: Execution) -> bool:
    job = await fastlane.storage.get_job(execution.task_id, execution.job_id)
    return job is not None and job.stop_requested_at is not None and not is_stopping(job)


async def test_stopping_an_execution_ends_what_tries_it_again_and_leaves_the_job(fastlane: Deployment) -> None:
    async with fastlane.worker():
        first = await fastlane.ended(await fastlane.submit("exit 1", retries=3, retry=LONG))
        await until(lambda: has_attempts(fastlane, first, 2))
        await stopping(fastlane).stop_execution(first.task_id, first.job_id, first.id)
        (_, second) = await attempts(fastlane, first, 2)
    job = await fastlane.storage.get_job(first.task_id, first.job_id)
    assert job is not None
    assert (second.status, job.stop_requested_at) == (Status.STOPPED, None)


async def test_a_retry_that_is_not_made_yet_is_stopped_all_the_same(fastlane: Deployment) -> None:
    first = await fastlane.ended_without_retry(await fastlane.submit("exit 1", retries=3, retry=NOW))
    await stopping(fastlane).stop_execution(first.task_id, first.job_id, first.id)
    async with fastlane.worker():
        (_, second) = await attempts(fastlane, first, 2)
    assert second.status is Status.STOPPED
    assert list(fastlane.engine.starts) == [first.id]


async def test_what_a_stopped_job_is_made_behind_the_stop_s_back_is_not_started(fastlane: Deployment) -> None:
    first = await fastlane.submit("true")
    await fastlane.stop_job(first)
    # As by a worker that had read the job before.
    late = replace(first, id="late", status=Status.ENQUEUED, retry_of=first.id, stop_requested_at=None, revision=0)
    await fastlane.storage.add_executions([late])
    async with fastlane.worker():
        assert (await fastlane.ended(late)).status is Status.STOPPED
    assert not fastlane.engine.starts


async def _unfinished(fastlane: Deployment, execution: Execution) -> int:
    page = await fastlane.storage.list_unfinished_of_job(
        execution.job_id, task_id=execution.task_id, cursor=None, limit=5_000
    )
    return len(page.items)


async def _is_nothing_left(fastlane: Deployment, execution: Execution) -> bool:
    return await _unfinished(fastlane, execution) == 0
