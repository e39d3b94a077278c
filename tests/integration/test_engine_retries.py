"""Retries and limits of time, with workers over an engine in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from fastlane_core.engine.submission import JobOrder, JobSubmission
from fastlane_core.errors import PullFailed
from fastlane_core.models import Execution, Reason, RetryPolicy, RunSpec, Status
from tests.integration.engine_harness import Deployment, until
from tests.integration.engine_requests import LONG, NOW, attempts, has_attempts, stopping


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
        await until(lambda: has_attempts(fastlane, execution, 2))
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
        await until(lambda: has_attempts(fastlane, first, 2))
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
            await until(lambda: has_attempts(fastlane, first, 2))
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


async def _with_queue_timeout(fastlane: Deployment, seconds: float) -> Execution:
    stored = await fastlane.now(await fastlane.submit("true"))
    return await fastlane.storage.put_execution(replace(stored, spec=replace(stored.spec, queue_timeout=seconds)))


async def _is(fastlane: Deployment, execution: Execution, status: Status) -> bool:
    return (await fastlane.now(execution)).status is status
