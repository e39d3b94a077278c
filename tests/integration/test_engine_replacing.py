"""Jobs that are put in the place of others, with workers over an engine in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fastlane_core.engine.replacing import Precondition
from fastlane_core.errors import Conflict, PreconditionFailed
from fastlane_core.models import Reason, RunOutcome, Status
from tests.integration.engine_harness import Deployment, until
from tests.integration.engine_requests import LONG, NOW, attempts, has_attempts, put


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
        await until(lambda: has_attempts(fastlane, first, 2))
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
