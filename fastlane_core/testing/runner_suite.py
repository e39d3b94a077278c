"""The suite that every runner passes, built in or not."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import suppress

import pytest

from fastlane_core.contracts.runner import Runner
from fastlane_core.errors import ImageNotFound, RunNotFound, Unsupported
from fastlane_core.models import Reason, RunHandle
from fastlane_core.testing.runner_commands import ShellCommands
from fastlane_core.testing.runner_driver import DEADLINE, RunDriver, StartedRun, Written, ignore_progress, through_json
from fastlane_core.testing.runner_fixtures import BuildRunner, MakeRunner
from fastlane_core.testing.runner_output import RunnerOutputTests, numbers


class RunnerSuite(RunnerOutputTests):
    """Tests of the contract `fastlane_core.contracts.runner.Runner`, for a runner whose runs are detached.

    Subclass it in a test module, with pytest-asyncio installed and `asyncio_mode = "auto"`, and give these fixtures:

    `build_runner`
        A function that takes a deployment id and returns a new runner, not opened, on the engine under test. Each is
        another worker: runners share nothing but the engine.
    `unknown_handle`
        A handle that is well-formed, but of a run that never existed.

    These have defaults to override where the runner differs:

    `commands`
        Command lines for what a run is to do; `ShellCommands()`.
    `image`
        An image in which those commands work; `busybox:latest`.
    `missing_image`
        An image that `prepare` must refuse; None, the default, declares that any name is accepted.

    The lane of the task `suite` must have room for four runs at a time, and a place that is available.
    """

    # Routing and capacity

    def test_lanes_are_known_before_opening(self, build_runner: BuildRunner) -> None:
        runner = build_runner("suite")

        lanes = {lane.name: lane for lane in runner.lanes()}

        assert lanes
        assert len(lanes) == len(runner.lanes())
        assert runner.lane_for("suite") in lanes
        for lane in lanes.values():
            assert lane.capacity >= 1
            assert lane.name == runner.name or lane.name.startswith(f"{runner.name}:")

    def test_the_lane_of_a_task_is_the_same_for_every_worker(self, build_runner: BuildRunner) -> None:
        tasks = ["suite", "other", "Ünïcode task", "a" * 200]

        first, second = build_runner("suite"), build_runner("suite")

        assert [first.lane_for(task) for task in tasks] == [second.lane_for(task) for task in tasks]

    def test_a_runner_that_this_suite_tests_is_detached(self, build_runner: BuildRunner) -> None:
        assert build_runner("suite").capabilities.detached

    async def test_rank_gives_available_places_least_loaded_first(self, runner: Runner, image: str) -> None:
        lane = runner.lane_for("suite")
        assert lane is not None
        availability = await runner.availability(lane)
        places = availability.places

        ranked = await runner.rank(lane, image, {})

        assert ranked
        assert len(set(ranked)) == len(ranked)
        assert set(ranked) <= set(places) <= availability.reached
        assert all(room >= 1 for room in places.values())
        if len(ranked) > 1:
            assert (await runner.rank(lane, image, {ranked[0]: 1}))[0] != ranked[0]

    async def test_health_tells_of_its_hosts(self, runner: Runner) -> None:
        hosts = (await runner.health())["hosts"]

        assert isinstance(hosts, Sequence)
        assert hosts
        for host in hosts:
            assert isinstance(host, dict)
            assert host["host"]
            assert host["available"] is True

    async def test_pruning_is_refused_unless_the_capability_says_otherwise(self, runner: Runner) -> None:
        if runner.capabilities.prune:
            assert all(not report.error for report in await runner.prune(older_than=3600, dry_run=True))
        else:
            with pytest.raises(Unsupported):
                await runner.prune(older_than=3600, dry_run=True)

    # Preparing and starting

    async def test_preparing_twice_is_harmless(self, runner: Runner, runs: RunDriver, commands: ShellCommands) -> None:
        request = await runs.request(runner, commands.write(b"hi\n"))

        await runner.prepare(request, ignore_progress)
        run = await runs.start_request(runner, request)

        assert (await run.written()).stdout == b"hi\n"

    async def test_an_image_that_does_not_exist_is_named(
        self, runner: Runner, runs: RunDriver, commands: ShellCommands, missing_image: str | None
    ) -> None:
        image = missing_image or "example.invalid/no/such-image:none"
        request = await runs.request(runner, commands.exit_with(0), image=image)

        if missing_image is None:
            await asyncio.wait_for(runner.prepare(request, ignore_progress), DEADLINE)
        else:
            with pytest.raises(ImageNotFound, match=missing_image):
                await asyncio.wait_for(runner.prepare(request, ignore_progress), DEADLINE)

    async def test_start_does_not_wait_for_the_end(
        self, runner: Runner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        run = await runs.start(runner, commands.wait_for_stop())
        owned = await runs.owned(runner, run.request.place)

        assert owned[run.request.execution_id].running

    async def test_arguments_arrive_exactly(self, runner: Runner, runs: RunDriver, commands: ShellCommands) -> None:
        arguments = ["two words", "", "it's", '"quoted"', "$HOME", "a\\b", "*", "новый ✓", "line\nbreak", "-n", " "]

        run = await runs.start(runner, commands.print_arguments(arguments))

        assert (await run.written()).stdout.decode().split("\0")[:-1] == arguments

    async def test_environment_arrives_exactly(self, runner: Runner, runs: RunDriver, commands: ShellCommands) -> None:
        env = {
            "PLAIN": "value",
            "EMPTY": "",
            "SPACED": "  two  words ",
            "QUOTED": 'it\'s "so"',
            "DOLLAR": "$PLAIN `id` \\n",
            "EQUALS": "a=b=c",
            "LINES": "one\ntwo\n",
            "UNICODE": "žluťoučký ✓ 🚀",
            "dotted.name-x": "odd name",
            "LONG": "x" * 10_000,
        }

        run = await runs.start(runner, commands.print_environment(), env=env)
        lines = (await run.written()).stdout.decode().split("\0")

        assert {f"{name}={value}" for name, value in env.items()} <= set(lines)

    # Starting is idempotent

    async def test_starting_again_gives_the_same_run(
        self, make_runner: MakeRunner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        first, second = await make_runner(), await make_runner()
        run = await runs.start(first, commands.wait_for_stop())
        await run.until_ready()

        again = await runs.start_request(second, run.request)

        assert list(await runs.owned(second, run.request.place)) == [run.request.execution_id]
        await again.stop(30)
        assert await run.wait() == await again.wait()
        assert again.handle.started_at == (await run.wait()).started_at
        assert await run.written() == await again.written() == Written(stdout=b"ready\n", stderr=b"")

    async def test_starting_an_ended_run_does_not_run_it_again(
        self, make_runner: MakeRunner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        first, second = await make_runner(), await make_runner()
        run = await runs.start(first, commands.write(b"once\n"))
        outcome = await run.wait()

        again = await runs.start_request(second, run.request)

        assert again.handle.started_at is not None
        assert await again.wait() == outcome
        assert (await again.written()).stdout == b"once\n"
        assert not (await runs.owned(second, run.request.place))[run.request.execution_id].running

    async def test_many_starts_at_once_make_one_run(
        self, make_runner: MakeRunner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        workers = [await make_runner(), await make_runner()]
        request = await runs.request(workers[0], commands.write(b"once\n"))

        started = await asyncio.gather(*(runs.start_request(workers[n % 2], request) for n in range(6)))

        assert [(await run.written()).stdout for run in started] == [b"once\n"] * 6
        outcomes = [await run.wait() for run in started]
        assert outcomes == [outcomes[0]] * 6
        assert list(await runs.owned(workers[0], request.place)) == [request.execution_id]

    # Outcomes

    async def test_success_is_exit_code_0(self, runner: Runner, runs: RunDriver, commands: ShellCommands) -> None:
        outcome = await (await runs.start(runner, commands.exit_with(0))).wait()

        assert (outcome.exit_code, outcome.reason) == (0, Reason.SUCCEEDED)
        assert outcome.started_at is not None
        assert outcome.finished_at is not None
        assert outcome.started_at <= outcome.finished_at

    @pytest.mark.parametrize("code", [1, 42, 125, 255])
    async def test_exit_code_is_told(self, runner: Runner, runs: RunDriver, commands: ShellCommands, code: int) -> None:
        outcome = await (await runs.start(runner, commands.exit_with(code))).wait()

        assert (outcome.exit_code, outcome.reason) == (code, Reason.EXIT_CODE)

    async def test_missing_command_is_told(self, runner: Runner, runs: RunDriver, commands: ShellCommands) -> None:
        outcome = await (await runs.start(runner, commands.missing())).wait()

        assert (outcome.exit_code, outcome.reason) == (127, Reason.COMMAND_NOT_FOUND)
        assert outcome.message

    async def test_command_that_may_not_be_executed_is_told(
        self, runner: Runner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        outcome = await (await runs.start(runner, commands.not_executable())).wait()

        assert (outcome.exit_code, outcome.reason) == (126, Reason.COMMAND_NOT_EXECUTABLE)
        assert outcome.message

    async def test_wait_works_again_after_it_was_cancelled(
        self, runner: Runner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        run = await runs.start(runner, commands.wait_for_stop())
        await run.until_ready()
        waiting = asyncio.create_task(runner.wait(run.handle))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done

        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

        await run.stop(30)
        assert await run.wait() == await run.wait()

    async def test_many_waits_at_once_give_the_same_outcome(
        self, make_runner: MakeRunner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        first, second = await make_runner(), await make_runner()
        run = await runs.start(first, commands.count_slowly(3, 0.1))

        outcomes = await asyncio.gather(*(run.wait(by=worker) for worker in (first, second, first, second)))

        assert outcomes == [outcomes[0]] * 4

    # Adoption

    async def test_another_worker_picks_a_running_run_up(
        self,
        build_runner: BuildRunner,
        deployment_id: str,
        make_runner: MakeRunner,
        runs: RunDriver,
        commands: ShellCommands,
    ) -> None:
        first = build_runner(deployment_id)
        await first.open()
        run = await runs.start(first, commands.count_slowly(10, 0.1))
        await first.close()

        adopted = StartedRun(runner=await make_runner(), request=run.request, handle=through_json(run.handle))

        assert await adopted.written() == Written(stdout=numbers(10), stderr=b"")
        assert (await adopted.wait()).exit_code == 0

    async def test_owned_runs_carry_what_adoption_needs(
        self, make_runner: MakeRunner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        first, second = await make_runner(), await make_runner()
        run = await runs.start(first, commands.wait_for_stop(), fence=7)
        await run.until_ready()

        owned = (await runs.owned(second, run.request.place))[run.request.execution_id]

        assert owned.running
        assert owned.fence == 7
        assert owned.created_at > 0
        await second.stop(through_json(owned.handle), 30)
        assert (await run.wait()).exit_code == 143
        assert not (await runs.owned(second, run.request.place))[run.request.execution_id].running

    async def test_another_deployment_s_runs_are_not_listed(
        self, runner: Runner, build_runner: BuildRunner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        run = await runs.start(runner, commands.exit_with(0))
        stranger = build_runner(f"suite-{uuid.uuid4()}")
        await stranger.open()
        try:
            assert await runs.owned(stranger, run.request.place) == {}
        finally:
            await stranger.close()

    async def test_unknown_handles_are_refused(self, runner: Runner, unknown_handle: RunHandle) -> None:
        with pytest.raises(RunNotFound):
            await asyncio.wait_for(runner.wait(unknown_handle), DEADLINE)
        with pytest.raises(RunNotFound):
            await asyncio.wait_for(runner.stop(unknown_handle, 0), DEADLINE)
        with pytest.raises(RunNotFound):
            await asyncio.wait_for(anext(aiter(runner.logs(unknown_handle, after=None, follow=True))), DEADLINE)

    # Stopping

    async def test_stop_asks_first(self, runner: Runner, runs: RunDriver, commands: ShellCommands) -> None:
        run = await runs.start(runner, commands.wait_for_stop())
        await run.until_ready()

        await run.stop(DEADLINE)

        outcome = await run.wait()
        assert outcome.exit_code == 143
        assert not (await runs.owned(runner, run.request.place))[run.request.execution_id].running

    async def test_stop_kills_after_the_grace(
        self, make_runner: MakeRunner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        first, second = await make_runner(), await make_runner()
        run = await runs.start(first, commands.ignore_stop())
        await run.until_ready()

        await run.stop(1, by=second)

        outcome = await run.wait()
        assert (outcome.exit_code, outcome.reason) == (137, Reason.SIGNAL)
        assert (await run.written()).stdout == b"ready\n"

    async def test_stopping_twice_and_after_the_end_is_harmless(
        self, make_runner: MakeRunner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        first, second = await make_runner(), await make_runner()
        run = await runs.start(first, commands.wait_for_stop())
        await run.until_ready()

        await asyncio.gather(run.stop(30), run.stop(30, by=second))
        outcome = await run.wait()
        await run.stop(0)

        assert await run.wait() == outcome

    # Finishing

    async def test_finished_runs_are_not_listed(
        self, make_runner: MakeRunner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        first, second = await make_runner(), await make_runner()
        run = await runs.start(first, commands.exit_with(0))
        other = await runs.start(first, commands.exit_with(0))
        await run.wait()
        await other.wait()

        await first.finish(run.handle)
        await first.finish(run.handle)
        await second.finish(through_json(run.handle))

        assert list(await runs.owned(second, run.request.place)) == [other.request.execution_id]

    async def test_a_discarded_run_is_dead_and_not_listed(
        self, runner: Runner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        run = await runs.start(runner, commands.wait_for_stop())

        await asyncio.wait_for(runner.discard(run.handle), DEADLINE)
        await asyncio.wait_for(runner.discard(run.handle), DEADLINE)

        assert run.request.execution_id not in await runs.owned(runner, run.request.place)
        with suppress(RunNotFound):
            assert (await run.wait()).exit_code != 0

    async def test_discarding_an_unknown_run_is_harmless(self, runner: Runner, unknown_handle: RunHandle) -> None:
        await asyncio.wait_for(runner.discard(unknown_handle), DEADLINE)

    async def test_finishing_an_unknown_run_is_harmless(self, runner: Runner, unknown_handle: RunHandle) -> None:
        await asyncio.wait_for(runner.finish(unknown_handle), DEADLINE)
