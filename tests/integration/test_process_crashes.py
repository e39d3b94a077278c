"""Workers and shims of the process runner are killed: nothing is lost, nothing runs twice, nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import multiprocessing.context
import os
import shlex
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fastlane_core.builtin.process import shim
from fastlane_core.builtin.process.run_folder import RunFolder, RunRecord, Started
from fastlane_core.builtin.process.runner import ProcessRunner
from fastlane_core.builtin.process.watch import until_gone
from fastlane_core.errors import RunNotFound
from fastlane_core.models import Reason, RunHandle, RunRequest
from fastlane_core.testing.runner_driver import DEADLINE, RunDriver, StartedRun, Written
from fastlane_core.testing.runner_output import numbers
from tests.integration.process_worker import new_runner, start_when_told

DEPLOYMENT = "crashes"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "process")


@pytest.fixture
async def runner(folder: str) -> AsyncIterator[ProcessRunner]:
    runner = new_runner(folder, DEPLOYMENT)
    await runner.open()
    yield runner
    await runner.close()


@pytest.fixture
async def runs(runner: ProcessRunner) -> AsyncIterator[RunDriver]:
    async with RunDriver.of(runner, deployment_id=DEPLOYMENT, image="") as driver:
        yield driver


@pytest.fixture(scope="module")
def spawner() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.process_worker"])
    return context


class Worker:
    """A worker in a process of its own that starts one run when told."""

    def __init__(self, spawner: multiprocessing.context.ForkServerContext, folder: str, request: RunRequest) -> None:
        self.told, theirs = spawner.Pipe()
        self._process = spawner.Process(target=start_when_told, args=(folder, request, theirs))
        self._process.start()
        theirs.close()
        assert self.hear() == "ready"

    def hear(self) -> object:
        assert self.told.poll(DEADLINE), "the worker says nothing"
        return self.told.recv()

    def tell(self) -> None:
        self.told.send("go")

    def kill(self) -> None:
        self._process.kill()
        self._process.join(DEADLINE)
        self._process.close()
        self.told.close()


def once(marks: Path) -> str:
    """A command that leaves a mark each time it runs, and goes on for a moment."""
    return shlex.join(["sh", "-c", f"echo mark >>{marks}; for i in 1 2 3; do echo $i; sleep 0.02; done"])


async def test_run_survives_its_worker_and_is_adopted_with_complete_output(
    runner: ProcessRunner, runs: RunDriver, spawner: multiprocessing.context.ForkServerContext, folder: str
) -> None:
    script = "for i in $(seq 1 20); do echo $i; sleep 0.2; done; echo end >&2; exit 7"
    request = await runs.request(runner, shlex.join(["sh", "-c", script]))
    worker = await asyncio.to_thread(Worker, spawner, folder, request)
    worker.tell()
    assert await asyncio.to_thread(worker.hear) == "started"

    await asyncio.to_thread(worker.kill)
    owned = (await runs.owned(runner, "local"))[request.execution_id]
    run = StartedRun(runner=runner, request=request, handle=owned.handle)

    assert owned.running
    assert await run.written() == Written(stdout=numbers(20), stderr=b"end\n")
    assert ((await run.wait()).exit_code, (await run.wait()).reason) == (7, Reason.EXIT_CODE)


@pytest.mark.parametrize("delay_ms", [0, 1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 27, 30, 35, 40])
async def test_worker_killed_at_any_moment_of_a_start_neither_loses_nor_doubles_the_run(
    runner: ProcessRunner,
    runs: RunDriver,
    spawner: multiprocessing.context.ForkServerContext,
    folder: str,
    tmp_path: Path,
    delay_ms: float,
) -> None:
    marks = tmp_path / "marks"
    request = await runs.request(runner, once(marks))
    worker = await asyncio.to_thread(Worker, spawner, folder, request)

    worker.tell()
    time.sleep(delay_ms / 1000)
    await asyncio.to_thread(worker.kill)
    run = await runs.start_request(runner, replace(request, fence=2))

    assert await run.written() == Written(stdout=numbers(3), stderr=b"")
    assert (await run.wait()).reason is Reason.SUCCEEDED
    assert marks.read_text() == "mark\n"


async def test_workers_that_start_the_same_run_at_once_start_it_once(
    runner: ProcessRunner,
    runs: RunDriver,
    spawner: multiprocessing.context.ForkServerContext,
    folder: str,
    tmp_path: Path,
) -> None:
    marks = tmp_path / "marks"
    request = await runs.request(runner, once(marks))
    workers = [await asyncio.to_thread(Worker, spawner, folder, request) for _ in range(4)]

    for worker in workers:
        worker.tell()
    heard = [await asyncio.to_thread(worker.hear) for worker in workers]
    run = await runs.start_request(runner, request)

    assert heard == ["started"] * 4
    assert await run.written() == Written(stdout=numbers(3), stderr=b"")
    assert marks.read_text() == "mark\n"
    for worker in workers:
        await asyncio.to_thread(worker.kill)


async def test_run_whose_shim_is_killed_is_lost_and_dead(runner: ProcessRunner, runs: RunDriver, folder: str) -> None:
    run = await runs.start(runner, shlex.join(["sh", "-c", "sleep 600 & echo $! $$; wait"]))
    outputs = await run.logs_until(lambda outputs: b"\n" in Written.of(outputs).stdout)
    pids = [int(pid) for pid in Written.of(outputs).stdout.split()]
    waiting = asyncio.create_task(run.wait())

    os.kill(started(folder, run).shim, signal.SIGKILL)

    outcome = await waiting
    assert (outcome.exit_code, outcome.reason) == (None, Reason.RUN_LOST)
    assert outcome.message
    assert [shim.start_ticks(pid) for pid in pids] == [None, None]
    assert await run.wait() == outcome
    assert (await run.written()).stdout == Written.of(outputs).stdout
    again = await runs.start_request(runner, run.request)
    assert await again.wait() == outcome


async def test_run_whose_shim_is_killed_is_never_started_again(
    runner: ProcessRunner, runs: RunDriver, folder: str, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    run = await runs.start(runner, shlex.join(["sh", "-c", f"echo mark >>{marks}; echo ready; sleep 600"]))
    await run.until_ready()
    its = started(folder, run)
    os.kill(its.shim, signal.SIGKILL)
    await until_gone(its.shim, its.shim_ticks)

    again = await runs.start_request(runner, run.request)

    assert (await again.wait()).reason is Reason.RUN_LOST
    assert marks.read_text() == "mark\n"


async def test_stop_of_a_run_whose_shim_was_killed_leaves_nothing_alive(
    runner: ProcessRunner, runs: RunDriver, folder: str
) -> None:
    run = await runs.start(runner, shlex.join(["sh", "-c", "trap '' TERM; sleep 600 & echo $!; wait"]))
    outputs = await run.logs_until(lambda outputs: b"\n" in Written.of(outputs).stdout)
    left = int(Written.of(outputs).stdout)
    os.kill(started(folder, run).shim, signal.SIGKILL)

    await run.stop(DEADLINE)

    assert shim.start_ticks(left) is None


async def test_finish_of_a_run_whose_shim_was_killed_leaves_nothing_alive(
    runner: ProcessRunner, runs: RunDriver, folder: str
) -> None:
    run = await runs.start(runner, shlex.join(["sh", "-c", "sleep 600 & echo $!; wait"]))
    outputs = await run.logs_until(lambda outputs: b"\n" in Written.of(outputs).stdout)
    left = int(Written.of(outputs).stdout)
    os.kill(started(folder, run).shim, signal.SIGKILL)

    await runner.finish(run.handle)

    assert shim.start_ticks(left) is None
    assert await runs.owned(runner, "local") == {}


@pytest.mark.parametrize("what", ["another boot", "another process"])
async def test_process_that_only_has_a_lost_run_s_pid_is_left_alone(
    runner: ProcessRunner, runs: RunDriver, folder: str, what: str
) -> None:
    bystander = await runs.start(runner, "sleep 600")
    its = started(folder, bystander)
    stale = (
        replace(its, world="another boot") if what == "another boot" else replace(its, command_ticks=1, shim_ticks=1)
    )
    lost = make_run(folder, "lost", started=stale)

    outcome = await asyncio.wait_for(runner.wait(lost), DEADLINE)

    assert outcome.reason is Reason.RUN_LOST
    assert shim.start_ticks(its.command) == its.command_ticks


def test_command_that_was_told_in_part_is_not_run() -> None:
    whole = shim.Launch([b"echo", b"", b"two words"], {b"A": b"1", b"B": b"x=y"}).encode()

    for cut in range(len(whole)):
        with pytest.raises(ValueError, match="went away"):
            shim.Launch.decode(whole[:cut])
    assert shim.Launch.decode(whole).argv == [b"echo", b"", b"two words"]
    assert shim.Launch.decode(whole).env == {b"A": b"1", b"B": b"x=y"}


async def test_run_that_was_created_but_never_started_is_started(
    runner: ProcessRunner, runs: RunDriver, folder: str
) -> None:
    request = await runs.request(runner, "echo hi", fence=3)
    handle = make_run(folder, request.execution_id)
    with pytest.raises(RunNotFound):
        await runner.wait(handle)

    run = await runs.start_request(runner, request)

    assert (await run.written()).stdout == b"hi\n"
    assert (await runs.owned(runner, "local"))[request.execution_id].fence == 3


async def test_run_that_was_stopped_before_it_began_never_begins(
    runner: ProcessRunner, runs: RunDriver, folder: str, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    request = await runs.request(runner, once(marks))
    await runner.stop(make_run(folder, request.execution_id), 10)

    run = await runs.start_request(runner, request)

    assert (await run.wait()).reason is Reason.STOPPED
    assert not marks.exists()


async def test_start_that_comes_after_finish_does_not_repeat_the_run(
    runner: ProcessRunner, runs: RunDriver, folder: str, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    run = await runs.start(runner, once(marks))
    await run.wait()
    await runner.finish(run.handle)

    late = await runs.start_request(runner, run.request)

    with pytest.raises(RunNotFound):
        await late.wait()
    assert marks.read_text() == "mark\n"
    assert await runs.owned(runner, "local") == {}


def started(folder: str, run: StartedRun) -> Started:
    found = run_folder(folder, run.request.execution_id).started()
    assert found is not None
    return found


def run_folder(folder: str, execution_id: str) -> RunFolder:
    return RunFolder(Path(folder, "runs", execution_id))


def make_run(folder: str, execution_id: str, *, started: Started | None = None) -> RunHandle:
    """A run's folder as a killed worker, or the machine's death, may leave it."""
    record = RunRecord(execution_id=execution_id, deployment_id=DEPLOYMENT, fence=1, created_at=1.0)
    run = run_folder(folder, execution_id)
    RunFolder.create(run.path, record, aside=Path(folder, "aside", execution_id))
    if started is not None:
        (run.path / shim.STARTED_FILE).write_text(json.dumps(asdict(started)))
    return RunHandle(runner="process", version=1, data={"execution_id": execution_id})
