"""Steps per second of the queues, and what a claim costs with many waiting, or many held by a limit.

    python -m benchmarks.queue [--waiting 1000000] [--held 10000] [--steps 2000] [--rounds 5] [--callers 16]
                               [--queues sqlite,redis] [--check]

For each queue: put, claim and ack per second, one item a call, by so many callers at a time; then rounds of claim and
ack (one item each, one caller) on a lane in which 1,000 wait, and on one in which `--waiting` do, in turns. Prints the
median rate of each with its spread, and the ratio of the two medians: 1.0 means that it does not matter how many wait.
Then the same on a lane in which two items of a task limited to 2 are leased and `--held` wait besides, and on one with
the two alone.

Redis is started by the benchmark, on loopback and without persistence; SQLite is on a file in the temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.contracts.queue import Lease, Limit, Queue, QueueItem, task_key
from tests.services.redis_queues import redis_queue
from tests.services.redis_server import RedisServer

_FEW = 1_000
_BATCH = 5_000


async def main() -> int:
    """Measure and print; the exit code is 1 when a ratio is above its limit, and that was to be checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, default=1_000_000)
    parser.add_argument("--held", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--queues", default="sqlite,redis")
    parser.add_argument("--check", action="store_true", help="fail above the limits")
    arguments = parser.parse_args()
    kept = True
    for name in arguments.queues.split(","):
        with tempfile.TemporaryDirectory(prefix="fastlane-benchmark-") as folder, _built(name, Path(folder)) as queue:
            await queue.open()
            try:
                await queue.rebuilt()
                print(f"{name}: {await queue.health()}")
                await _rates(queue, arguments.steps, arguments.callers)
                kept &= await _depths(queue, arguments.waiting, arguments.steps // 4, arguments.rounds)
                kept &= await _limited(queue, arguments.held, arguments.steps // 4, arguments.rounds)
            finally:
                await queue.close()
    return 1 if arguments.check and not kept else 0


async def _rates(queue: Queue, steps: int, callers: int) -> None:
    leases: list[Lease] = []

    async def put() -> None:
        await queue.put([_item("rates")])

    async def claim() -> None:
        leases.extend(await _claim(queue, "rates"))

    async def ack() -> None:
        await queue.ack(leases.pop())

    for name, step in (("put", put), ("claim", claim), ("ack", ack)):
        print(f"  {name:6}{await _rate(step, steps, callers):9,.0f}/s  ({callers} callers)")


async def _depths(queue: Queue, waiting: int, steps: int, rounds: int) -> bool:
    """Whether the ratio is within its limit."""
    depths = {"few": _FEW, "many": waiting}
    for lane, depth in depths.items():
        for start in range(0, depth, _BATCH):
            await queue.put([_item(lane) for _ in range(min(_BATCH, depth - start))])
    told = {lane: f"{depth:9,} waiting" for lane, depth in depths.items()}
    few, many = await _compare(queue, told, steps, rounds)
    return _is_within(few / many, 1.5)


async def _limited(queue: Queue, held: int, steps: int, rounds: int) -> bool:
    """Whether the ratio is within its limit."""
    for lane in ("free", "limited"):
        await queue.put([_item(lane) for _ in range(_FEW)])
        limited = replace(_item(lane), task_id=lane, priority=9, limits=(Limit(key=task_key(lane), capacity=2),))
        waiting = 2 + (held if lane == "limited" else 0)
        for start in range(0, waiting, _BATCH):
            count = min(_BATCH, waiting - start)
            await queue.put([replace(limited, execution_id=str(uuid.uuid4())) for _ in range(count)])
        running = await queue.claim(lane, worker="benchmark", capacity=2, limit=2, lease_seconds=3600.0)
        assert [lease.item.task_id for lease in running] == [lane] * 2
    free, beside = await _compare(queue, {"free": "none held", "limited": f"{held:,} held"}, steps, rounds)
    return _is_within(free / beside, 1.1)


def _is_within(ratio: float, limit: float) -> bool:
    print(f"  ratio {ratio:.2f} (limit {limit:g})")
    return ratio <= limit


async def _compare(queue: Queue, lanes: Mapping[str, str], steps: int, rounds: int) -> Sequence[float]:
    """The median rates of claim and ack in lanes, in turns; prints them with what is told of each lane."""
    rates: dict[str, list[float]] = {lane: [] for lane in lanes}
    for _ in range(rounds):
        for lane, found in rates.items():

            async def claim_and_ack(lane: str = lane) -> None:
                for lease in await _claim(queue, lane):
                    await queue.ack(lease)

            found.append(await _rate(claim_and_ack, steps, 1))
            # So many wait again.
            await queue.put([_item(lane) for _ in range(steps)])
    for lane, found in rates.items():
        spread = f"{min(found):,.0f} to {max(found):,.0f}"
        print(f"  claim and ack with {lanes[lane]}: {statistics.median(found):7,.0f}/s  ({spread})")
    return [statistics.median(found) for found in rates.values()]


async def _rate(step: Callable[[], Awaitable[None]], steps: int, callers: int) -> float:
    async def call() -> None:
        for _ in range(steps // callers):
            await step()

    before = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(callers)))
    return (steps // callers) * callers / (time.perf_counter() - before)


async def _claim(queue: Queue, lane: str) -> Sequence[Lease]:
    return await queue.claim(lane, worker="benchmark", capacity=1_000_000, limit=1, lease_seconds=3600.0)


def _item(lane: str) -> QueueItem:
    return QueueItem(execution_id=str(uuid.uuid4()), task_id="benchmark", lane=lane)


@contextmanager
def _built(name: str, folder: Path) -> Iterator[Queue]:
    if name == "sqlite":
        yield SqliteQueue(folder / "fastlane.db", clock=time.time)
    else:
        with RedisServer(folder) as server:
            yield redis_queue(server.url, "benchmark", connections=16)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
