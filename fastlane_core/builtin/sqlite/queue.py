"""The queue on SQLite."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeVar

from fastlane_core.builtin.sqlite import queue_items, queue_views
from fastlane_core.builtin.sqlite.connection import snapshot
from fastlane_core.builtin.sqlite.database import Session
from fastlane_core.builtin.sqlite.queue_schema import QUEUE_SCHEMA
from fastlane_core.builtin.sqlite.wakeups import LaneWaiter, TopicSubscription, Wakeups
from fastlane_core.contracts.queue import Cancelled, LaneStats, Lease, Limit, Queue, QueueItem, Renewal, Subscription
from fastlane_core.errors import QueueUnavailable

T = TypeVar("T")


class SqliteQueue(Queue):
    """The queue in one SQLite file, which several processes may use at once; its clock is each process's own.

    Writes of the same process wake waiters at once, those of another process within some 25 ms. `open` raises
    SchemaTooNew as well.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float], busy_seconds: float = 10.0, readers: int = 3) -> None:
        """`clock` gives Unix seconds; `busy_seconds`: how long to wait for other processes; `readers`: threads."""
        self._clock = clock
        self._session = Session(path, QUEUE_SCHEMA, QueueUnavailable, busy_seconds=busy_seconds, readers=readers)
        self._shared_wakeups: Wakeups | None = None
        #: Changes of each lane that this queue's last claim has seen: `wait` waits for further ones.
        self._seen: dict[str, int] = {}

    async def open(self) -> None:
        database = await self._session.open()
        self._shared_wakeups = await asyncio.to_thread(database.companion, Wakeups)

    async def open_to_look(self) -> None:
        await self._session.open_to_look()

    async def close(self) -> None:
        self._shared_wakeups = None
        await self._session.close()

    async def put(self, items: Sequence[QueueItem]) -> None:
        await self._change(
            {item.lane for item in items}, lambda connection: queue_items.put(connection, items, self._clock())
        )

    async def claim(
        self,
        lane: str,
        *,
        worker: str,
        capacity: int,
        limit: int,
        lease_seconds: float,
        overall: int | None = None,
    ) -> Sequence[Lease]:
        leases: list[Lease] = []
        while True:
            wanted = limit - len(leases)

            def claim(connection: sqlite3.Connection, wanted: int = wanted) -> queue_items.Claimed:
                now = self._clock()
                return queue_items.claim(
                    connection,
                    lane,
                    worker,
                    now,
                    now + lease_seconds,
                    capacity=capacity,
                    limit=wanted,
                    overall=overall,
                )

            try:
                claimed = await self._write(claim)
            except QueueUnavailable:
                if leases:
                    return leases
                raise
            self._seen[lane] = claimed.changes
            leases += claimed.leases
            if not claimed.is_cut_short:
                return leases

    async def set_limit(self, key: str, capacity: int | None) -> None:
        held = await self._write(lambda connection: queue_items.set_limit(connection, key, capacity))
        while held > 0:
            seen = await self._write(lambda connection, limit=held: queue_items.look_again(connection, key, limit))  # type: ignore[misc]
            held = held - seen if seen else 0
        self._wakeups.lanes_changed(await self.stats())

    async def limits(self) -> Mapping[str, int]:
        return await self._session.read(queue_views.limits)

    async def held_by(self, execution_ids: Sequence[str]) -> Mapping[str, Limit]:
        def held_by(connection: sqlite3.Connection) -> Mapping[str, Limit]:
            with snapshot(connection):
                return queue_views.held_by(connection, execution_ids, self._clock())

        return await self._session.read(held_by)

    async def assign(self, lease: Lease, offers: Sequence[tuple[str, int]]) -> str | None:
        return await self._write(lambda connection: queue_items.assign(connection, lease, offers))

    async def loads(self, lane: str) -> Mapping[str, int]:
        return await self._session.read(lambda connection: queue_views.loads(connection, lane))

    async def renew(self, leases: Sequence[Lease], lease_seconds: float) -> Renewal:
        return await self._write(
            lambda connection: queue_items.renew(connection, leases, self._clock() + lease_seconds)
        )

    async def ack(self, lease: Lease) -> None:
        await self._change({lease.item.lane}, lambda connection: queue_items.ack(connection, lease))

    async def release(self, lease: Lease, *, delay: float) -> None:
        def release(connection: sqlite3.Connection) -> None:
            now = self._clock()
            queue_items.release(connection, lease, now, now + delay)

        await self._change({lease.item.lane}, release)

    async def hand_over(self, leases: Sequence[Lease]) -> None:
        await self._change(
            {lease.item.lane for lease in leases}, lambda connection: queue_items.hand_over(connection, leases)
        )

    async def cancel(self, execution_id: str) -> Cancelled:
        return await self._write(lambda connection: queue_items.cancel(connection, execution_id))

    async def contains(self, execution_ids: Sequence[str]) -> frozenset[str]:
        return await self._session.read(lambda connection: queue_views.contains(connection, execution_ids))

    async def peek(self, lane: str, limit: int) -> Sequence[QueueItem]:
        if not self._session.only_looks:
            await self._write(lambda connection: queue_items.promote(connection, lane, self._clock()))
        return await self._session.read(lambda connection: queue_views.peek(connection, lane, limit))

    async def stats(self) -> Mapping[str, LaneStats]:
        def stats(connection: sqlite3.Connection) -> Mapping[str, LaneStats]:
            with snapshot(connection):
                return queue_views.stats(connection, self._clock())

        return await self._session.read(stats)

    async def wait(self, lanes: Sequence[str], timeout: float) -> None:
        def lane_state(connection: sqlite3.Connection) -> queue_views.LaneState:
            with snapshot(connection):
                return queue_views.lane_state(connection, lanes)

        wakeups, waiter = self._wakeups, LaneWaiter(lanes, self._clock)
        wakeups.add_waiter(waiter)
        try:
            async with asyncio.timeout(timeout):
                state = await self._session.read(lane_state)
                changed = any(self._seen.get(lane, changes) != changes for lane, changes in state.changes.items())
                self._seen.update(state.changes)
                if changed:
                    return
                waiter.arm(state.changes, state.at)
                await waiter.wait()
        except TimeoutError:
            return
        finally:
            wakeups.remove_waiter(waiter)

    async def needs_rebuild(self) -> bool:
        return await self._session.read(queue_views.needs_rebuild)

    async def restore_leases(self, leases: Sequence[Lease], lease_seconds: float) -> None:
        def restore(connection: sqlite3.Connection) -> None:
            now = self._clock()
            queue_items.restore_leases(connection, leases, now, now + lease_seconds)

        await self._change({lease.item.lane for lease in leases}, restore)

    async def rebuilt(self) -> None:
        await self._write(queue_items.mark_rebuilt)
        self._wakeups.lanes_changed(await self.stats())

    async def publish(self, topic: str) -> None:
        self._wakeups.publish(topic, self._session.defer)

    def subscribe(self, topics: Sequence[str]) -> AbstractAsyncContextManager[Subscription]:
        return self._subscribe(topics)

    async def health(self) -> str:
        return await self._session.health()

    async def _change(self, lanes: Set[str], operation: Callable[[sqlite3.Connection], None]) -> None:
        """Write what waiters of these lanes wait for."""
        # What they do about it may join this very transaction; who begins to wait meanwhile is woken by its end.
        asyncio.get_running_loop().call_soon(self._wakeups.lanes_changed, lanes)
        await self._write(operation)
        self._wakeups.lanes_changed(lanes)

    async def _write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        # What a machine that stops has lost of the queue, the reconciler puts there again: it is only an index.
        return await self._session.write(operation, durable=False)

    @asynccontextmanager
    async def _subscribe(self, topics: Sequence[str]) -> AsyncIterator[Subscription]:
        wakeups, subscription = self._wakeups, TopicSubscription(topics)
        wakeups.add_subscription(subscription)
        try:
            yield subscription
        finally:
            wakeups.remove_subscription(subscription)

    @property
    def _wakeups(self) -> Wakeups:
        if self._shared_wakeups is None:
            raise QueueUnavailable("the SQLite queue is not open")
        return self._shared_wakeups
