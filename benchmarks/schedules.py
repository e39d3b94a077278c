"""How late schedules that are due at the same second are claimed: from the due time to the lease in a worker's hands.

    python -m benchmarks.schedules [--schedules 1000] [--rounds 7] [--check]

One worker in this process with room for all of them, storage and queue on SQLite in the temporary folder, and a runner
that does nothing. Each round begins a few seconds before a full minute, at which all schedules are due; clocks of all
parts are moved there together. Prints p50, p99 and the latest of each round, in milliseconds, then the medians of the
rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import structlog

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.contracts.queue import Lease
from fastlane_core.engine.context import EngineOptions, WorkerContext
from fastlane_core.engine.routing import Routing
from fastlane_core.engine.submission import JobOrder, JobSubmission
from fastlane_core.engine.worker import Worker
from fastlane_core.models import RunSpec, Schedule
from fastlane_core.testing.fake_engine import FakeEngine
from fastlane_core.testing.fake_runner import FakeRunner

#: Seconds before the tick at which a round begins: the worker has looked for what is due once more by then.
_LEAD = 2.5
_PATIENCE = 120.0
_LIMIT_MS = 250.0


class MovedClock:
    """Real time, moved on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class WatchedQueue(SqliteQueue):
    """Notes how late each lease was given, in seconds."""

    def __init__(self, path: Path, clock: MovedClock) -> None:
        super().__init__(path, clock=clock)
        self._now = clock
        self.late: list[float] = []

    async def claim(
        self,
        lane: str,
        *,
        worker: str,
        capacity: int,
        limit: int,
        lease_seconds: float,
        **more: int | None,
    ) -> Sequence[Lease]:
        leases = await super().claim(
            lane, worker=worker, capacity=capacity, limit=limit, lease_seconds=lease_seconds, **more
        )
        now = self._now()
        self.late += [now - each.item.due_at for each in leases]
        return leases


async def main() -> int:
    """Measure and print; the exit code is 1 when the p99 is above its limit, and that was to be checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check", action="store_true", help="fail above the limit")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory(prefix="fastlane-benchmark-") as folder:
        clock = MovedClock()
        storage, queue = SqliteStorage(Path(folder) / "fastlane.db"), WatchedQueue(Path(folder) / "fastlane.db", clock)
        await storage.open()
        await queue.open()
        try:
            p99 = await _measure(storage, queue, clock, arguments.schedules, arguments.rounds)
        finally:
            await queue.close()
            await storage.close()
    return 1 if arguments.check and p99 > _LIMIT_MS else 0


async def _measure(
    storage: SqliteStorage, queue: WatchedQueue, clock: MovedClock, schedules: int, rounds: int
) -> float:
    """The median of the rounds' p99, in milliseconds."""
    engine = FakeEngine(places={"host": 10 * schedules})
    routing = Routing([FakeRunner(engine, deployment_id="benchmark")])
    context = WorkerContext(
        worker="benchmark",
        deployment_id="benchmark",
        storage=storage,
        queue=queue,
        routing=routing,
        options=EngineOptions(concurrency=10 * schedules),
        clock=clock,
        emit=lambda event: None,
        report=lambda error, event: print(f"error: {error!r}"),
    )
    submission = JobSubmission(storage, queue, routing, clock)
    # Far from the next minute, so that nothing is due while jobs are submitted.
    _move(clock, 1.0)
    for number in range(schedules):
        await submission.submit(
            JobOrder(
                task_id=f"task {number % 50}",
                spec=RunSpec(image="image", command="echo", timeout=60.0),
                schedule=Schedule(cron="* * * * *", timezone="Europe/Berlin"),
            )
        )
    stop = asyncio.Event()
    worker = asyncio.create_task(Worker(context).run(stop))
    p50s, p99s = [], []
    try:
        for number in range(rounds):
            _move(clock, 60.0 - _LEAD)
            await _until_claimed(queue, (number + 1) * schedules)
            late = sorted(1000 * each for each in queue.late[-schedules:])
            p50s.append(statistics.median(late))
            p99s.append(late[int(0.99 * len(late))])
            load = os.getloadavg()[0]
            print(f"  p50 {p50s[-1]:6.1f} ms   p99 {p99s[-1]:6.1f} ms   latest {late[-1]:6.1f} ms   (load {load:.1f})")
            await _until_idle(storage)
    finally:
        stop.set()
        await worker
    print(f"{schedules} schedules due at the same second: p50 {statistics.median(p50s):.0f} ms, ", end="")
    print(f"p99 {statistics.median(p99s):.0f} ms from due to claimed (limit for p99: {_LIMIT_MS:g} ms)")
    return statistics.median(p99s)


def _move(clock: MovedClock, second: float) -> None:
    """Move on to that second of a minute."""
    clock.ahead += (second - clock()) % 60.0


async def _until_claimed(queue: WatchedQueue, count: int) -> None:
    async with asyncio.timeout(_PATIENCE):
        while len(queue.late) < count:
            await asyncio.sleep(0.05)


async def _until_idle(storage: SqliteStorage) -> None:
    async with asyncio.timeout(_PATIENCE):
        while (await storage.list_unfinished(cursor=None, limit=1)).items:
            await asyncio.sleep(0.05)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
