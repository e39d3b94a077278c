"""Another process that uses the same SQLite file; run as a program by the tests.

python -m tests.integration.sqlite_process submit PATH      submits until killed, one id a line when it is stored
python -m tests.integration.sqlite_process fill PATH N      submits N jobs, puts N items, prints "done"
python -m tests.integration.sqlite_process put PATH         puts an item and publishes a topic per line of stdin
python -m tests.integration.sqlite_process work PATH        leases and acknowledges, one id a line, until killed
python -m tests.integration.sqlite_process full PATH        submits until the file may not grow; prints what came
"""

from __future__ import annotations

import asyncio
import resource
import signal
import sys
import time
from pathlib import Path

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.contracts.queue import Lease
from fastlane_core.errors import FastlaneError
from fastlane_core.testing.examples import a_submission, an_item


async def submit(path: Path) -> None:
    """Submit from several callers at once."""
    storage = SqliteStorage(path)
    await storage.open()

    async def caller() -> None:
        while True:
            (submitted,) = await storage.submit([a_submission()])
            print(submitted.job.id, flush=True)

    await asyncio.gather(*(caller() for _ in range(8)))


async def fill(path: Path, count: int) -> None:
    """Submit and put, with everybody else."""
    storage, queue = SqliteStorage(path), SqliteQueue(path, clock=time.time)
    await storage.open()
    await queue.open()

    async def caller(number: int) -> None:
        for _ in range(number, count, 4):
            (submitted,) = await storage.submit([a_submission()])
            await queue.put([an_item(submitted.job.id)])

    await asyncio.gather(*(caller(number) for number in range(4)))
    await queue.close()
    await storage.close()
    print("done", flush=True)


async def obey(path: Path) -> None:
    """Do as stdin says: a verb, a space, and the rest of the line for it."""
    queue = SqliteQueue(path, clock=time.time)
    await queue.open()
    leases: list[Lease] = []
    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, _, rest = line.strip().partition(" ")
        match verb:
            case "put":
                await queue.put([an_item(rest)])
            case "publish":
                await queue.publish(rest)
            case "claim":
                leases += await queue.claim("lane", worker="other", capacity=1, limit=1, lease_seconds=float(rest))
            case "ack":
                await queue.ack(leases.pop())
            case "release":
                await queue.release(leases.pop(), delay=float(rest))
            case "hand_over":
                await queue.hand_over(leases)
            case "rebuilt":
                await queue.rebuilt()
            case _:
                raise ValueError(line)
        print("ready", flush=True)


async def work(path: Path) -> None:
    """Take what is there."""
    queue = SqliteQueue(path, clock=time.time)
    await queue.open()
    print("ready", flush=True)
    while True:
        for lease in await queue.claim("lane", worker="other", capacity=5, limit=2, lease_seconds=30.0):
            await queue.ack(lease)
            print(lease.item.execution_id, flush=True)
        await queue.wait(["lane"], 5.0)


async def full(path: Path) -> None:
    """Submit into a disk that fills up: no file of this process may grow beyond a limit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    storage = SqliteStorage(path)
    await storage.open()
    while True:
        try:
            (submitted,) = await storage.submit([a_submission()])
        except FastlaneError as error:
            print(type(error).__name__, error, flush=True)
            return
        print(submitted.job.id, flush=True)


def main() -> None:
    """Run the named role."""
    role, path = sys.argv[1], Path(sys.argv[2])
    if role == "fill":
        asyncio.run(fill(path, int(sys.argv[3])))
    else:
        asyncio.run({"submit": submit, "obey": obey, "work": work, "full": full}[role](path))


if __name__ == "__main__":
    main()
