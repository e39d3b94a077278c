"""The steps of one lane, each a script over the lane's keys."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

from fastlane_core.builtin.redis.index import CHUNK, Entry, chunks
from fastlane_core.builtin.redis.keys import INDEX_SHARDS, Keys, shard_of
from fastlane_core.builtin.redis.servers import Reply, Servers
from fastlane_core.contracts.queue import Cancelled, LaneStats, Lease, Limit, QueueItem
from fastlane_core.errors import LeaseLost, QueueUnavailable

#: Leases granted, and items peeked at, by one call: it holds up the server for some milliseconds at most.
_AT_ONCE: Final = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """What a claim got."""

    leases: Sequence[Lease]
    #: Changes of the lane that it has seen.
    changes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneLook:
    """What a waiter needs to know of its lane."""

    changes: int
    #: Seconds until something becomes claimable by the passing of time; None for never.
    seconds: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Added:
    """What became of items that were to be added."""

    #: Whether the lane's marker is there.
    whole: bool
    #: Ids whose placement the lane refused.
    refused: frozenset[str]


class Lanes:
    """What the queue does to its lanes. Every method raises QueueUnavailable."""

    def __init__(self, servers: Servers, keys: Keys) -> None:
        self._servers = servers
        self._keys = keys

    async def put(self, lane: str, items: Sequence[tuple[QueueItem, str]]) -> Added:
        """Add items, each with its placement, that are not there.

        Where one server holds everything, their index entries are made in the same step: one whose entry is of another
        lane counts as refused. Elsewhere they must have been made before.
        """
        arguments: list[str] = []
        for item, placement in items:
            arguments += [*_about(item, placement), str(shard_of(item.execution_id))]
        shards = [self._keys.shard(number)[0] for number in range(INDEX_SHARDS)] if self._servers.holds_all else []
        return _added(items, await self._run("put", lane, lane, *arguments, more_keys=shards))

    async def restore(self, lane: str, leases: Sequence[tuple[Lease, str]], lease_seconds: float) -> Added:
        """Add leases, each with its placement, of executions that are not there."""
        arguments: list[str | float] = [lease_seconds]
        for lease, placement in leases:
            has_place = "0" if lease.place is None else "1"
            arguments += [*_about(lease.item, placement), lease.token, has_place, lease.place or ""]
        reply = await self._run("restore", lane, *arguments)
        return _added([(lease.item, placement) for lease, placement in leases], reply)

    async def claim(
        self, lane: str, *, worker: str, capacity: int, limit: int, lease_seconds: float, overall: int | None
    ) -> Claimed:
        """Adopt leases that ran out, then lease what waits."""
        leases: list[Lease] = []
        changes = 0
        while True:
            wanted = min(limit - len(leases), _AT_ONCE)
            call = uuid.uuid4().hex
            try:
                changes, goes_on, *found = await self._run(
                    "claim", lane, capacity, wanted, lease_seconds, call, "" if overall is None else overall
                )
            except QueueUnavailable:
                if leases:
                    break
                raise
            leases += [_lease(lane, worker, call, each) for each in found]
            if (len(found) < wanted and not goes_on) or len(leases) >= limit:
                break
        return Claimed(leases=leases, changes=changes)

    async def assign(self, lease: Lease, offers: Sequence[tuple[str, int]]) -> str | None:
        """Give the lease a place with room. Raises LeaseLost."""
        pairs = [each for offer in offers for each in offer]
        number = await self._run("assign", lease.item.lane, lease.item.execution_id, lease.token, *pairs)
        if number < 0:
            raise _lost(lease)
        return offers[number - 1][0] if number else None

    async def loads(self, lane: str) -> Mapping[str, int]:
        """Leases by place."""
        key = self._keys.lane_places(lane)
        return _places(await self._servers.call(lambda client, _: client.execute_command("HGETALL", key), key=key))

    async def renew(self, lane: str, leases: Sequence[Lease], lease_seconds: float) -> tuple[set[str], set[str]]:
        """Extend those that are still held; the ids of the lost ones, and of those that were asked to stop."""
        lost, stop = set(), set()
        tokens = {lease.item.execution_id: lease.token for lease in leases}
        for ids in chunks(list(tokens), CHUNK):
            pairs = [text for each in ids for text in (each, tokens[each])]
            for each, found in zip(ids, await self._run("renew", lane, lease_seconds, *pairs), strict=True):
                if found == 0:
                    lost.add(each)
                elif found == 2:
                    stop.add(each)
        return lost, stop

    async def ack(self, lease: Lease) -> str | None:
        """Remove the item, and return its placement; None if it is not there. Raises LeaseLost.

        Where one server holds everything, its index entry is removed in the same step.
        """
        item = lease.item
        shards = [self._keys.shard(shard_of(item.execution_id))[0]] if self._servers.holds_all else []
        placement = await self._run("ack", item.lane, item.execution_id, lease.token, item.lane, more_keys=shards)
        if placement is None:
            raise _lost(lease)
        return placement.decode() or None

    async def release(self, lease: Lease, delay: float) -> None:
        """Put the item back, if it was not. Raises LeaseLost."""
        if not await self._run("release", lease.item.lane, lease.item.execution_id, lease.token, delay):
            raise _lost(lease)

    async def hand_over(self, lane: str, leases: Sequence[Lease]) -> None:
        """Let those that are still held run out."""
        tokens = {lease.item.execution_id: lease.token for lease in leases}
        for ids in chunks(list(tokens), CHUNK):
            await self._run("hand_over", lane, *(text for each in ids for text in (each, tokens[each])))

    async def cancel(self, execution_id: str, entry: Entry) -> Cancelled:
        """Remove a waiting item, or mark a leased one."""
        return Cancelled((await self._run("cancel", entry.lane, execution_id, entry.placement)).decode())

    async def present(self, lane: str, execution_ids: Sequence[str]) -> frozenset[str]:
        """Those of the ids that are there."""
        found: set[str] = set()
        for ids in chunks(execution_ids, CHUNK):
            flags = await self._run("present", lane, *ids)
            found.update(each for each, here in zip(ids, flags, strict=True) if here)
        return frozenset(found)

    async def vacate(self, lane: str, entries: Mapping[str, Entry]) -> frozenset[str]:
        """Those of the executions that are not there, and by these entries will not be any more."""
        found: set[str] = set()
        for ids in chunks(list(entries), CHUNK):
            flags = await self._run("vacate", lane, *(text for each in ids for text in (each, entries[each].placement)))
            found.update(each for each, here in zip(ids, flags, strict=True) if not here)
        return frozenset(found)

    async def peek(self, lane: str, limit: int, *, promote: bool) -> Sequence[QueueItem]:
        """What would be granted next, then some of what is held; `promote` has what became due take its turn first."""
        found = await self._run("peek", lane, min(limit, _AT_ONCE), int(promote)) if limit > 0 else []
        return [_item(lane, execution_id, record) for execution_id, record in found]

    async def held_by(self, lane: str, execution_ids: Sequence[str]) -> Mapping[str, Limit]:
        """The limit that keeps an execution waiting, for those that one keeps."""
        found: dict[str, Limit] = {}
        for ids in chunks(execution_ids, CHUNK):
            for each, limit in zip(ids, await self._run("held_by", lane, *ids), strict=True):
                if limit:
                    found[each] = Limit(key=unquote(limit[0].decode()), capacity=limit[1])
        return found

    async def set_limit(self, lane: str, key: str, capacity: int | None) -> None:
        """Set or lift what holds for a key: in this lane, or in all where one server holds everything."""
        held = await self._run("set_limit", lane, _quoted(key), "" if capacity is None else capacity)
        while held > 0:
            sent_back = await self._run("look_again", lane, _quoted(key), held)
            held = held - sent_back if sent_back else 0

    async def set_registered_limit(self, key: str, capacity: int | None) -> None:
        """Set or lift what holds for a key in lanes that are new."""
        name, quoted = self._keys.capacities, _quoted(key)
        if capacity is None:
            await self._servers.call(lambda client, _: client.execute_command("HDEL", name, quoted), key=name)
        else:
            await self._servers.call(lambda client, _: client.execute_command("HSET", name, quoted, capacity), key=name)

    async def limits(self) -> Mapping[str, int]:
        """What was set for keys."""
        name = self._keys.capacities
        found = await self._servers.call(lambda client, _: client.execute_command("HGETALL", name), key=name)
        return {unquote(key): capacity for key, capacity in _places(found).items()}

    async def stats(self, lane: str) -> LaneStats:
        """The lane, counted."""
        waiting, delayed, leased, due, places, held, run_out = await self._run("stats", lane)
        return LaneStats(
            waiting=waiting,
            delayed=delayed,
            leased=leased,
            held=held,
            run_out=run_out,
            next_due_at=float(due) if due else None,
            places=_places(places),
        )

    async def look(self, lane: str) -> LaneLook:
        """What a waiter compares."""
        changes, seconds = await self._run("look", lane)
        return LaneLook(changes=changes, seconds=float(seconds) if seconds else None)

    async def scan(self, lane: str, cursor: int) -> tuple[int, Mapping[str, Entry]]:
        """The index entries of some of the items, and where to go on; 0 at the end."""
        key = self._keys.lane_items(lane)
        following, found = await self._servers.call(
            lambda client, _: client.execute_command("HSCAN", key, cursor, "COUNT", CHUNK), key=key
        )
        pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
        return int(following), {each.decode(): Entry(record.split(b" ", 3)[2].decode(), lane) for each, record in pairs}

    async def _run(self, name: str, lane: str, *arguments: str | float, more_keys: Sequence[str] = ()) -> Reply:
        return await self._servers.run(name, (*self._keys.lane(lane), *more_keys), arguments)


def _about(item: QueueItem, placement: str) -> list[str]:
    limits = ",".join(f"{_quoted(limit.key)}={limit.capacity}" for limit in item.limits) or "-"
    return [item.execution_id, str(item.priority), repr(item.due_at), placement, limits, _quoted(item.task_id)]


def _added(items: Sequence[tuple[QueueItem, str]], reply: Reply) -> Added:
    whole, flags = reply
    refused = frozenset(item.execution_id for (item, _), there in zip(items, flags, strict=True) if not there)
    return Added(whole=bool(whole), refused=refused)


def _item(lane: str, execution_id: bytes, record: bytes) -> QueueItem:
    _, due, _, priority, limits, task = record.decode().split(" ")
    pairs = [] if limits == "-" else [each.split("=") for each in limits.split(",")]
    return QueueItem(
        execution_id=execution_id.decode(),
        task_id=unquote(task),
        lane=lane,
        priority=int(priority),
        due_at=float(due),
        limits=tuple(Limit(key=unquote(key), capacity=int(capacity)) for key, capacity in pairs),
    )


def _quoted(text: str) -> str:
    """Without spaces, and without what separates limits in a record."""
    return quote(text, safe=":/")


def _lease(lane: str, worker: str, call: str, found: Reply) -> Lease:
    execution_id, record, token, has_place, place = found
    text = token.decode()
    how = text[len(call)]
    return Lease(
        item=_item(lane, execution_id, record),
        worker=worker,
        token=text,
        adopted=how in "ah",
        place=place.decode() if has_place else None,
        handed_over=how == "h",
    )


def _places(found: Reply) -> Mapping[str, int]:
    pairs = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
    return {place.decode(): int(count) for place, count in pairs}


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"{lease.worker} lost its lease of the execution {lease.item.execution_id}")
