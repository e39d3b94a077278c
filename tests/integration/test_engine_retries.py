"""Retries, limits of time, stopping, replacing and running again, with workers over an engine in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from fastlane_core.engine.replacing import JobReplacement, Precondition
from fastlane_core.engine.retrying import Retrying, Selection
from fastlane_core.engine.schedules import STOP_SECONDS, is_stopping, stopped_for_good
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import JobOrder, JobSubmission, queue_item
from fastlane_core.errors import Conflict, InvalidInput, PreconditionFailed, PullFailed, RevisionConflict
from fastlane_core.models import Execution, Failure, Job, Reason, RetryPolicy, RunOutcome, RunSpec, Status
from tests.integration.engine_harness import QUICK, Deployment, deployment, until

#: A wait that no test sits out.
LONG = RetryPolicy(min_seconds=3600.0, max_seconds=3600.0)
NOW = RetryPolicy(min_seconds=0.0)


@pytest.fixture
async def fastlane(tmp_path: Path) -> AsyncIterator[Deployment]:
    async with deployment(tmp_path) as made:
        yield made


def stopping(fastlane: Deployment) -> Stopping:
    return Stopping(fastlane.storage, fastlane.queue, fastlane.clock)


def retrying(fastlane: Deployment) -> Retrying:
    return Retrying(fastlane.storage, fastlane.queue, fastlane.routing(), stopping(fastlane), fastlane.clock)


async def put(
    fastlane: Deployment, command: str, precondition: Precondition | None = None, **changes: object
) -> tuple[Job, Execution]:
    """Put the job `j`."""
    spec = RunSpec(image="image", command=command, timeout=600.0)
    order = replace(JobOrder(task_id="test", spec=spec, job_id="j"), **changes)  # type: ignore[arg-type]
    submission = JobSubmission(fastlane.storage, fastlane.queue, fastlane.routing(), fastlane.clock)
    replacement = JobReplacement(fastlane.storage, fastlane.queue, submission, stopping(fastlane))
    submitted = await replacement.put(order, precondition or Precondition())
    assert submitted.execution is not None
    return submitted.job, submitted.execution


async def attempts(fastlane: Deployment, first: Execution, count: int) -> list[Execution]:
    """All executions of the job, once there are so many that have ended."""

    async def have_ended() -> bool:
        found = await fastlane.attempts(first)
        return len(found) >= count and all(each.status.is_final and each.owes_at is None for each in found)

    await until(have_ended)
    found = await fastlane.attempts(first)
    assert len(found) == count
    return found


# Retries


async def test_a_time_out_is_tried_again_where_the_job_says_so_also_when_it_ended_with_0(fastlane: Deployment) -> None:
    policy = RetryPolicy(min_seconds=0.0, on=(Reason.TIMED_OUT,))
    async with fastlane.worker():
        # It has ended by itself when its time-out is noticed, and with success.
        late = await fastlane.submit("hang", timeout=0.2, retries=1, retry=policy)
        first, second = await attempts(fastlane, late, 2)
        other = await fastlane.submit("exit 3", retries=1, retry=policy)
        await attempts(fastlane, other, 1)
    assert [first.reason, second.reason] == [Reason.TIMED_OUT, Reason.TIMED_OUT]
    assert (second.retry_of, second.retries_used, second.retry_id) == (first.id, 1, None)


async def test_a_run_that_was_too_slow_counts_as_timed_out_although_it_succeeded(fastlane: Deployment) -> None:
    policy = RetryPolicy(min_seconds=0.0, on=(Reason.TIMED_OUT,))
    execution = await fastlane.submit("hang", timeout=50.0, retries=1, retry=policy)
    gone = asyncio.create_task((await fastlane.claim("gone")).run())
    await fastlane.running(execution)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    # While nobody looks after it, its time runs out, and then it ends by itself.
    run = fastlane.engine.run(execution.id)
    run.created_at -= 60
    fastlane.engine.end(execution.id)
    fastlane.clock.advance(61)
    async with fastlane.worker("heir"):
        await until(lambda: _count(fastlane, execution, 2))
        first = await fastlane.now(execution)
        assert (first.status, first.exit_code, first.reason) == (Status.TIMEDOUT, 0, Reason.TIMED_OUT)
        await stopping(fastlane).stop_job("test", execution.job_id)
        await attempts(fastlane, execution, 2)


async def test_the_next_retry_is_due_when_the_policy_says_and_tells_so(fastlane: Deployment) -> None:
    async with fastlane.worker():
        before = fastlane.clock()
        first = await fastlane.ended(await fastlane.submit("exit 1", retries=1, retry=LONG))
        assert first.retry_at is not None
        assert 3600.0 <= first.retry_at - before < 3600.0 + 60
        await until(lambda: _count(fastlane, first, 2))
        (_, second) = await fastlane.attempts(first)
        assert (second.status, second.due_at) == (Status.ENQUEUED, first.retry_at)
        # Workers come and go; the retry stays.
    async with fastlane.worker("another"):
        fastlane.clock.advance(3700)
        await attempts(fastlane, first, 2)


async def test_a_pull_that_fails_is_tried_again_but_not_where_the_job_leaves_it_out(fastlane: Deployment) -> None:
    async with fastlane.worker():
        fastlane.engine.fail_next_pull(PullFailed("the registry is in trouble"))
        first = await fastlane.submit("true", retries=1, retry=NOW)
        assert [each.status for each in await attempts(fastlane, first, 2)] == [Status.FAILED, Status.DONE]
        fastlane.engine.fail_next_pull(PullFailed("the registry is in trouble"))
        await attempts(fastlane, await fastlane.submit("true", retries=1, retry=RetryPolicy(on=(Reason.EXIT_CODE,))), 1)


# Limits of time


async def test_a_pull_that_takes_too_long_times_out_and_is_tried_again(fastlane: Deployment) -> None:
    async with fastlane.worker():
        with fastlane.engine.pulling("big") as pull:
            submission = JobSubmission(fastlane.storage, fastlane.queue, fastlane.routing(), fastlane.clock)
            spec = RunSpec(image="big", command="true", timeout=600.0, pull_timeout=0.2)
            first = (await submission.submit(JobOrder(task_id="test", spec=spec, retries=1, retry=LONG))).execution
            await submission.settled()
            assert first is not None
            pulled = await fastlane.ended(first)
            await until(lambda: pull.waiting == 0)
            await until(lambda: _count(fastlane, first, 2))
        fastlane.clock.advance(3700)
        (_, second) = await attempts(fastlane, first, 2)
    assert (pulled.status, pulled.reason, pulled.started_at) == (Status.TIMEDOUT, Reason.PULL_TIMED_OUT, None)
    assert "0.2 s" in (pulled.message or "")
    assert second.status is Status.DONE
    assert fastlane.engine.starts == {second.id: 1}


async def test_an_adopted_pull_has_no_more_time_than_it_had(fastlane: Deployment) -> None:
    with fastlane.engine.pulling("big"):
        execution = await fastlane.submit("true", image="big")
        stored = await fastlane.now(execution)
        await fastlane.storage.put_execution(replace(stored, spec=replace(stored.spec, pull_timeout=100.0)))
        async with fastlane.worker("first"):
            await until(lambda: _is(fastlane, execution, Status.PULLING))
        fastlane.clock.advance(101)
        async with fastlane.worker("second"):
            ended = await fastlane.ended(execution)
    assert (ended.reason, ended.worker) == (Reason.PULL_TIMED_OUT, "second")


async def test_what_waits_in_a_dead_lane_for_too_long_expires(fastlane: Deployment) -> None:
    execution = await _with_queue_timeout(fastlane, 100.0)
    other = await fastlane.submit("true")
    with fastlane.engine.outage():
        async with fastlane.worker():
            fastlane.clock.advance(110)
            ended = await fastlane.ended(execution)
            assert not (await fastlane.now(other)).status.is_final
    assert (ended.status, ended.reason) == (Status.EXPIRED, Reason.EXPIRED)
    assert "100 s" in (ended.message or "")


async def test_what_has_waited_for_too_long_is_not_started(fastlane: Deployment) -> None:
    execution = await _with_queue_timeout(fastlane, 100.0)
    fastlane.clock.advance(101)
    await asyncio.wait_for((await fastlane.claim("worker")).run(), 30)
    assert (await fastlane.now(execution)).status is Status.EXPIRED
    assert not fastlane.engine.starts


async def test_a_job_that_expires_while_it_is_pulled_is_not_started(fastlane: Deployment) -> None:
    async with fastlane.worker():
        with fastlane.engine.pulling("big"):
            execution = await fastlane.submit("true", image="big", expiration=fastlane.clock() + 100)
            await until(lambda: _is(fastlane, execution, Status.PULLING))
            fastlane.clock.advance(101)
        assert (await fastlane.ended(execution)).status is Status.EXPIRED
    assert not fastlane.engine.starts


# Stopping


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
        await until(lambda: _count(fastlane, first, 2))
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
        await until(lambda: _count(fastlane, first, 2))
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


# Replacing


async def test_a_put_makes_a_job_and_another_replaces_what_waits(fastlane: Deployment) -> None:
    job, first = await put(fastlane, "true", retries=5)
    assert (job.id, job.generation, first.job_id) == ("j", 0, "j")
    replaced, second = await put(fastlane, "exit 3")
    assert (replaced.generation, replaced.retries, replaced.created_at) == (1, 0, job.created_at)
    assert (await fastlane.now(first)).status is Status.STOPPED
    assert "newer request" in ((await fastlane.now(first)).message or "")
    async with fastlane.worker():
        assert (await fastlane.ended(second)).exit_code == 3
    assert list(fastlane.engine.starts) == [second.id]


async def test_a_retry_that_an_older_request_owes_is_not_made(fastlane: Deployment) -> None:
    _, first = await put(fastlane, "exit 1", retries=3, retry=NOW)
    await fastlane.ended_without_retry(first)
    async with fastlane.worker():
        await put(fastlane, "true")
        await attempts(fastlane, first, 2)


async def test_a_put_leaves_what_runs_alone_but_not_its_retries(fastlane: Deployment) -> None:
    async with fastlane.worker():
        _, first = await put(fastlane, "hang", retries=3, retry=NOW)
        await fastlane.running(first)
        _, second = await put(fastlane, "true")
        assert (await fastlane.ended(second)).status is Status.DONE
        assert (await fastlane.now(first)).status is Status.RUNNING
        fastlane.engine.end(first.id, RunOutcome(exit_code=1, reason=Reason.EXIT_CODE))
        await attempts(fastlane, first, 2)
    assert fastlane.engine.starts == {first.id: 1, second.id: 1}


async def test_a_put_replaces_a_retry_and_a_start_that_wait_for_their_time(fastlane: Deployment) -> None:
    async with fastlane.worker():
        _, first = await put(fastlane, "exit 1", retries=3, retry=LONG)
        await fastlane.ended(first)
        await until(lambda: _count(fastlane, first, 2))
        await put(fastlane, "exit 2", start_at=fastlane.clock() + 1000)
        await put(fastlane, "true")
        found = await attempts(fastlane, first, 4)
    statuses = [Status.FAILED, Status.STOPPED, Status.STOPPED, Status.DONE]
    assert [each.status for each in found] == statuses


async def test_what_an_older_request_is_made_behind_the_put_s_back_is_not_started(fastlane: Deployment) -> None:
    _, first = await put(fastlane, "true", start_at=fastlane.clock() + 1000)
    await put(fastlane, "true", start_at=fastlane.clock() + 2000)
    late = replace(first, id="late", status=Status.ENQUEUED, tick=1.0, due_at=0.0, revision=0)
    await fastlane.storage.add_executions([late])
    async with fastlane.worker():
        assert (await fastlane.ended(late)).status is Status.STOPPED
    assert not fastlane.engine.starts


async def test_a_put_revives_a_stopped_job(fastlane: Deployment) -> None:
    _, first = await put(fastlane, "true")
    await fastlane.stop_job(first)
    async with fastlane.worker():
        _, second = await put(fastlane, "exit 1", retries=1, retry=NOW)
        await attempts(fastlane, second, 3)


async def test_a_put_that_is_repeated_with_its_key_changes_nothing(fastlane: Deployment) -> None:
    once = await put(fastlane, "true", idempotency_key="k", request_digest="d")
    assert await put(fastlane, "true", idempotency_key="k", request_digest="d") == once
    with pytest.raises(Conflict, match="another body"):
        await put(fastlane, "true", idempotency_key="k", request_digest="e")
    job, execution = await put(fastlane, "true", idempotency_key="l", request_digest="d")
    assert (job.generation, execution.id != once[1].id) == (1, True)
    # A put's keys are its job's own.
    await fastlane.submit("true", idempotency_key="k", request_digest="d")


async def test_a_put_may_ask_for_what_it_replaces(fastlane: Deployment) -> None:
    with pytest.raises(PreconditionFailed):
        await put(fastlane, "true", Precondition(generation=0))
    await put(fastlane, "true", Precondition(absent=True))
    with pytest.raises(PreconditionFailed):
        await put(fastlane, "true", Precondition(absent=True))
    await put(fastlane, "true", Precondition(generation=0))
    with pytest.raises(PreconditionFailed, match="of generation 1, not 0"):
        await put(fastlane, "true", Precondition(generation=0))


async def test_of_puts_at_once_the_last_one_is_what_runs(fastlane: Deployment) -> None:
    made = await asyncio.gather(*(put(fastlane, f"exit {number + 1}") for number in range(20)))
    job = await fastlane.storage.get_job("test", "j")
    assert job is not None
    assert sorted(each.generation for each, _ in made) == list(range(20))
    async with fastlane.worker():
        found = await attempts(fastlane, made[0][1], 20)
    ran = [each for each in found if each.status is Status.FAILED]
    assert [(each.generation, each.spec) for each in ran] == [(19, job.spec)]


# Running again


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
        await until(lambda: _count(fastlane, first, 2))
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


async def _with_queue_timeout(fastlane: Deployment, seconds: float) -> Execution:
    stored = await fastlane.now(await fastlane.submit("true"))
    return await fastlane.storage.put_execution(replace(stored, spec=replace(stored.spec, queue_timeout=seconds)))


async def _count(fastlane: Deployment, execution: Execution, count: int) -> bool:
    return len(await fastlane.attempts(execution)) == count


async def _is(fastlane: Deployment, execution: Execution, status: Status) -> bool:
    return (await fastlane.now(execution)).status is status


async def _waits_for(fastlane: Deployment, execution: Execution, why: str) -> bool:
    return (await fastlane.now(execution)).waiting_for == why


async def _unfinished(fastlane: Deployment, execution: Execution) -> int:
    page = await fastlane.storage.list_unfinished_of_job(
        execution.job_id, task_id=execution.task_id, cursor=None, limit=5_000
    )
    return len(page.items)


async def _is_nothing_left(fastlane: Deployment, execution: Execution) -> bool:
    return await _unfinished(fastlane, execution) == 0
