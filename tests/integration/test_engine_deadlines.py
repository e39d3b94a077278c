"""How long a run may take, whoever looks after it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from fastlane_core.app import engine_options
from fastlane_core.engine.faultpoints import FaultPoint
from fastlane_core.engine.supervision import Supervision
from fastlane_core.errors import EngineUnavailable
from fastlane_core.models import Event, EventKind, Status
from fastlane_core.settings.core import WorkerSettings
from tests.integration.engine_harness import QUICK, Deployment


async def die_at(fastlane: Deployment, fatal: FaultPoint) -> None:
    """Have a worker claim what waits and die at this point."""

    def die(point: FaultPoint) -> None:
        if point is fatal:
            raise asyncio.CancelledError

    claimed = await fastlane.claim("dead")
    dying = Supervision(fastlane.context("dead", reach=die), claimed.lease)
    await asyncio.gather(dying.run(), return_exceptions=True)
    await fastlane.queue.hand_over([claimed.lease])


@pytest.mark.parametrize("point", [FaultPoint.RECORDED_RUNNING, FaultPoint.STARTED])
async def test_a_run_whose_time_was_over_while_nobody_looked_is_stopped_by_the_heir(
    fastlane: Deployment, point: FaultPoint
) -> None:
    fastlane.engine.clock = fastlane.clock
    execution = await fastlane.submit("hang", timeout=50.0)
    await die_at(fastlane, point)
    assert fastlane.engine.running == [execution.id]
    fastlane.clock.advance(51)
    async with fastlane.worker("heir"):
        ended = await fastlane.ended(execution)
    assert (ended.status, ended.exit_code, ended.worker) == (Status.TIMEDOUT, 143, "heir")
    assert not fastlane.engine.running


async def test_a_run_whose_start_was_not_answered_for_long_has_no_more_time_for_it(fastlane: Deployment) -> None:
    fastlane.engine.clock = fastlane.clock
    fastlane.engine.fail_next_start(EngineUnavailable("the answer was lost"), after_starting=True)

    def let_time_pass(event: Event) -> None:
        if event.kind is EventKind.ENGINE_TROUBLE:
            fastlane.clock.advance(51)

    execution = await fastlane.submit("hang", timeout=50.0)
    lease = (await fastlane.claim("worker")).lease
    await asyncio.wait_for(Supervision(fastlane.context("worker", emit=let_time_pass), lease).run(), 30)
    ended = await fastlane.now(execution)
    assert (ended.status, ended.exit_code) == (Status.TIMEDOUT, 143)


@pytest.mark.parametrize("ended_by_itself", [False, True])
async def test_a_hard_limit_that_was_lowered_holds_for_what_was_stored_before(
    fastlane: Deployment, ended_by_itself: bool
) -> None:
    fastlane.engine.clock = fastlane.clock
    execution = await fastlane.submit("hang", timeout=600.0)
    await die_at(fastlane, FaultPoint.RECORDED_RUNNING)
    fastlane.clock.advance(51)
    if ended_by_itself:
        fastlane.engine.end(execution.id)
    async with fastlane.worker("heir", options=replace(QUICK, hard_timeout_seconds=50.0)):
        ended = await fastlane.ended(execution)
    assert (ended.status, ended.exit_code) == (Status.TIMEDOUT, 0 if ended_by_itself else 143)
    assert "50 s" in (ended.message or "")


def test_workers_get_the_hard_limit_of_the_settings() -> None:
    assert engine_options(WorkerSettings(hard_execution_timeout_seconds=50.0)).hard_timeout_seconds == 50.0
