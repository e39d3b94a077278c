"""Executions through workers: every ending, every kind of trouble, and every way of losing a worker."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.contracts.queue import Lease, Renewal
from fastlane_core.engine.presence import WORKERS_SCOPE
from fastlane_core.engine.topics import worker_topic
from fastlane_core.errors import EngineUnavailable, StartLost
from fastlane_core.models import EventKind, Execution, Reason, Status, Stream
from tests.integration.engine_harness import QUICK, Deployment, opened, until

# Endings


async def test_a_job_runs_and_its_output_is_stored(fastlane: Deployment) -> None:
    async with fastlane.worker():
        execution = await fastlane.ended(await fastlane.submit("count 1000 10"))
        await until(lambda: _queue_is_empty(fastlane))
    assert (execution.status, execution.exit_code, execution.reason) == (Status.DONE, 0, Reason.SUCCEEDED)
    assert await fastlane.output(execution) == b"".join(b"%d\n" % number for number in range(1, 1001))
    assert await fastlane.output(execution, Stream.STDERR) == b"".join(b"%d\n" % number for number in range(1, 11))
    assert execution.stdout_bytes == len(await fastlane.output(execution))


async def test_a_failure_is_tried_again_as_often_as_asked_and_each_attempt_is_linked(fastlane: Deployment) -> None:
    async with fastlane.worker():
        first = await fastlane.submit("exit 3", retries=2)
        await until(lambda: _has_ended(fastlane, first, attempts=3))
    attempts = await fastlane.attempts(first)
    assert [each.exit_code for each in attempts] == [3, 3, 3]
    assert [each.attempt for each in attempts] == [1, 2, 3]
    assert [each.retry_of for each in attempts] == [None, attempts[0].id, attempts[1].id]
    assert [each.owes_at for each in attempts] == [None, None, None]
    assert all(count == 1 for count in fastlane.engine.starts.values())
    # Whoever ends an attempt makes the next one; the reconciler only does it for workers that died.
    mended = [event for event in fastlane.events if event.kind is EventKind.EXECUTION_MENDED]
    assert not [event for event in mended if event.execution_id is not None]


async def test_a_missing_image_fails_with_its_reason_and_is_no_trouble_of_the_place(fastlane: Deployment) -> None:
    fastlane.engine.missing_images.add("nowhere")
    async with fastlane.worker():
        missing = await fastlane.ended(await fastlane.submit("true", image="nowhere", retries=3))
        other = await fastlane.ended(await fastlane.submit("true"))
    assert (missing.status, missing.reason, missing.retry_id) == (Status.FAILED, Reason.IMAGE_NOT_FOUND, None)
    assert "nowhere" in (missing.message or "")
    assert other.status is Status.DONE
    assert not [event for event in fastlane.events if event.kind is EventKind.ENGINE_TROUBLE]


async def test_a_rejected_start_fails_with_its_reason(fastlane: Deployment) -> None:
    async with fastlane.worker():
        execution = await fastlane.ended(await fastlane.submit("reject"))
    assert (execution.status, execution.reason) == (Status.FAILED, Reason.START_REJECTED)


async def test_an_expired_job_is_never_started(fastlane: Deployment) -> None:
    execution = await fastlane.submit("true", expiration=fastlane.clock() - 1)
    async with fastlane.worker():
        ended = await fastlane.ended(execution)
    assert (ended.status, ended.reason) == (Status.EXPIRED, Reason.EXPIRED)
    assert not fastlane.engine.starts


async def test_a_run_that_takes_too_long_is_stopped_and_keeps_its_output(fastlane: Deployment) -> None:
    async with fastlane.worker():
        execution = await fastlane.ended(await fastlane.submit("hang", timeout=0.3, retries=1))
    assert (execution.status, execution.reason, execution.exit_code) == (Status.TIMEDOUT, Reason.TIMED_OUT, 143)
    assert await fastlane.output(execution) == b"ready\n"
    assert execution.retry_id is None
    assert not fastlane.engine.running


async def test_output_beyond_the_limit_is_cut_and_says_so(fastlane: Deployment) -> None:
    async with fastlane.worker(options=replace(QUICK, max_log_bytes=1000)):
        execution = await fastlane.ended(await fastlane.submit("repeat x 5000"))
    assert (execution.status, execution.log_truncated, execution.stdout_bytes) == (Status.DONE, True, 1000)
    assert await fastlane.output(execution) == b"x" * 1000


# Stopping


async def test_stopping_a_waiting_job_ends_it_at_once_and_it_never_runs(fastlane: Deployment) -> None:
    execution = await fastlane.submit("true", retries=3)
    await fastlane.stop_job(execution)
    assert (await fastlane.now(execution)).status is Status.STOPPED
    async with fastlane.worker():
        other = await fastlane.ended(await fastlane.submit("true"))
    assert list(fastlane.engine.starts) == [other.id]


@pytest.mark.parametrize("command", ["hang", "hang-deaf"])
async def test_stopping_a_running_job_kills_its_run_and_ends_its_retries(fastlane: Deployment, command: str) -> None:
    async with fastlane.worker():
        execution = await fastlane.running(await fastlane.submit(command, retries=3))
        await fastlane.stop_job(execution)
        await fastlane.stop_job(execution)
        ended = await fastlane.ended(execution)
    assert (ended.status, ended.reason, ended.retry_id) == (Status.STOPPED, Reason.STOPPED, None)
    assert not fastlane.engine.running
    assert await fastlane.output(ended) == b"ready\n"


async def test_the_queue_s_word_alone_stops_no_run(fastlane: Deployment) -> None:
    async with fastlane.worker(options=replace(QUICK, lease_seconds=0.3)):
        execution = await fastlane.running(await fastlane.submit("hang"))
        await fastlane.queue.cancel(execution.id)
        # Several renewals of the lease, each of which brings the queue's word.
        await asyncio.sleep(0.4)
        assert fastlane.engine.running == [execution.id]
        fastlane.engine.end(execution.id)
        assert (await fastlane.ended(execution)).status is Status.DONE


class HangingStorage(SqliteStorage):
    """Gives no execution while `answers` is not set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.answers = asyncio.Event()
        self.answers.set()

    async def get_execution(self, execution_id: str) -> Execution | None:
        await self.answers.wait()
        return await super().get_execution(execution_id)


class CountingQueue(SqliteQueue):
    """Counts renewals."""

    renewals = 0

    async def renew(self, leases: Sequence[Lease], lease_seconds: float) -> Renewal:
        renewal = await super().renew(leases, lease_seconds)
        self.renewals += 1
        return renewal


async def test_leases_are_renewed_while_the_storage_hangs_that_is_asked_for_stops(tmp_path: Path) -> None:
    storage = HangingStorage(tmp_path / "storage.db")
    fastlane = Deployment(tmp_path, storage=storage)
    queue = fastlane.queue = CountingQueue(tmp_path / "queue.db", clock=fastlane.clock)

    async def is_renewed_again(number: int) -> bool:
        await queue.publish(worker_topic("worker"))
        return queue.renewals >= number

    async with opened(fastlane), fastlane.worker():
        execution = await fastlane.running(await fastlane.submit("hang"))
        storage.answers.clear()
        await queue.cancel(execution.id)
        before = queue.renewals
        await until(lambda: is_renewed_again(before + 5))
        storage.answers.set()
        await fastlane.stop_job(execution)
        assert (await fastlane.ended(execution)).status is Status.STOPPED


# Engines in trouble


async def test_jobs_wait_for_an_engine_that_is_down_say_why_and_use_up_no_attempt(fastlane: Deployment) -> None:
    async with fastlane.worker():
        with fastlane.engine.outage():
            execution = await fastlane.submit("true")
            await until(lambda: _a_worker_reports(fastlane, "down"))
            assert (await fastlane.now(execution)).status is Status.ENQUEUED
        ended = await fastlane.ended(execution)
    assert (ended.status, ended.attempt, ended.waiting_for) == (Status.DONE, 1, None)
    assert fastlane.engine.starts == {execution.id: 1}


async def test_a_start_whose_answer_was_lost_is_found_and_not_repeated(fastlane: Deployment) -> None:
    fastlane.engine.fail_next_start(EngineUnavailable("the answer was lost"), after_starting=True)
    async with fastlane.worker():
        ended = await fastlane.ended(await fastlane.submit("echo once"))
    assert ended.status is Status.DONE
    assert fastlane.engine.starts == {ended.id: 1}
    assert await fastlane.output(ended) == b"once\n"


async def test_a_start_that_its_engine_lost_is_tried_again_and_uses_up_no_retry(fastlane: Deployment) -> None:
    fastlane.engine.fail_next_start(StartLost("the engine died while it started it"))
    async with fastlane.worker():
        first = await fastlane.ended(await fastlane.submit("echo once"))
        assert (first.status, first.reason, first.exit_code) == (Status.FAILED, Reason.ENGINE_LOST, None)
        await until(lambda: _count_attempts(fastlane, first, 2))
        (_, second) = await fastlane.attempts(first)
        assert (await fastlane.ended(second)).status is Status.DONE
    assert second.retries_used == 0


async def test_an_execution_whose_start_gets_no_answer_stays_with_its_place_and_says_why(fastlane: Deployment) -> None:
    for _ in range(20):
        fastlane.engine.fail_next_start(EngineUnavailable("host hangs"))
    async with fastlane.worker():
        execution = await fastlane.submit("sleep 60")
        await until(lambda: _waits_for(fastlane, execution, "host hangs"))
        waiting = await fastlane.now(execution)
        assert (waiting.status, waiting.place) == (Status.PULLING, "host")
        await fastlane.running(execution)
        # One of the calls that got no answer may have started it.
        assert fastlane.engine.run(execution.id).request.may_exist
        fastlane.engine.end(execution.id)
        ended = await fastlane.ended(execution)
    assert (ended.status, ended.attempt, ended.waiting_for) == (Status.DONE, 1, None)
    assert fastlane.engine.starts == {execution.id: 1}


async def test_a_short_outage_while_a_run_goes_on_is_waited_out(fastlane: Deployment) -> None:
    async with fastlane.worker():
        execution = await fastlane.running(await fastlane.submit("hang"))
        await until(lambda: _has_output(fastlane, execution, b"ready\n"))
        with fastlane.engine.outage():
            await until(lambda: any(event.kind is EventKind.ENGINE_TROUBLE for event in fastlane.events))
        fastlane.engine.write(execution.id, b"back\n")
        fastlane.engine.end(execution.id)
        ended = await fastlane.ended(execution)
    assert (ended.status, await fastlane.output(ended)) == (Status.DONE, b"ready\nback\n")


async def test_a_run_says_that_its_engine_is_away_for_as_long_as_it_is(fastlane: Deployment) -> None:
    async with fastlane.worker():
        execution = await fastlane.running(await fastlane.submit("hang"))
        with fastlane.engine.outage():
            await until(lambda: _waiting_for(fastlane, execution))
            assert "out of reach" in str(await _waiting_for(fastlane, execution))
        await until(lambda: _says_nothing(fastlane, execution))
        fastlane.engine.end(execution.id)
        assert (await fastlane.ended(execution)).status is Status.DONE


async def test_a_run_on_a_place_that_takes_nothing_new_says_no_more_that_its_engine_is_away(
    fastlane: Deployment,
) -> None:
    async with fastlane.worker():
        execution = await fastlane.running(await fastlane.submit("hang"))
        with fastlane.engine.outage():
            await until(lambda: _waiting_for(fastlane, execution))
            fastlane.engine.cordoned.add("host")
        await until(lambda: _says_nothing(fastlane, execution))
        fastlane.engine.end(execution.id)
        assert (await fastlane.ended(execution)).status is Status.DONE


async def _waiting_for(fastlane: Deployment, execution: Execution) -> str | None:
    stored = await fastlane.storage.get_execution(execution.id)
    assert stored is not None
    assert stored.status is Status.RUNNING
    return stored.waiting_for


async def _says_nothing(fastlane: Deployment, execution: Execution) -> bool:
    return await _waiting_for(fastlane, execution) is None


async def test_an_engine_that_stays_away_is_lost_and_its_run_is_cleaned_up_when_it_is_back(
    fastlane: Deployment,
) -> None:
    # The next pass is an hour away: it is the return of the place that has it swept.
    async with fastlane.worker(
        options=replace(QUICK, engine_lost_after_seconds=0.1, reconcile_interval_seconds=3600.0)
    ):
        execution = await fastlane.running(await fastlane.submit("hang"))
        with fastlane.engine.outage():
            lost = await fastlane.ended(execution)
            assert (lost.status, lost.reason) == (Status.FAILED, Reason.ENGINE_LOST)
            await until(lambda: _serves_no_place(fastlane))
            fastlane.clock.advance(60)
        await until(lambda: execution.id not in fastlane.engine.running)
        stopped = fastlane.engine.run(execution.id).outcome
        assert stopped is not None
        # Killed: it has lost, and another runs by now.
        assert stopped.exit_code == 137
        await until(lambda: _count_attempts(fastlane, execution, 2))
        (_, second) = await fastlane.attempts(execution)
        assert second.retries_used == 0
        await fastlane.running(second)
        fastlane.engine.end(second.id)
        assert (await fastlane.ended(second)).status is Status.DONE
    assert fastlane.engine.starts == {execution.id: 1, second.id: 1}


async def test_what_was_given_up_is_ended_when_its_engine_is_back_though_it_takes_nothing_new(
    fastlane: Deployment,
) -> None:
    async with fastlane.worker(
        options=replace(QUICK, engine_lost_after_seconds=0.1, reconcile_interval_seconds=3600.0)
    ):
        execution = await fastlane.running(await fastlane.submit("hang"))
        with fastlane.engine.outage():
            await fastlane.ended(execution)
            await until(lambda: _serves_no_place(fastlane))
            fastlane.engine.cordoned.add("host")
            fastlane.engine.places["other"] = 50
            fastlane.clock.advance(60)
        await until(lambda: _count_attempts(fastlane, execution, 2))
        (_, second) = await fastlane.attempts(execution)
        assert (await fastlane.running(second)).place == "other"
        await until(lambda: execution.id not in fastlane.engine.running)
        assert second.id in fastlane.engine.running


async def test_a_run_that_was_removed_by_hand_ends_as_lost(fastlane: Deployment) -> None:
    async with fastlane.worker():
        execution = await fastlane.running(await fastlane.submit("hang"))
        fastlane.engine.lose(execution.id)
        ended = await fastlane.ended(execution)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.RUN_LOST)


# Losing workers


async def test_a_paused_worker_cannot_write_over_the_one_that_adopted(fastlane: Deployment) -> None:
    execution = await fastlane.submit("hang")
    paused = await fastlane.claim("paused", replace(QUICK, lease_seconds=30))
    paused_task = asyncio.create_task(paused.run())
    await fastlane.running(execution)
    fastlane.clock.advance(31)
    heir = await fastlane.claim("heir")
    assert heir.lease.adopted
    heir_task = asyncio.create_task(heir.run())
    await until(lambda: _is_held_by(fastlane, execution, "heir"))
    fastlane.engine.write(execution.id, b"more\n")
    fastlane.engine.end(execution.id)
    await asyncio.wait_for(asyncio.gather(paused_task, heir_task), 30)
    ended = await fastlane.now(execution)
    assert (ended.status, ended.worker, ended.fence) == (Status.DONE, "heir", 2)
    assert await fastlane.output(ended) == b"ready\nmore\n"
    assert fastlane.engine.starts == {execution.id: 1}
    endings = [event for event in fastlane.events if event.status is Status.DONE]
    assert [event.worker for event in endings] == ["heir"]


async def test_a_worker_paused_before_it_began_leaves_the_execution_to_its_heir(fastlane: Deployment) -> None:
    execution = await fastlane.submit("hang")
    paused = await fastlane.claim("paused", replace(QUICK, lease_seconds=30))
    fastlane.clock.advance(31)
    heir = asyncio.create_task((await fastlane.claim("heir")).run())
    await fastlane.running(execution)
    await asyncio.wait_for(paused.run(), 30)
    fastlane.engine.end(execution.id)
    await asyncio.wait_for(heir, 30)
    assert (await fastlane.now(execution)).status is Status.DONE
    assert fastlane.engine.starts == {execution.id: 1}


async def test_a_stopped_worker_hands_over_and_the_next_adopts_without_waiting_for_leases(fastlane: Deployment) -> None:
    async with fastlane.worker("first"):
        executions = [await fastlane.running(await fastlane.submit("hang")) for _ in range(5)]
    assert len(fastlane.engine.running) == 5
    async with fastlane.worker("second"):
        for execution in executions:
            await until(lambda execution=execution: _is_held_by(fastlane, execution, "second"))
            fastlane.engine.end(execution.id)
            assert (await fastlane.ended(execution)).status is Status.DONE
    assert set(fastlane.engine.starts.values()) == {1}


# Capacity and lanes


async def test_a_lane_never_runs_more_than_its_capacity_over_all_workers(fastlane: Deployment) -> None:
    fastlane.lanes["fake:default"] = 3
    most = 0

    async def sample() -> None:
        nonlocal most
        while True:
            most = max(most, len(fastlane.engine.running))
            await asyncio.sleep(0)

    sampler = asyncio.create_task(sample())
    executions = [await fastlane.submit("sleep 0.02") for _ in range(40)]
    async with fastlane.worker("one"), fastlane.worker("two"):
        for execution in executions:
            assert (await fastlane.ended(execution)).status is Status.DONE
    sampler.cancel()
    with suppress(asyncio.CancelledError):
        await sampler
    assert most == 3
    assert set(fastlane.engine.starts.values()) == {1}


async def test_executions_that_are_claimed_together_spread_over_the_places(fastlane: Deployment) -> None:
    fastlane.engine.places = {"one": 50, "two": 50, "three": 50}
    executions = [await fastlane.submit("hang") for _ in range(12)]
    async with fastlane.worker():
        placed = [(await fastlane.running(execution)).place for execution in executions]
    assert Counter(placed) == {"one": 4, "two": 4, "three": 4}


async def _has_ended(fastlane: Deployment, execution: Execution, *, attempts: int) -> bool:
    found = await fastlane.attempts(execution)
    return len(found) == attempts and all(each.status.is_final and each.owes_at is None for each in found)


async def _queue_is_empty(fastlane: Deployment) -> bool:
    return not await fastlane.queue.stats()


async def _serves_no_place(fastlane: Deployment) -> bool:
    """Whether the worker has told that its lane has no place."""
    reports = await fastlane.storage.list_state(WORKERS_SCOPE)
    return all(not lane["places"] for each in reports.values() for lane in each.value["lanes"].values())


async def _count_attempts(fastlane: Deployment, execution: Execution, count: int) -> bool:
    return len(await fastlane.attempts(execution)) == count


async def _a_worker_reports(fastlane: Deployment, words: str) -> bool:
    states = await fastlane.storage.list_state(WORKERS_SCOPE)
    return any(words in str(state.value["lanes"]) for state in states.values())


async def _waits_for(fastlane: Deployment, execution: Execution, words: str) -> bool:
    return words in ((await fastlane.now(execution)).waiting_for or "")


async def _has_output(fastlane: Deployment, execution: Execution, output: bytes) -> bool:
    return await fastlane.output(execution) == output


async def _is_held_by(fastlane: Deployment, execution: Execution, worker: str) -> bool:
    return (await fastlane.now(execution)).worker == worker
