"""The fake runner passes the suite of all runners, and does what its engine is told."""

from __future__ import annotations

import asyncio

import pytest

from fastlane_core.contracts.runner import Runner
from fastlane_core.errors import EngineUnavailable, RunNotFound, StartRejected
from fastlane_core.models import Reason, RunHandle, RunOutcome
from fastlane_core.testing.fake_engine import FakeCommands, FakeEngine
from fastlane_core.testing.fake_runner import FakeRunner
from fastlane_core.testing.runner_driver import RunDriver
from fastlane_core.testing.runner_fixtures import BuildRunner, MakeRunner
from fastlane_core.testing.runner_suite import RunnerSuite


class TestFakeRunner(RunnerSuite):
    @pytest.fixture
    def engine(self) -> FakeEngine:
        engine = FakeEngine(places={"one": 4, "two": 4})
        engine.missing_images.add("example.invalid/missing:1")
        return engine

    @pytest.fixture
    def build_runner(self, engine: FakeEngine) -> BuildRunner:
        def build(deployment_id: str) -> Runner:
            return FakeRunner(engine, deployment_id=deployment_id)

        return build

    @pytest.fixture
    def commands(self) -> FakeCommands:
        return FakeCommands()

    @pytest.fixture
    def missing_image(self) -> str:
        return "example.invalid/missing:1"

    @pytest.fixture
    def unknown_handle(self) -> RunHandle:
        return RunHandle(runner="fake", version=1, data={"execution_id": "nobody"})

    async def test_starts_are_counted(self, make_runner: MakeRunner, runs: RunDriver, engine: FakeEngine) -> None:
        first, second = await make_runner(), await make_runner()
        run = await runs.start(first, "echo hi")
        await runs.start_request(second, run.request)
        await first.finish(run.handle)
        await runs.start_request(second, run.request)

        assert engine.starts == {run.request.execution_id: 1}

    async def test_outage_ends_every_call_and_no_run(self, runner: Runner, runs: RunDriver, engine: FakeEngine) -> None:
        run = await runs.start(runner, "hang")
        waiting = asyncio.create_task(run.wait())
        following = asyncio.create_task(run.logs())
        for _ in range(10):
            await asyncio.sleep(0)

        with engine.outage():
            for call in (waiting, following, run.wait(), run.stop(0), run.logs(), runner.finish(run.handle)):
                with pytest.raises(EngineUnavailable) as raised:
                    await call
                assert bool(raised.value.had_answered) is (call is waiting)
            with pytest.raises(EngineUnavailable):
                await runner.start(run.request)
            assert (await runner.availability(run.request.lane)).places == {}
            assert (await runner.availability(run.request.lane)).reason

        assert engine.running == [run.request.execution_id]
        engine.write(run.request.execution_id, b"more\n")
        engine.end(run.request.execution_id, RunOutcome(exit_code=9, reason=Reason.EXIT_CODE))
        assert (await run.wait()).exit_code == 9
        assert (await run.written()).stdout == b"ready\nmore\n"

    async def test_hanging_engine_answers_when_it_is_back(
        self, runner: Runner, runs: RunDriver, engine: FakeEngine
    ) -> None:
        with engine.hanging():
            starting = asyncio.create_task(runs.start(runner, "echo hi"))
            done, _ = await asyncio.wait([starting], timeout=0.05)
            assert not done

        assert (await (await starting).wait()).reason is Reason.SUCCEEDED

    async def test_lost_run_is_not_found(self, runner: Runner, runs: RunDriver, engine: FakeEngine) -> None:
        run = await runs.start(runner, "hang")
        waiting = asyncio.create_task(run.wait())
        await asyncio.sleep(0)

        engine.lose(run.request.execution_id)

        with pytest.raises(RunNotFound):
            await waiting

    @pytest.mark.parametrize("after_starting", [False, True])
    async def test_start_that_fails_once_can_be_repeated(
        self, runner: Runner, runs: RunDriver, engine: FakeEngine, after_starting: bool
    ) -> None:
        request = await runs.request(runner, "echo hi")
        engine.fail_next_start(EngineUnavailable("cut off"), after_starting=after_starting)
        with pytest.raises(EngineUnavailable, match="cut off"):
            await runner.start(request)
        assert engine.starts[request.execution_id] == after_starting

        run = await runs.start_request(runner, request)

        assert (await run.written()).stdout == b"hi\n"
        assert engine.starts[request.execution_id] == 1

    async def test_rejected_command_does_not_start(self, runner: Runner, runs: RunDriver, engine: FakeEngine) -> None:
        with pytest.raises(StartRejected):
            await runs.start(runner, "reject")

        assert not engine.starts

    async def test_runs_of_a_runner_that_is_not_detached_end_with_it(self, runs: RunDriver, engine: FakeEngine) -> None:
        runner = FakeRunner(engine, deployment_id="attached", detached=False)
        await runner.open()
        await runs.start(runner, "hang")

        await runner.close()

        assert engine.running == []

    async def test_pruning_forgets_what_was_finished(self, runner: Runner, runs: RunDriver, engine: FakeEngine) -> None:
        run, other = await runs.start(runner, "true"), await runs.start(runner, "true")
        await runner.finish(run.handle)

        dry = await runner.prune(older_than=-1, dry_run=True)
        real = await runner.prune(older_than=-1, dry_run=False)

        removed = [run.request.execution_id]
        assert [id_ for report in dry for id_ in report.removed] == removed
        assert [id_ for report in real for id_ in report.removed] == removed
        assert list(engine.runs) == [other.request.execution_id]
