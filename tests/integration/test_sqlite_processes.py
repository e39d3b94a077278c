"""Several processes on one SQLite file, and processes that die."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.testing.examples import an_item

DEADLINE = 60.0
ROOT = Path(__file__).parents[2]
StartProcess = Callable[..., Awaitable[Process]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "fastlane.db"


@pytest.fixture
async def start(path: Path) -> AsyncIterator[StartProcess]:
    """Starts a role of `sqlite_process` on the file; what still runs at the end is killed."""
    started: list[Process] = []

    async def start(role: str, *arguments: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.integration.sqlite_process", role, str(path), *arguments,
            stdin=PIPE, stdout=PIPE, cwd=ROOT,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
async def storage(path: Path) -> AsyncIterator[SqliteStorage]:
    storage = SqliteStorage(path)
    await storage.open()
    yield storage
    await storage.close()


@pytest.fixture
async def queue(path: Path) -> AsyncIterator[SqliteQueue]:
    queue = SqliteQueue(path, clock=time.time)
    await queue.open()
    await queue.rebuilt()
    yield queue
    await queue.close()


async def test_everything_accepted_survives_a_kill(path: Path, start: StartProcess) -> None:
    process = await start("submit")
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        accepted = [(await process.stdout.readline()).decode().strip() for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        rest, _ = await process.communicate()
    accepted += [line for line in rest.decode().splitlines(keepends=False) if len(line) == 36]

    storage = SqliteStorage(path)
    await storage.open()
    try:
        for job_id in accepted:
            assert await storage.get_job("task", job_id) is not None
            assert await storage.count_executions(job_id, task_id="task") == 1
        task = await storage.get_task("task")
        assert task is not None
        assert task.jobs_count == await storage.count_jobs() >= len(accepted)
    finally:
        await storage.close()


async def test_processes_that_write_at_the_same_time_all_get_through(
    storage: SqliteStorage, queue: SqliteQueue, start: StartProcess
) -> None:
    processes = [await start("fill", "150") for _ in range(3)]
    async with asyncio.timeout(DEADLINE):
        for process in processes:
            output, _ = await process.communicate()
            assert output.decode().split() == ["done"]

    assert await storage.count_tasks() == 1
    assert await storage.count_jobs() == 450
    assert (await queue.stats())["lane"].waiting == 450


@pytest.mark.parametrize(
    ("before", "change"),
    [
        ([], "put item"),
        (["put first", "claim 600", "put item"], "ack"),
        (["put first", "claim 600", "put item"], "release 600"),
        (["put item", "claim 600"], "hand_over"),
    ],
)
async def test_what_another_process_does_wakes_who_waits(
    queue: SqliteQueue, start: StartProcess, before: list[str], change: str
) -> None:
    process = await ready(await start("obey"))
    for line in before:
        await tell(process, line)
    assert await claimed(queue) == []
    waiting = asyncio.create_task(wait_and_claim(queue))
    await tell(process, change)

    assert await asyncio.wait_for(waiting, DEADLINE) == ["item"]


async def test_the_end_of_a_rebuild_by_another_process_wakes_who_waits(path: Path, start: StartProcess) -> None:
    queue = SqliteQueue(path, clock=time.time)
    await queue.open()
    try:
        await queue.put([an_item("item")])
        waiting = asyncio.create_task(wait_and_claim(queue))
        process = await ready(await start("obey"))
        await tell(process, "rebuilt")

        assert await asyncio.wait_for(waiting, DEADLINE) == ["item"]
    finally:
        await queue.close()


async def test_a_message_of_another_process_reaches_who_listens(queue: SqliteQueue, start: StartProcess) -> None:
    process = await ready(await start("obey"))
    async with queue.subscribe(["unheard", "topic"]) as subscription:
        for _ in range(3):
            await tell(process, "publish topic")
            assert await subscription.next(DEADLINE) == "topic"
        await tell(process, "publish something else")
        await tell(process, "publish unheard")
        assert await subscription.next(DEADLINE) == "unheard"


async def test_items_wake_a_worker_in_another_process(queue: SqliteQueue, start: StartProcess) -> None:
    process = await ready(await start("work"))
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE):
        for number in range(20):
            await queue.put([an_item(f"{number}")])
            assert (await process.stdout.readline()).decode().strip() == f"{number}"


async def test_a_full_disk_is_told_and_loses_nothing(path: Path, start: StartProcess) -> None:
    process = await start("full")
    async with asyncio.timeout(DEADLINE):
        output, _ = await process.communicate()
    *accepted, refusal = output.decode().splitlines()

    assert accepted
    assert refusal.startswith("StorageUnavailable")
    assert str(path) in refusal
    assert "disk" in refusal
    storage = SqliteStorage(path)
    await storage.open()
    try:
        for job_id in accepted:
            assert await storage.get_job("task", job_id) is not None
    finally:
        await storage.close()


async def wait_and_claim(queue: SqliteQueue) -> list[str]:
    """Wait, for much longer than the test takes, until something is granted; `wait` may return for no reason."""
    while not (found := await claimed(queue)):
        await queue.wait(["lane"], DEADLINE * 100)
    return found


async def claimed(queue: SqliteQueue) -> list[str]:
    """What this process is granted."""
    leases = await queue.claim("lane", worker="here", capacity=1, limit=9, lease_seconds=600.0)
    return [lease.item.execution_id for lease in leases]


async def ready(process: Process) -> Process:
    """The process, once it has done what it was told."""
    assert process.stdout is not None
    assert (await asyncio.wait_for(process.stdout.readline(), DEADLINE)).strip() == b"ready"
    return process


async def tell(process: Process, line: str) -> None:
    """Let it do something."""
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")
    await process.stdin.drain()
    await ready(process)
