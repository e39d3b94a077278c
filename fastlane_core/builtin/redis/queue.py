"""The queue on Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from itertools import cycle
from typing import Final, TypeVar

import structlog

from fastlane_core.builtin.redis.index import CHUNK, Entry, ExecutionIndex, chunks
from fastlane_core.builtin.redis.keys import INDEX_SHARDS, Keys
from fastlane_core.builtin.redis.lanes import Added, Lanes
from fastlane_core.builtin.redis.rebuilding import Rebuilding
from fastlane_core.builtin.redis.servers import (
    OLDEST_SERVER,
    ConnectionOptions,
    Servers,
    end_task,
    of_those_that_answer,
)
from fastlane_core.builtin.redis.wakeups import Wakeups
from fastlane_core.contracts.queue import Cancelled, LaneStats, Lease, Limit, Queue, QueueItem, Renewal, Subscription
from fastlane_core.errors import QueueUnavailable

log = structlog.get_logger(__name__)

#: Times that a put begins anew because somebody moved its executions meanwhile.
_PUT_ATTEMPTS: Final = 10

Record = TypeVar("Record", QueueItem, Lease)


class RedisQueue(Queue):
    """The queue in Redis, shared by any number of processes; the clock is that of the server which holds the lane.

    Every call takes at most the configured time, attempts included. In a cluster a call for several lanes is atomic
    within each of them.
    """

    def __init__(self, options: ConnectionOptions, *, deployment_id: str, upkeep_seconds: float = 5.0) -> None:
        """`upkeep_seconds`: time between looks at a part of the index for entries that lead nowhere."""
        self._options = options
        self._servers = Servers(options)
        self.counts_overall = self._servers.holds_all
        keys = self._keys = Keys(deployment_id, together=self._servers.holds_all)
        self._index = ExecutionIndex(self._servers, keys)
        self._lanes = Lanes(self._servers, keys)
        self._rebuilding = Rebuilding(self._servers, keys, self._lanes, self._index)
        self._wakeups = Wakeups(self._servers, keys.topic)
        self._upkeep_seconds = upkeep_seconds
        self._only_looks = False
        self._upkeep: asyncio.Task[None] | None = None
        #: Changes of each lane that this queue's last claim has seen: `wait` waits for further ones.
        self._seen: dict[str, int] = {}

    async def open(self) -> None:
        await self._connect()
        self._only_looks = False
        self._wakeups.start()
        self._upkeep = asyncio.create_task(self._keep_up())

    async def open_to_look(self) -> None:
        await self._connect()
        self._only_looks = True

    async def _connect(self) -> None:
        try:
            await self._servers.open()
            await self._check_server()
        except BaseException:
            await self._servers.close()
            raise

    async def close(self) -> None:
        if self._upkeep is not None:
            await end_task(self._upkeep)
        await self._wakeups.close()
        await self._servers.close()

    async def put(self, items: Sequence[QueueItem]) -> None:
        # In the order in which they are to be granted: further ones of a limited key are held at once.
        items = sorted(items, key=lambda item: -item.priority)
        await self._add(await self._put_at_once(items) if self._servers.holds_all else items, self._lanes.put)

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
        claimed = await self._lanes.claim(
            lane, worker=worker, capacity=capacity, limit=limit, lease_seconds=lease_seconds, overall=overall
        )
        self._seen[lane] = claimed.changes
        return claimed.leases

    async def set_limit(self, key: str, capacity: int | None) -> None:
        if self._servers.holds_all:
            await self._lanes.set_limit("", key, capacity)
            return
        # First where lanes that are new look.
        await self._lanes.set_registered_limit(key, capacity)
        for lane in await self._rebuilding.lanes():
            await self._lanes.set_limit(lane, key, capacity)

    async def limits(self) -> Mapping[str, int]:
        return await self._lanes.limits()

    async def held_by(self, execution_ids: Sequence[str]) -> Mapping[str, Limit]:
        found = await asyncio.gather(
            *(
                self._lanes.held_by(lane, ids)
                for lane, ids in _ids_by_lane(await self._index.find(execution_ids)).items()
            )
        )
        return {execution_id: limit for limits in found for execution_id, limit in limits.items()}

    async def assign(self, lease: Lease, offers: Sequence[tuple[str, int]]) -> str | None:
        return await self._lanes.assign(lease, offers)

    async def loads(self, lane: str) -> Mapping[str, int]:
        return await self._lanes.loads(lane)

    async def renew(self, leases: Sequence[Lease], lease_seconds: float) -> Renewal:
        lost: set[str] = set()
        stop: set[str] = set()
        calls = {lane: self._lanes.renew(lane, its, lease_seconds) for lane, its in _by_lane(leases).items()}
        for lost_here, stop_here in (await of_those_that_answer(calls)).values():
            lost |= lost_here
            stop |= stop_here
        return Renewal(lost=frozenset(lost), stop=frozenset(stop))

    async def ack(self, lease: Lease) -> None:
        execution_id, lane = lease.item.execution_id, lease.item.lane
        placement = await self._lanes.ack(lease)
        if self._servers.holds_all:
            return
        if placement is not None:
            await self._index.replace([(execution_id, Entry(placement, lane), None)])
            return
        # An earlier call has removed it, and may not have come so far as to remove the entry.
        found = await self._index.find([execution_id])
        await self._drop({each: entry for each, entry in found.items() if entry.lane == lane})

    async def release(self, lease: Lease, *, delay: float) -> None:
        await self._lanes.release(lease, delay)

    async def hand_over(self, leases: Sequence[Lease]) -> None:
        # What cannot be reached runs out by itself.
        await of_those_that_answer({lane: self._lanes.hand_over(lane, its) for lane, its in _by_lane(leases).items()})

    async def cancel(self, execution_id: str) -> Cancelled:
        entry = (await self._index.find([execution_id])).get(execution_id)
        if entry is None:
            return Cancelled.ABSENT
        cancelled = await self._lanes.cancel(execution_id, entry)
        if cancelled is Cancelled.REMOVED:
            await self._index.replace([(execution_id, entry, None)])
        return cancelled

    async def contains(self, execution_ids: Sequence[str]) -> frozenset[str]:
        entries, unknown = await self._index.find_what_answers(execution_ids)
        return await self._present(entries) | unknown

    async def peek(self, lane: str, limit: int) -> Sequence[QueueItem]:
        return await self._lanes.peek(lane, limit, promote=not self._only_looks)

    async def stats(self) -> Mapping[str, LaneStats]:
        lanes = await self._rebuilding.lanes_as_far_as_known()
        counted = await of_those_that_answer({lane: self._lanes.stats(lane) for lane in lanes})
        found = {lane: counted.get(lane, LaneStats(reachable=False)) for lane in lanes}
        return {
            lane: stats
            for lane, stats in found.items()
            if stats.waiting or stats.delayed or stats.leased or stats.held or not stats.reachable
        }

    async def wait(self, lanes: Sequence[str], timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout), AsyncExitStack() as stack:
                channels = [self._keys.lane_state(lane) for lane in lanes]
                listener = await stack.enter_async_context(self._wakeups.listen(channels, again=True))
                looks = dict(zip(lanes, await asyncio.gather(*map(self._lanes.look, lanes)), strict=True))
                changed = any(self._seen.get(lane, look.changes) != look.changes for lane, look in looks.items())
                self._seen.update({lane: look.changes for lane, look in looks.items()})
                if changed:
                    return
                soonest = min((look.seconds for look in looks.values() if look.seconds is not None), default=None)
                async with asyncio.timeout(soonest):
                    await listener.next()
        except TimeoutError:
            return

    async def needs_rebuild(self) -> bool:
        return await self._rebuilding.is_needed(note=not self._only_looks)

    async def restore_leases(self, leases: Sequence[Lease], lease_seconds: float) -> None:
        async def add(lane: str, leases: Sequence[tuple[Lease, str]]) -> Added:
            return await self._lanes.restore(lane, leases, lease_seconds)

        await self._add(leases, add)

    async def rebuilt(self) -> None:
        await self._rebuilding.finish()

    async def publish(self, topic: str) -> None:
        self._wakeups.publish(topic)

    def subscribe(self, topics: Sequence[str]) -> AbstractAsyncContextManager[Subscription]:
        return self._wakeups.subscribe(topics)

    async def clock(self) -> float:
        """That of one server, where there are several."""
        seconds, microseconds = await self._servers.call(lambda client, _: client.execute_command("TIME"))
        return float(seconds) + float(microseconds) / 1_000_000

    async def health(self) -> str:
        return f"Redis {(await self._servers.information())['redis_version']} at {self._servers.place}"

    async def _put_at_once(self, items: Sequence[QueueItem]) -> Sequence[QueueItem]:
        """Add items, each in one step with its index entry; those whose entries want a closer look are left."""
        by_lane: dict[str, dict[str, QueueItem]] = {}
        for each in items:
            by_lane.setdefault(each.lane, {}).setdefault(each.execution_id, each)
        left: list[QueueItem] = []
        for lane, its in by_lane.items():
            await self._rebuilding.register(lane)
            for ids in chunks(list(its), CHUNK):
                added = await self._lanes.put(lane, [(its[each], Entry.new(lane).placement) for each in ids])
                left += [its[each] for each in added.refused]
                if not added.whole:
                    await self._rebuilding.register(lane, again=True)
        return left

    async def _add(
        self,
        records: Sequence[Record],
        add: Callable[[str, Sequence[tuple[Record, str]]], Awaitable[Added]],
    ) -> None:
        """Add items or leases whose executions are nowhere: the index first, then their lanes."""
        left: dict[str, Record] = {}
        for record in records:
            left.setdefault(_item(record).execution_id, record)
        for _ in range(_PUT_ATTEMPTS):
            if not left:
                return
            entries = await self._index.enter({each: Entry.new(_item(record).lane) for each, record in left.items()})
            elsewhere = {each: entry for each, entry in entries.items() if entry.lane != _item(left[each]).lane}
            by_lane: dict[str, list[str]] = {}
            for each, record in left.items():
                if each not in elsewhere:
                    by_lane.setdefault(_item(record).lane, []).append(each)
            refused: set[str] = set()
            for lane, ids in by_lane.items():
                await self._rebuilding.register(lane)
                for chunk in chunks(ids, CHUNK):
                    added = await add(lane, [(left[each], entries[each].placement) for each in chunk])
                    refused |= added.refused
                    if not added.whole:
                        await self._rebuilding.register(lane, again=True)
            # Entries that lead nowhere must not keep what is wanted out.
            await self._index.replace([(each, entries[each], None) for each in refused])
            refused |= await self._drop(elsewhere)
            left = {each: record for each, record in left.items() if each in refused}
        raise QueueUnavailable(f"others keep moving executions that are put into the queue: {', '.join(sorted(left))}")

    async def _drop(self, entries: Mapping[str, Entry]) -> frozenset[str]:
        """Remove those of the entries that lead nowhere, and return their executions."""
        by_lane: dict[str, dict[str, Entry]] = {}
        for each, entry in entries.items():
            by_lane.setdefault(entry.lane, {})[each] = entry
        dropped: set[str] = set()
        for lane, its in by_lane.items():
            dropped |= await self._lanes.vacate(lane, its)
        await self._index.replace([(each, entries[each], None) for each in dropped])
        return frozenset(dropped)

    async def _check_server(self) -> None:
        information = await self._servers.information()
        version = information["redis_version"]
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_SERVER:
            needed = ".".join(map(str, OLDEST_SERVER))
            raise QueueUnavailable(f"Redis at {self._servers.place} is {version}; Fastlane needs {needed} or newer")
        policy = information.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            log.warning("Redis may throw queued jobs away when it is full: set maxmemory-policy noeviction", is_=policy)

    async def _keep_up(self) -> None:
        """Look through the index, a part at a time, for entries that crashes have left."""
        for shard in cycle(range(INDEX_SHARDS)):
            cursor = 0
            while True:
                await asyncio.sleep(self._upkeep_seconds)
                try:
                    await self._rebuilding.register_again()
                    cursor, entries = await self._index.scan(shard, cursor)
                    found = await self._present(entries)
                    await self._drop({each: entry for each, entry in entries.items() if each not in found})
                except QueueUnavailable as error:
                    log.debug("could not look after the index; trying again later", error=str(error))
                if not cursor:
                    break

    async def _present(self, entries: Mapping[str, Entry]) -> frozenset[str]:
        """Those of the executions that are where their entries say, or may be, in a lane that is out of reach."""
        by_lane = _ids_by_lane(entries)
        found = await of_those_that_answer({lane: self._lanes.present(lane, ids) for lane, ids in by_lane.items()})
        unknown = (each for lane, ids in by_lane.items() if lane not in found for each in ids)
        return frozenset(unknown).union(*found.values())


def _item(record: QueueItem | Lease) -> QueueItem:
    return record if isinstance(record, QueueItem) else record.item


def _ids_by_lane(entries: Mapping[str, Entry]) -> dict[str, list[str]]:
    lanes: dict[str, list[str]] = {}
    for execution_id, entry in entries.items():
        lanes.setdefault(entry.lane, []).append(execution_id)
    return lanes


def _by_lane(leases: Sequence[Lease]) -> dict[str, list[Lease]]:
    lanes: dict[str, list[Lease]] = {}
    for lease in leases:
        lanes.setdefault(lease.item.lane, []).append(lease)
    return lanes
