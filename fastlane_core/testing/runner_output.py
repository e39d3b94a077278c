"""The part of the runner suite that is about output: exact bytes, in order, from any position."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastlane_core.contracts.runner import Runner
from fastlane_core.testing.runner_commands import ShellCommands
from fastlane_core.testing.runner_driver import RunDriver, Written
from fastlane_core.testing.runner_fixtures import MakeRunner, RunnerFixtures

#: No runner may hand out more than this at a time.
LARGEST_CHUNK = 1024 * 1024


class RunnerOutputTests(RunnerFixtures):
    """Tests of `Runner.logs`; run as a part of `RunnerSuite`."""

    async def test_both_streams_are_exact_and_apart(
        self, runner: Runner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        run = await runs.start(runner, commands.write(b"to stdout\n", b"to stderr\n"))

        assert await run.written() == Written(stdout=b"to stdout\n", stderr=b"to stderr\n")

    async def test_last_lines_without_a_newline_are_kept(
        self, runner: Runner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        run = await runs.start(runner, commands.write(b"one\nlast", b"also last"))

        assert await run.written() == Written(stdout=b"one\nlast", stderr=b"also last")

    async def test_any_byte_survives(self, runner: Runner, runs: RunDriver, commands: ShellCommands) -> None:
        every_byte = bytes(range(256))
        broken_utf8 = b"\xff\xfe ok \xe2\x82 \r\n\r \x1b[31mred\x1b[0m \xc3\xa9"

        run = await runs.start(runner, commands.write(every_byte, broken_utf8))

        assert await run.written() == Written(stdout=every_byte, stderr=broken_utf8)

    async def test_silent_run_has_no_output(self, runner: Runner, runs: RunDriver, commands: ShellCommands) -> None:
        run = await runs.start(runner, commands.exit_with(3))

        assert await run.logs() == []
        assert await run.logs(follow=False) == []

    async def test_long_line_is_exact(self, runner: Runner, runs: RunDriver, commands: ShellCommands) -> None:
        size = 200 * 1024 + 1

        run = await runs.start(runner, commands.long_line(size))

        assert (await run.written()).stdout == b"x" * size
        assert (await run.written()).stdout == b"x" * size

    async def test_many_lines_on_both_streams_are_exact(
        self, runner: Runner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        run = await runs.start(runner, commands.count(100_000, 1_000))

        followed = await run.logs()
        await run.wait()
        read_afterwards = await run.written(follow=False)

        assert Written.of(followed) == Written(stdout=numbers(100_000), stderr=numbers(1_000))
        assert read_afterwards == Written(stdout=numbers(100_000), stderr=numbers(1_000))
        assert all(0 < len(each.data) <= LARGEST_CHUNK for each in followed)

    async def test_reading_resumes_from_every_position_without_gap_or_repeat(
        self, make_runner: MakeRunner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        first, second = await make_runner(), await make_runner()
        run = await runs.start(first, commands.count(50_000, 2_000))
        outputs = await run.logs()
        await run.wait()

        for index in _spread(len(outputs), 12):
            rest = await run.written(after=outputs[index].position, follow=index % 2 == 0, by=second)

            assert rest == Written.of(outputs[index + 1 :]), f"resumed after chunk {index} of {len(outputs)}"

    async def test_reading_resumes_in_another_worker_while_the_run_goes_on(
        self, make_runner: MakeRunner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        first, second = await make_runner(), await make_runner()
        run = await runs.start(first, commands.count_slowly(10, 0.1))

        seen = await run.logs_until(lambda outputs: b"3\n" in Written.of(outputs).stdout)
        rest = await run.logs(after=seen[-1].position, by=second)

        assert Written.of([*seen, *rest]) == Written(stdout=numbers(10), stderr=b"")

    async def test_following_gives_output_while_the_run_goes_on(
        self, runner: Runner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        run = await runs.start(runner, commands.wait_for_stop())

        await run.until_ready()

        assert (await runs.owned(runner, run.request.place))[run.request.execution_id].running

    async def test_reading_without_follow_ends_at_what_is_there(
        self, runner: Runner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        run = await runs.start(runner, commands.wait_for_stop())
        await run.until_ready()

        outputs = await run.logs(follow=False)

        assert Written.of(outputs) == Written(stdout=b"ready\n", stderr=b"")
        assert await run.logs(after=outputs[-1].position, follow=False) == []
        assert (await runs.owned(runner, run.request.place))[run.request.execution_id].running

    async def test_following_ends_when_the_run_is_stopped(
        self, runner: Runner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        run = await runs.start(runner, commands.wait_for_stop())
        following = asyncio.create_task(run.written())
        await run.until_ready()

        await run.stop(30)

        assert await following == Written(stdout=b"ready\n", stderr=b"")

    async def test_several_readers_each_get_everything(
        self, make_runner: MakeRunner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        first, second = await make_runner(), await make_runner()
        run = await runs.start(first, commands.count_slowly(5, 0.1))

        read = await asyncio.gather(*(run.written(by=worker) for worker in (first, second, first)))

        assert read == [Written(stdout=numbers(5), stderr=b"")] * 3

    async def test_output_is_complete_when_wait_returns(
        self, runner: Runner, runs: RunDriver, commands: ShellCommands
    ) -> None:
        run = await runs.start(runner, commands.count(20_000, 100))

        await run.wait()

        assert await run.written(follow=False) == Written(stdout=numbers(20_000), stderr=numbers(100))


def numbers(count: int) -> bytes:
    """The lines `1` to `count`."""
    return b"".join(b"%d\n" % number for number in range(1, count + 1))


def _spread(count: int, most: int) -> Sequence[int]:
    """At most `most` indexes, evenly over `range(count)`, with the last one."""
    step = max(1, count // most)
    return sorted({*range(0, count, step), count - 1})
