"""Engines that come and go, hang, or fail in ways that nobody foresaw, while something runs on them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fastlane_core.engine import watching
from fastlane_core.engine.routing import Routing
from fastlane_core.errors import EngineUnavailable
from fastlane_core.models import Output, Reason, RunHandle, RunOutcome, Status
from fastlane_core.testing.fake_runner import FakeRunner
from tests.integration.engine_harness import QUICK, Deployment, opened, until


class Troubles(Deployment):
    """A deployment whose runner does to each call what a test says."""

    #: Seconds that the next calls of `wait` take, and whether their engine answers before it is out of reach.
    waits: Sequence[tuple[float, bool | None]] = ()
    #: What the next calls of `stop` and `logs` raise; the last one for ever.
    stops: Sequence[Exception] = ()
    logs: Sequence[Exception] = ()
    calls_of_stop = calls_of_logs = 0

    def routing(self) -> Routing:
        """Routing over such a runner."""
        runner = TroubledRunner(self.engine, deployment_id="test", lanes=self.lanes)
        runner.troubles = self
        return Routing([runner])


class TroubledRunner(FakeRunner):
    """Does as its deployment says."""

    troubles: Troubles

    async def wait(self, handle: RunHandle) -> RunOutcome:
        if self.troubles.waits:
            (seconds, had_answered), *self.troubles.waits = self.troubles.waits
            self.troubles.clock.advance(seconds)
            raise EngineUnavailable("out of reach", had_answered=had_answered)
        return await super().wait(handle)

    async def stop(self, handle: RunHandle, grace: float) -> None:
        self.troubles.calls_of_stop += 1
        if self.troubles.stops:
            error, *rest = self.troubles.stops
            self.troubles.stops = rest or [error]
            raise error
        await super().stop(handle, grace)

    async def logs(self, handle: RunHandle, *, after: str | None, follow: bool) -> AsyncIterator[Output]:
        self.troubles.calls_of_logs += 1
        if self.troubles.logs:
            error, *rest = self.troubles.logs
            self.troubles.logs = rest or [error]
            raise error
        async for output in super().logs(handle, after=after, follow=follow):
            yield output


@asynccontextmanager
async def troubles(folder: Path) -> AsyncIterator[Troubles]:
    async with opened(Troubles(folder)) as made:
        assert isinstance(made, Troubles)
        yield made


GONE = EngineUnavailable("out of reach")
#: Leases outlast the hours that these tests let pass.
LASTING = replace(QUICK, lease_seconds=1e6)


# Whether an engine is lost


async def test_short_troubles_with_answers_between_them_are_no_long_one(tmp_path: Path) -> None:
    async with troubles(tmp_path) as fastlane:
        fastlane.waits = [(100.0, True)] * 10
        async with fastlane.worker(options=replace(LASTING, engine_lost_after_seconds=300.0)):
            execution = await fastlane.submit("hang", timeout=100_000.0)
            await until(lambda: not fastlane.waits)
            fastlane.engine.end(execution.id)
            ended = await fastlane.ended(execution)
    assert (ended.status, ended.reason) == (Status.DONE, Reason.SUCCEEDED)


@pytest.mark.parametrize("had_answered", [False, None])
async def test_an_engine_that_lets_every_call_run_into_its_time_out_is_lost(
    tmp_path: Path, had_answered: bool | None
) -> None:
    async with troubles(tmp_path) as fastlane:
        fastlane.waits = [(60.0, had_answered)] * 4
        async with fastlane.worker(options=replace(LASTING, engine_lost_after_seconds=100.0)):
            ended = await fastlane.ended(await fastlane.submit("hang", timeout=100_000.0))
            assert (ended.reason, ended.exit_code) == (Reason.ENGINE_LOST, None)
            assert "120 s" in (ended.message or "")
            await fastlane.stop_job(ended)


async def test_a_wait_of_hours_that_ends_in_trouble_is_no_trouble_of_hours(tmp_path: Path) -> None:
    async with troubles(tmp_path) as fastlane:
        fastlane.waits = [(10.0, None), (9000.0, None), (10.0, None)]
        async with fastlane.worker(options=replace(LASTING, engine_lost_after_seconds=100.0)):
            execution = await fastlane.submit("hang", timeout=100_000.0)
            await until(lambda: not fastlane.waits)
            fastlane.engine.end(execution.id)
            assert (await fastlane.ended(execution)).status is Status.DONE


# Its output


async def test_the_rest_of_a_log_is_waited_for_while_its_engine_may_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_LOG_PATIENCE", 0.01)
    async with troubles(tmp_path) as fastlane:
        fastlane.logs = [GONE]
        async with fastlane.worker(options=LASTING):
            execution = await fastlane.submit("echo all of it")
            await until(lambda: fastlane.calls_of_logs > 5)
            fastlane.logs = []
            ended = await fastlane.ended(execution)
        assert await fastlane.output(ended) == b"all of it\n"
    assert (ended.status, ended.message) == (Status.DONE, None)


@pytest.mark.parametrize(("command", "status"), [("echo all of it", Status.DONE), ("exit 3", Status.FAILED)])
async def test_a_log_that_was_given_up_is_told_to_be_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, status: Status
) -> None:
    monkeypatch.setattr(watching, "_LOG_PATIENCE", 0.01)
    async with troubles(tmp_path) as fastlane:
        fastlane.logs = [GONE]
        async with fastlane.worker(options=replace(LASTING, engine_lost_after_seconds=0.1)):
            ended = await fastlane.ended(await fastlane.submit(command))
    assert ended.status is status
    assert "output may be missing" in (ended.message or "")


# Stopping, and giving up


async def test_a_stop_that_fails_as_nobody_foresaw_is_reported_and_made_again(tmp_path: Path) -> None:
    async with troubles(tmp_path) as fastlane:
        fastlane.stops = [RuntimeError("a defect"), GONE]
        async with fastlane.worker(options=LASTING):
            execution = await fastlane.submit("hang", timeout=0.1)
            await until(lambda: fastlane.calls_of_stop >= 3)
            fastlane.stops = []
            ended = await fastlane.ended(execution)
        reports, fastlane.reports = fastlane.reports, []
    assert ended.status is Status.TIMEDOUT
    assert [str(each) for each in reports] == ["a defect"]


async def test_what_is_given_up_on_an_engine_that_is_gone_frees_its_slot(tmp_path: Path) -> None:
    async with troubles(tmp_path) as fastlane:
        fastlane.logs = [RuntimeError("a defect")]
        fastlane.stops = [GONE]
        async with fastlane.worker(options=replace(LASTING, engine_lost_after_seconds=0.3)):
            ended = await fastlane.ended(await fastlane.submit("hang"))
            await until(lambda: _queue_is_empty(fastlane))
            # Its run is swept up when the engine is back.
            fastlane.stops = []
            fastlane.clock.advance(60)
            await until(lambda: not fastlane.engine.running)
        reports, fastlane.reports = fastlane.reports, []
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.INTERNAL_ERROR)
    assert len(reports) == 3


async def test_crashes_that_are_far_apart_are_not_in_a_row(tmp_path: Path) -> None:
    async with troubles(tmp_path) as fastlane:
        async with fastlane.worker(options=LASTING):
            fastlane.logs = [RuntimeError("a defect")]
            execution = await fastlane.submit("hang", timeout=100_000.0)
            for number in range(1, 6):
                await until(lambda number=number: len(fastlane.reports) >= number)
                fastlane.logs = []
                calls = fastlane.calls_of_logs
                await until(lambda calls=calls: fastlane.calls_of_logs > calls)
                fastlane.clock.advance(700)
                fastlane.logs = [RuntimeError("a defect")]
                with fastlane.engine.outage():
                    await until(lambda calls=calls: fastlane.calls_of_logs > calls + 1)
            fastlane.logs = []
            fastlane.engine.end(execution.id)
            ended = await fastlane.ended(execution)
        fastlane.reports = []
    assert ended.status is Status.DONE


async def _queue_is_empty(fastlane: Deployment) -> bool:
    return not await fastlane.queue.stats()
