"""The fixtures of the queue suite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final

import pytest_asyncio

from fastlane_core.contracts.queue import Lease, Queue

BuildQueue = Callable[[], Queue]
MakeQueue = Callable[[], Awaitable[Queue]]
#: Moves the queue's clock on by seconds.
Advance = Callable[[float], Awaitable[None]]

#: Clients that use the queue at the same time.
CLIENTS: Final = 50
#: Seconds that a lease lasts unless a test says otherwise.
LEASE_SECONDS: Final = 30.0
#: Seconds within which a queue that works must have answered.
DEADLINE: Final = 60.0


class QueueFixtures:
    """Fixtures with their defaults; `QueueSuite` tells which ones to give."""

    @pytest_asyncio.fixture
    async def make_queue(self, build_queue: BuildQueue) -> AsyncIterator[MakeQueue]:
        """Makes an opened queue, as another process would; all are closed in the end."""
        opened: list[Queue] = []

        async def make() -> Queue:
            queue = build_queue()
            await asyncio.wait_for(queue.open(), DEADLINE)
            opened.append(queue)
            return queue

        yield make
        for queue in opened:
            await asyncio.wait_for(queue.close(), DEADLINE)

    @pytest_asyncio.fixture
    async def new_queue(self, make_queue: MakeQueue) -> Queue:
        """One that was not rebuilt yet."""
        return await make_queue()

    @pytest_asyncio.fixture
    async def queue(self, new_queue: Queue) -> Queue:
        """One that grants."""
        await new_queue.rebuilt()
        return new_queue

    @pytest_asyncio.fixture
    async def other(self, make_queue: MakeQueue) -> Queue:
        """A second client of the same queue."""
        return await make_queue()

    @pytest_asyncio.fixture
    async def clients(self, queue: Queue, other: Queue) -> Sequence[Queue]:
        """`CLIENTS` queues, over a few connections."""
        return [queue if number % 2 else other for number in range(CLIENTS)]


async def claim(
    queue: Queue,
    lane: str = "lane",
    *,
    worker: str = "worker",
    capacity: int = 100,
    limit: int = 100,
    lease_seconds: float = LEASE_SECONDS,
) -> Sequence[Lease]:
    """Claim with room for what a test puts."""
    return await queue.claim(lane, worker=worker, capacity=capacity, limit=limit, lease_seconds=lease_seconds)


async def claim_one(queue: Queue, lane: str = "lane", *, worker: str = "worker") -> Lease:
    """Claim an item that must be there."""
    (lease,) = await claim(queue, lane, worker=worker, limit=1)
    return lease


def ids(leases: Sequence[Lease]) -> list[str]:
    """Which executions were leased, in order."""
    return [lease.item.execution_id for lease in leases]
