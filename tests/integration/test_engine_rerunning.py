"""Jobs that are run again on request, with workers over an engine in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fastlane_core.engine.retrying import Selection
from fastlane_core.errors import Conflict, InvalidInput, RevisionConflict
from fastlane_core.models import Execution, Failure, Reason, RunOutcome, Status
from tests.integration.engine_harness import QUICK, Deployment, until
from tests.integration.engine_requests import LONG, NOW, attempts, has_attempts, retrying


async def test_an_ended_job_is_run_again_with_what_it_asks_for_now(fastlane: Deployment) -> None:
    async with fastlane.worker():
        first = await fastlane.ended(await fastlane.submit("exit 1"))
        again = await retrying(fastlane).retry_job(first.task_id, first.job_id)
        assert (await fastlane.ended(again)).failure is Failure.OPEN
        assert (await fastlane.now(first)).failure is Failure.REPLAYED
        third = await retrying(fastlane).retry_job(first.task_id, first.job_id)
        await fastlane.ended(third)
    assert [each.retry_of for each in (again, third)] == [first.id, again.id]
    assert (again.attempt, third.attempt, third.retries_used) == (2, 3, 0)


async def test_asking_twice_at_once_makes_one_execution(fastlane: Deployment) -> None:
    async with fastlane.worker():
        first = await fastlane.ended(await fastlane.submit("true"))
    asked = await asyncio.gather(
        *(retrying(fastlane).retry_job(first.task_id, first.job_id) for _ in range(20)), return_exceptions=True
    )
    assert {each.id for each in asked if isinstance(each, Execution)} == {(await fastlane.attempts(first))[1].id}
    assert all(isinstance(each, Execution | Conflict) for each in asked)
    assert len(await fastlane.attempts(first)) == 2


async def test_a_job_that_runs_or_waits_for_its_turn_is_not_run_again(fastlane: Deployment) -> None:
    execution = await fastlane.submit("hang")
    with pytest.raises(Conflict, match="enqueued"):
        await retrying(fastlane).retry_job(execution.task_id, execution.job_id)
    async with fastlane.worker():
        await fastlane.running(execution)
        with pytest.raises(Conflict, match="running"):
            await retrying(fastlane).retry_job(execution.task_id, execution.job_id)
        again = await retrying(fastlane).retry_job(execution.task_id, execution.job_id, force=True)
        assert (await fastlane.ended(execution)).status is Status.STOPPED
        await fastlane.running(again)
        fastlane.engine.end(again.id)
        assert [each.status for each in await attempts(fastlane, execution, 2)] == [Status.STOPPED, Status.DONE]


async def test_what_takes_over_starts_when_what_was_stopped_for_it_is_dead(fastlane: Deployment) -> None:
    async with fastlane.worker(options=replace(QUICK, stop_grace_seconds=3600.0)):
        execution = await fastlane.running(await fastlane.submit("hang-deaf"))
        again = await retrying(fastlane).retry_job(execution.task_id, execution.job_id, force=True)
        await until(lambda: _waits_for(fastlane, again, "the end of what was stopped for it"))
        assert fastlane.engine.running == [execution.id]
        fastlane.engine.end(execution.id, RunOutcome(exit_code=137, reason=Reason.SIGNAL))
        await fastlane.running(again)
        assert (await fastlane.now(execution)).status is Status.STOPPED
        await fastlane.stop_job(again)
        fastlane.engine.end(again.id)
        await attempts(fastlane, execution, 2)


async def test_a_retry_that_waits_is_brought_forward(fastlane: Deployment) -> None:
    async with fastlane.worker():
        first = await fastlane.ended(await fastlane.submit("exit 1", retries=1, retry=LONG))
        await until(lambda: has_attempts(fastlane, first, 2))
        again = await retrying(fastlane).retry_job(first.task_id, first.job_id)
        (_, second) = await attempts(fastlane, first, 2)
    assert again.id == second.id == first.retry_id


async def test_a_retry_that_is_owed_and_one_that_is_asked_for_are_one(fastlane: Deployment) -> None:
    first = await fastlane.ended_without_retry(await fastlane.submit("exit 1", retries=1, retry=LONG))
    again = await retrying(fastlane).retry_job(first.task_id, first.job_id)
    async with fastlane.worker():
        (_, second) = await attempts(fastlane, first, 2)
    assert again.id == second.id
    assert fastlane.engine.starts[second.id] == 1


async def test_a_job_that_was_never_started_is_started_before_its_time_only_by_force(fastlane: Deployment) -> None:
    execution = await fastlane.submit("true", start_at=fastlane.clock() + 1000)
    with pytest.raises(InvalidInput, match="still scheduled"):
        await retrying(fastlane).retry_job(execution.task_id, execution.job_id)
    async with fastlane.worker():
        assert (await retrying(fastlane).retry_job(execution.task_id, execution.job_id, force=True)).id == execution.id
        await attempts(fastlane, execution, 1)


async def test_a_stopped_job_goes_on_by_a_retry_with_the_retries_that_it_has(fastlane: Deployment) -> None:
    execution = await fastlane.submit("exit 1", retries=1, retry=NOW)
    await fastlane.stop_job(execution)
    async with fastlane.worker():
        await retrying(fastlane).retry_job(execution.task_id, execution.job_id)
        statuses = [each.status for each in await attempts(fastlane, execution, 3)]
    assert statuses == [Status.STOPPED, Status.FAILED, Status.FAILED]


async def test_a_job_that_has_expired_is_not_run_again(fastlane: Deployment) -> None:
    async with fastlane.worker():
        first = await fastlane.ended(await fastlane.submit("true", expiration=fastlane.clock() + 60))
    fastlane.clock.advance(61)
    with pytest.raises(Conflict, match="expiration"):
        await retrying(fastlane).retry_job(first.task_id, first.job_id)


async def test_many_are_run_again_by_how_they_ended(fastlane: Deployment) -> None:
    async with fastlane.worker():
        failed = [await fastlane.ended(await fastlane.submit("exit 1", task="many")) for _ in range(30)]
        done = await fastlane.ended(await fastlane.submit("true", task="many"))
        rejected = await fastlane.ended(await fastlane.submit("reject", task="many"))
    again: list[Execution] = []
    cursor: str | None = None
    while True:
        selection = Selection(reasons=frozenset({Reason.EXIT_CODE}))
        part = await retrying(fastlane).retry_many("many", selection, cursor=cursor, limit=12, seconds=10.0)
        assert len(part.retried) <= 12
        again += part.retried
        cursor = part.cursor
        if cursor is None:
            break
    assert {each.retry_of for each in again} == {each.id for each in failed}
    assert len(again) == 30
    for other in (done, rejected):
        assert len(await fastlane.attempts(other)) == 1
    # Out of time it stops behind what it has begun with, and says where to go on.
    part = await retrying(fastlane).retry_many("many", Selection(), cursor=None, limit=1000, seconds=0.0)
    assert part.looked_at == 25
    assert part.cursor is not None


async def test_a_retry_asked_for_while_the_job_changes_is_not_lost(fastlane: Deployment) -> None:
    async with fastlane.worker():
        first = await fastlane.ended(await fastlane.submit("true"))

    async def keep_changing() -> None:
        for number in range(30):
            job = await fastlane.storage.get_job(first.task_id, first.job_id)
            assert job is not None
            try:
                await fastlane.storage.put_job(replace(job, metadata={"n": number}))
            except RevisionConflict:
                continue

    again, _ = await asyncio.gather(retrying(fastlane).retry_job(first.task_id, first.job_id), keep_changing())
    assert again.retry_of == first.id
    assert len(await fastlane.attempts(first)) == 2


async def _waits_for(fastlane: Deployment, execution: Execution, why: str) -> bool:
    return (await fastlane.now(execution)).waiting_for == why
