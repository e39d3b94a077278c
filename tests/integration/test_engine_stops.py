"""Executions that are asked to stop while something else ends them, or keeps them from starting."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from fastlane_core.engine.records import confirm_start
from fastlane_core.engine.routing import Routing
from fastlane_core.engine.stopping import Stopping
from fastlane_core.errors import EngineUnavailable, PullFailed
from fastlane_core.models import Execution, Reason, RetryPolicy, RunHandle, RunOutcome, RunRequest, Status
from fastlane_core.testing.fake_runner import FakeRunner
from tests.integration.engine_harness import QUICK, Deployment, opened, until

NOW = RetryPolicy(min_seconds=0.0)


async def stop(fastlane: Deployment, execution: Execution) -> None:
    """Stop the execution alone, as the API does."""
    stopping = Stopping(fastlane.storage, fastlane.queue, fastlane.clock)
    await stopping.stop_execution(execution.task_id, execution.job_id, execution.id)


async def only_attempt(fastlane: Deployment, execution: Execution) -> Execution:
    """The execution, ended, once nothing waits for a worker any more; there must be no other."""
    await fastlane.ended(execution)
    await until(lambda: _queue_is_empty(fastlane))
    (only,) = await fastlane.attempts(execution)
    assert (only.retry_id, only.owes_at) == (None, None)
    return only


@pytest.mark.parametrize("whole_job", [False, True])
async def test_a_pull_that_fails_once_a_stop_is_wanted_is_stopped_and_not_tried_again(
    fastlane: Deployment, whole_job: bool
) -> None:
    with fastlane.engine.pulling("big") as pull:
        execution = await fastlane.submit("true", image="big", retries=3, retry=NOW)
        # Its worker does not hear of the stop before the pull has failed.
        task = asyncio.create_task((await fastlane.claim("deaf")).run())
        await until(lambda: pull.waiting == 1)
        await (fastlane.stop_job(execution) if whole_job else stop(fastlane, execution))
        pull.fail(PullFailed("the registry is in trouble"))
        await asyncio.wait_for(task, 30)
    only = await only_attempt(fastlane, execution)
    assert (only.status, only.reason, only.failure) == (Status.STOPPED, Reason.STOPPED, None)
    assert "the registry is in trouble" in (only.message or "")


async def test_a_run_that_had_failed_before_the_stop_keeps_its_end_and_is_not_tried_again(fastlane: Deployment) -> None:
    execution = await _left_alone_while_it_runs(fastlane, retries=3, retry=NOW)
    fastlane.engine.end(execution.id, RunOutcome(exit_code=3, reason=Reason.EXIT_CODE))
    await stop(fastlane, execution)
    async with fastlane.worker("heir"):
        only = await only_attempt(fastlane, execution)
    assert (only.status, only.exit_code) == (Status.FAILED, 3)


@pytest.mark.parametrize("is_gone", [False, True])
async def test_a_run_that_came_to_no_end_of_its_own_is_stopped(fastlane: Deployment, is_gone: bool) -> None:
    execution = await _left_alone_while_it_runs(fastlane, retries=3, retry=NOW)
    if is_gone:
        fastlane.engine.lose(execution.id)
    else:
        fastlane.engine.end(execution.id, RunOutcome(exit_code=137, reason=Reason.ENGINE_LOST))
    await stop(fastlane, execution)
    async with fastlane.worker("heir"):
        only = await only_attempt(fastlane, execution)
    assert only.status is Status.STOPPED


async def test_what_no_engine_has_yet_is_not_started_once_a_stop_is_wanted(fastlane: Deployment) -> None:
    for _ in range(10_000):
        fastlane.engine.fail_next_start(EngineUnavailable("host hangs"))
    async with fastlane.worker():
        execution = await fastlane.submit("hang", retries=3, retry=NOW)
        await until(lambda: _waits_for(fastlane, execution, "host hangs"))
        await stop(fastlane, execution)
        only = await only_attempt(fastlane, execution)
    assert only.status is Status.STOPPED
    assert not fastlane.engine.starts


async def test_a_run_whose_start_was_never_answered_is_found_and_stopped(fastlane: Deployment) -> None:
    fastlane.engine.fail_next_start(EngineUnavailable("host hangs"), after_starting=True)
    for _ in range(20):
        fastlane.engine.fail_next_start(EngineUnavailable("host hangs"))
    async with fastlane.worker():
        execution = await fastlane.submit("hang-deaf", retries=3, retry=NOW)
        await until(lambda: _waits_for(fastlane, execution, "host hangs"))
        await stop(fastlane, execution)
        only = await only_attempt(fastlane, execution)
    assert (only.status, only.exit_code) == (Status.STOPPED, 137)
    assert not fastlane.engine.running
    assert fastlane.engine.starts == {execution.id: 1}


async def test_an_engine_that_is_lost_while_it_starts_what_is_to_stop_ends_it_as_stopped(fastlane: Deployment) -> None:
    fastlane.engine.fail_next_start(EngineUnavailable("the answer was lost"), after_starting=True)
    for _ in range(10_000):
        fastlane.engine.fail_next_start(EngineUnavailable("host hangs"))
    async with fastlane.worker(options=replace(QUICK, engine_lost_after_seconds=100.0)):
        execution = await fastlane.submit("hang", retries=3, retry=NOW)
        await until(lambda: _waits_for(fastlane, execution, "the answer was lost"))
        await stop(fastlane, execution)
        # What may run is waited for, as long as its engine may come back.
        assert not (await fastlane.now(execution)).status.is_final
        fastlane.clock.advance(101)
        only = await only_attempt(fastlane, execution)
        assert only.status is Status.STOPPED
        # What is left of it is swept up once it is certain that nobody else needs it.
        fastlane.clock.advance(60)
        await until(lambda: not fastlane.engine.running)
    assert fastlane.engine.starts == {execution.id: 1}


class StoppedAtTheLastMoment(FakeRunner):
    """Asks core before it starts anything, as runners do; somebody wants a stop right before that."""

    deployment: Deployment

    async def start(self, request: RunRequest) -> RunHandle:
        execution = await self.deployment.storage.get_execution(request.execution_id)
        assert execution is not None
        await stop(self.deployment, execution)
        await confirm_start(self.deployment.storage, request)
        return await super().start(request)


class LateStops(Deployment):
    """A deployment in which everything is stopped at the last moment."""

    def routing(self) -> Routing:
        """Routing over a runner that has it so."""
        runner = StoppedAtTheLastMoment(self.engine, deployment_id="test", lanes=self.lanes)
        runner.deployment = self
        return Routing([runner])


async def test_a_stop_right_before_the_start_keeps_it_from_being_made(tmp_path: Path) -> None:
    async with opened(LateStops(tmp_path)) as fastlane:
        execution = await fastlane.submit("hang", retries=3, retry=NOW)
        await asyncio.wait_for((await fastlane.claim("deaf")).run(), 30)
        only = await only_attempt(fastlane, execution)
    assert only.status is Status.STOPPED
    assert not fastlane.engine.starts


async def _left_alone_while_it_runs(fastlane: Deployment, **changes: object) -> Execution:
    """An execution that runs, and whose worker is gone."""
    execution = await fastlane.submit("hang", **changes)
    task = asyncio.create_task((supervision := await fastlane.claim("gone")).run())
    await fastlane.running(execution)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await fastlane.queue.hand_over([supervision.lease])
    return execution


async def _queue_is_empty(fastlane: Deployment) -> bool:
    return not await fastlane.queue.stats()


async def _waits_for(fastlane: Deployment, execution: Execution, words: str) -> bool:
    """Or runs already, where this machine is too slow to see it wait."""
    stored = await fastlane.now(execution)
    return words in (stored.waiting_for or "") or stored.status is Status.RUNNING
