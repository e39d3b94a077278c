"""What the process runner does beyond the contract: isolation that it does not have, and mess that it cleans up."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fastlane_core.builtin.process import shim
from fastlane_core.builtin.process.run_folder import RunFolder, remove_tree
from fastlane_core.builtin.process.runner import ProcessRunner
from fastlane_core.builtin.process.settings import ProcessOptions, ProcessSettings
from fastlane_core.builtin.process.state_folder import REMEMBERED
from fastlane_core.builtin.process.watch import until_gone
from fastlane_core.errors import EngineUnavailable, RunnerError, RunNotFound, SettingsError, StartRejected
from fastlane_core.models import Reason
from fastlane_core.testing.runner_context import runner_context
from fastlane_core.testing.runner_driver import DEADLINE, RunDriver, StartedRun, Written

DEPLOYMENT = "process-runner"
LIMIT = 100_000


class Clock:
    """A clock that stands still until it is moved."""

    now = 2_000_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "process"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def runner(folder: Path, clock: Clock) -> AsyncIterator[ProcessRunner]:
    settings = ProcessSettings(process_folder=str(folder), process_max_output_bytes=LIMIT)
    runner = ProcessRunner(runner_context(settings, deployment_id=DEPLOYMENT, clock=clock))
    await runner.open()
    yield runner
    await runner.close()


@pytest.fixture
async def runs(runner: ProcessRunner) -> AsyncIterator[RunDriver]:
    async with RunDriver.of(runner, deployment_id=DEPLOYMENT, image="ignored") as driver:
        yield driver


def sh(script: str) -> str:
    return shlex.join(["sh", "-c", script])


async def first_line(run: StartedRun) -> str:
    outputs = await run.logs_until(lambda outputs: b"\n" in Written.of(outputs).stdout)
    return Written.of(outputs).stdout.decode().splitlines()[0]


async def test_the_worker_s_environment_does_not_leak_into_the_run(
    runner: ProcessRunner, runs: RunDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTLANE_SECRET", "hunter2")

    run = await runs.start(runner, "cat /proc/self/environ", env={"MINE": "1"})

    names = {each.partition("=")[0] for each in (await run.written()).stdout.decode().split("\0")[:-1]}
    assert names == {"PATH", "LANG", "HOME", "MINE"}


async def test_each_run_has_a_private_folder_of_its_own(runner: ProcessRunner, runs: RunDriver, folder: Path) -> None:
    script = 'test "$HOME" = "$(pwd)"; echo "$? $(ls -A)" ; echo data >file; pwd'
    one = await runs.start(runner, sh(script))
    two = await runs.start(runner, sh(script))

    here, there = [(await run.written()).stdout.decode().splitlines() for run in (one, two)]

    assert here[0] == there[0] == "0 "
    assert here[1] != there[1]
    for path in (folder, Path(here[1]), Path(here[1]).parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((Path(here[1]) / "file").stat().st_mode) == 0o644


async def test_no_shell_reads_the_command_unless_the_job_asks_for_one(
    runner: ProcessRunner, runs: RunDriver, folder: Path
) -> None:
    command = "echo '$HOME' $HOME; echo more | tr m M"

    plain = await runs.start(runner, command)
    shell = await runs.start(runner, command, options={"process": {"shell": True}})

    assert (await plain.written()).stdout == b"$HOME $HOME; echo more | tr m M\n"
    home = folder / "runs" / shell.request.execution_id / "work"
    assert (await shell.written()).stdout.decode() == f"$HOME {home}\nMore\n"


async def test_a_shell_s_redirection_to_dev_stderr_keeps_what_was_written_before(
    runner: ProcessRunner, runs: RunDriver
) -> None:
    run = await runs.start(runner, sh("echo 1; echo 2 >/dev/stdout; echo 3; echo a >/dev/stderr; echo b >/dev/stderr"))

    assert await run.written() == Written(stdout=b"1\n2\n3\n", stderr=b"a\nb\n")


async def test_stdin_is_empty(runner: ProcessRunner, runs: RunDriver) -> None:
    run = await runs.start(runner, "cat")

    assert (await run.wait()).reason is Reason.SUCCEEDED
    assert await run.written() == Written(stdout=b"", stderr=b"")


async def test_run_inherits_nothing_but_its_three_streams(runner: ProcessRunner, runs: RunDriver) -> None:
    files = await runs.start(runner, sh("ls /proc/$$/fd; umask"))
    # Read by the command itself: a shell blocks signals while it starts another.
    signals = await runs.start(runner, "grep -E '^Sig(Ign|Blk)' /proc/self/status")

    assert (await files.written()).stdout.decode().split() == ["0", "1", "2", "0022"]
    blocked, ignored = (int(mask, 16) for mask in (await signals.written()).stdout.decode().split()[1::2])
    # 32 and 33 belong to the C library: no program can set them right that some caller has blocked or ignored.
    assert (blocked | ignored) & ~(0b11 << 31) == 0


async def test_shim_of_a_run_whose_folder_was_removed_ends_with_the_run(
    runner: ProcessRunner, runs: RunDriver, folder: Path
) -> None:
    run = await runs.start(runner, sh("echo ready; sleep 1"))
    await run.until_ready()
    run_folder = folder / "runs" / run.request.execution_id
    its = RunFolder(run_folder).started()
    assert its is not None

    remove_tree(run_folder)

    async with asyncio.timeout(DEADLINE):
        await until_gone(its.shim, its.shim_ticks)
    with pytest.raises(RunNotFound):
        await run.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGPIPE])
async def test_signal_is_told_as_a_shell_does(runner: ProcessRunner, runs: RunDriver, number: signal.Signals) -> None:
    outcome = await (await runs.start(runner, sh(f"ulimit -c 0; kill -{number.value} $$"))).wait()

    assert (outcome.exit_code, outcome.reason) == (128 + number, Reason.SIGNAL)
    assert number.name in outcome.message


async def test_what_a_command_leaves_running_ends_with_it(
    runner: ProcessRunner, runs: RunDriver, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    child = f"echo $$; touch {begun}; exec sleep 600"
    until_begun = f"until test -e {begun}; do sleep 0.05; done"
    run = await runs.start(runner, sh(f"sleep 600 & echo $!; setsid sh -c '{child}' & {until_begun}; exit 5"))

    assert (await run.wait()).exit_code == 5

    pids = [int(line) for line in (await run.written()).stdout.split()]
    assert len(pids) == 2
    assert [shim.start_ticks(pid) for pid in pids] == [None, None]


async def test_stop_asks_the_children_too(runner: ProcessRunner, runs: RunDriver) -> None:
    child = "trap 'echo asked; exit' TERM; echo ready; sleep 600 & wait"
    run = await runs.start(runner, sh(f"trap : TERM; sh -c {shlex.quote(child)} & wait; wait; exit 3"))
    await run.until_ready()

    await run.stop(60)

    assert (await run.wait()).exit_code == 3
    assert (await run.written()).stdout == b"ready\nasked\n"


@pytest.mark.parametrize("grace", [0, 0.2, 60])
async def test_stop_reaches_children_and_daemons(runner: ProcessRunner, runs: RunDriver, grace: float) -> None:
    # A minute of grace is enough only if the child is asked as well: the shell waits for it.
    ignore = "trap '' TERM;" if grace < 1 else ""
    script = f"{ignore} setsid sh -c 'trap \"\" TERM; sleep 600' & d=$!; sleep 600 & echo $$ $d $!; wait $!; wait $!"
    run = await runs.start(runner, sh(script))
    pids = [int(pid) for pid in (await first_line(run)).split()]

    await run.stop(grace)

    assert [shim.start_ticks(pid) for pid in pids] == [None] * 3


async def test_run_that_floods_the_disk_is_killed(runner: ProcessRunner, runs: RunDriver) -> None:
    run = await runs.start(runner, "yes")

    outcome = await run.wait()

    assert (outcome.exit_code, outcome.reason) == (137, Reason.SIGNAL)
    assert "PROCESS_MAX_OUTPUT_BYTES" in outcome.message
    assert (await run.written()).stdout == b"y\n" * (LIMIT // 2)


async def test_output_of_exactly_the_limit_is_kept(runner: ProcessRunner, runs: RunDriver) -> None:
    run = await runs.start(runner, f"head -c {LIMIT} /dev/zero")

    assert (await run.wait()).reason is Reason.SUCCEEDED
    assert (await run.written()).stdout == bytes(LIMIT)


async def test_last_output_of_quick_runs_is_complete(runner: ProcessRunner, runs: RunDriver) -> None:
    sizes = [65536 - 1, 65536 + 1, 90_000, 4096] * 8

    for size in sizes:
        run = await runs.start(runner, f"head -c {size} /dev/zero")
        assert len((await run.written()).stdout) == size


@pytest.mark.parametrize(
    ("command", "env", "options", "complaint"),
    [
        ("", {}, {}, "needs a command"),
        ("echo 'a\0b'", {}, {}, "NUL"),
        ("echo \ud800", {}, {}, "surrogate"),
        ("true", {"A": "a\0b"}, {}, "A holds a NUL"),
        ("true", {"A=B": "c"}, {}, "'A=B'"),
        ("true", {"": "c"}, {}, "''"),
        ("true", {}, {"process": {"shel": True}}, "Extra inputs"),
    ],
)
async def test_what_no_process_can_be_given_is_refused(
    runner: ProcessRunner,
    runs: RunDriver,
    command: str,
    env: dict[str, str],
    options: dict[str, dict[str, bool]],
    complaint: str,
) -> None:
    with pytest.raises(StartRejected, match=complaint):
        await runs.start(runner, command, env=env, options=options)

    assert await runs.owned(runner, "local") == {}


async def test_command_line_beyond_the_machine_s_limit_is_rejected(runner: ProcessRunner, runs: RunDriver) -> None:
    run = await runs.start(runner, f"echo {'x' * 300_000}")

    assert (await run.wait()).reason is Reason.START_REJECTED


async def test_start_that_failed_on_this_machine_can_be_tried_again(
    runner: ProcessRunner, runs: RunDriver, folder: Path
) -> None:
    request = await runs.request(runner, "echo hi")
    (folder / "aside").rmdir()
    with pytest.raises(EngineUnavailable, match="process"):
        await runs.start_request(runner, request)

    (folder / "aside").mkdir()
    run = await runs.start_request(runner, request)

    assert (await run.written()).stdout == b"hi\n"


async def test_positions_of_others_are_refused(runner: ProcessRunner, runs: RunDriver) -> None:
    run = await runs.start(runner, "true")

    with pytest.raises(RunnerError, match="no position"):
        await run.logs(after="2026-01-01T00:00:00Z")


async def test_cancelled_waits_and_readers_leave_no_descriptors_behind(runner: ProcessRunner, runs: RunDriver) -> None:
    run = await runs.start(runner, sh("echo ready; sleep 600"))
    await run.until_ready()
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(20):
        tasks = [asyncio.create_task(run.wait()), asyncio.create_task(run.logs())]
        done, _pending = await asyncio.wait(tasks, timeout=0.01)
        assert not done
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async with asyncio.timeout(DEADLINE):
        # Threads that were reading when their caller was cancelled close their files in their own time.
        while len(os.listdir("/proc/self/fd")) > before:
            await asyncio.sleep(0.01)


async def test_finish_ends_a_run_that_still_runs(runner: ProcessRunner, runs: RunDriver, folder: Path) -> None:
    run = await runs.start(runner, sh("trap '' TERM; echo $$; sleep 600"))
    pid = int(await first_line(run))

    await runner.finish(run.handle)

    assert shim.start_ticks(pid) is None
    assert list((folder / "runs").iterdir()) == list((folder / "aside").iterdir()) == []


async def test_finish_removes_what_a_command_made_hard_to_remove(
    runner: ProcessRunner, runs: RunDriver, folder: Path
) -> None:
    run = await runs.start(runner, sh("mkdir -p a/b; echo >a/b/c; ln -s / root; chmod 000 a/b/c a/b a .; mkfifo pipe"))
    await run.wait()

    await runner.finish(run.handle)

    assert list((folder / "runs").iterdir()) == list((folder / "aside").iterdir()) == []


async def test_finished_runs_are_forgotten_after_a_while(
    runner: ProcessRunner, runs: RunDriver, folder: Path, clock: Clock
) -> None:
    old, new = await runs.start(runner, "true"), await runs.start(runner, "true")
    await old.wait()
    await new.wait()

    await runner.finish(old.handle)
    clock.now += REMEMBERED + 1
    await runner.finish(new.handle)

    assert [path.name for path in (folder / "finished").iterdir()] == [new.request.execution_id]


@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "192.0.2.1", "example.com", "[::]:80", "127.0.0.1,0.0.0.0", ""])
async def test_open_refuses_an_api_that_others_reach(tmp_path: Path, bind: str) -> None:
    settings = ProcessSettings(process_folder=str(tmp_path))
    runner = ProcessRunner(runner_context(settings, deployment_id=DEPLOYMENT, api_bind=bind))

    with pytest.raises(SettingsError, match="PROCESS_ALLOW_REMOTE"):
        await runner.open()


async def test_open_refuses_an_api_in_another_process_that_others_reach(tmp_path: Path) -> None:
    settings = ProcessSettings(process_folder=str(tmp_path))
    binds = {"127.0.0.1:10000", "0.0.0.0:10000"}
    runner = ProcessRunner(runner_context(settings, deployment_id=DEPLOYMENT, api_binds=binds))

    with pytest.raises(SettingsError, match=r"bound to 0\.0\.0\.0:10000"):
        await runner.open()


async def test_nothing_is_started_once_an_api_is_reached_by_others(tmp_path: Path, runs: RunDriver) -> None:
    binds: set[str] = {"127.0.0.1:10000"}
    settings = ProcessSettings(process_folder=str(tmp_path))
    runner = ProcessRunner(runner_context(settings, deployment_id=DEPLOYMENT, api_binds=binds))
    await runner.open()
    try:
        binds.add("[::]:10000")
        with pytest.raises(EngineUnavailable, match="PROCESS_ALLOW_REMOTE"):
            await runs.start(runner, "true")
        binds.clear()
        run = await runs.start(runner, "true")
        await run.wait()
    finally:
        await runner.close()


@pytest.mark.parametrize("bind", [None, "127.0.0.1", "127.0.0.2:80", "::1", "[::1]:10000", "localhost", "unix:/a:b"])
async def test_open_accepts_an_api_on_loopback(tmp_path: Path, bind: str | None) -> None:
    settings = ProcessSettings(process_folder=str(tmp_path))
    runner = ProcessRunner(runner_context(settings, deployment_id=DEPLOYMENT, api_bind=bind))

    await runner.open()
    await runner.close()


async def test_open_accepts_any_api_when_the_operator_allows_it(tmp_path: Path) -> None:
    settings = ProcessSettings(process_folder=str(tmp_path), process_allow_remote=True)
    runner = ProcessRunner(runner_context(settings, deployment_id=DEPLOYMENT, api_bind="0.0.0.0"))

    await runner.open()
    await runner.close()


async def test_open_names_the_setting_whose_folder_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = ProcessSettings(process_folder=str(tmp_path / "file" / "process"))

    with pytest.raises(SettingsError, match="PROCESS_FOLDER"):
        await ProcessRunner(runner_context(settings, deployment_id=DEPLOYMENT)).open()


async def test_runner_that_is_not_open_says_so(tmp_path: Path, runs: RunDriver) -> None:
    runner = ProcessRunner(runner_context(ProcessSettings(process_folder=str(tmp_path)), deployment_id=DEPLOYMENT))

    with pytest.raises(EngineUnavailable, match="not open"):
        await runs.start(runner, "true")


def test_capacity_comes_from_the_settings() -> None:
    runner = ProcessRunner(runner_context(ProcessSettings(process_max_running=3), deployment_id=DEPLOYMENT))

    assert [(lane.name, lane.capacity) for lane in runner.lanes()] == [("process:local", 3)]


def test_the_job_option_is_off_by_default() -> None:
    assert ProcessOptions().shell is False
