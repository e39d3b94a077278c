"""Items and leases: what the queue does to its tables, each on one connection inside the caller's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fastlane_core.contracts.queue import Cancelled, LaneStats, Lease, QueueItem, Renewal
from fastlane_core.errors import LeaseLost

#: Delayed items made claimable in one go.
_PROMOTED_AT_ONCE = 5_000

#: A row as the sqlite3 module gives it.
Row: TypeAlias = tuple[Any, ...]

ADD_LANE = "INSERT INTO lanes (name) VALUES (?) ON CONFLICT DO NOTHING"
FIND_LANE = """
    SELECT number, delayed, leased, changes, EXISTS (SELECT 1 FROM rebuilt) FROM lanes WHERE name = ?
"""
ADD_ITEM = """
    INSERT INTO items (execution_id, task_id, lane, priority, due_at, state)
    VALUES (?, ?, (SELECT number FROM lanes WHERE name = ?), ?, ?, ?) ON CONFLICT DO NOTHING
"""
ADD_LEASE = """
    INSERT INTO items (execution_id, task_id, lane, priority, due_at, state, worker, token, place, expires_at)
    VALUES (?, ?, (SELECT number FROM lanes WHERE name = ?), ?, ?, 'leased', ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
PROMOTE = """
    UPDATE items SET state = 'waiting' WHERE number IN (
        SELECT number FROM items WHERE lane = ? AND state = 'delayed' AND due_at <= ? ORDER BY due_at LIMIT ?
    )
"""
ADOPT = """
    UPDATE items SET worker = ?, token = lower(hex(randomblob(16))), expires_at = ? WHERE number IN (
        SELECT number FROM items WHERE lane = ? AND state = 'leased' AND expires_at <= ? ORDER BY expires_at LIMIT ?
    ) RETURNING number, execution_id, task_id, priority, due_at, token, place
"""
GRANT = """
    UPDATE items SET state = 'leased', worker = ?, token = lower(hex(randomblob(16))), expires_at = ? WHERE number IN (
        SELECT number FROM items WHERE lane = ? AND state = 'waiting' ORDER BY priority DESC, number LIMIT ?
    ) RETURNING number, execution_id, task_id, priority, due_at, token, place
"""
FIND_ITEM = "SELECT number, state, token, place, lane FROM items WHERE execution_id = ?"
COUNT_PLACE = "SELECT count(*) FROM items WHERE lane = ? AND state = 'leased' AND place = ?"
COUNT_PLACES = """
    SELECT place, count(*) FROM items
    WHERE lane = (SELECT number FROM lanes WHERE name = ?) AND state = 'leased' AND place IS NOT NULL GROUP BY place
"""
SET_PLACE = "UPDATE items SET place = ? WHERE number = ?"
RENEW = "UPDATE items SET expires_at = ? WHERE execution_id = ? AND token = ? RETURNING stop"
HAND_OVER = "UPDATE items SET expires_at = ? WHERE execution_id = ? AND token = ? RETURNING lane"
REMOVE = "DELETE FROM items WHERE number = ?"
RELEASE = """
    UPDATE items SET state = ?, due_at = ?, worker = NULL, token = NULL, place = NULL, expires_at = NULL
    WHERE number = ?
"""
TOUCH_LANE = "UPDATE lanes SET changes = changes + 1 WHERE number = ?"
TOUCH_LANES = "UPDATE lanes SET changes = changes + 1"
ASK_TO_STOP = "UPDATE items SET stop = 1 WHERE number = ?"
IS_PRESENT = "SELECT 1 FROM items WHERE execution_id = ?"
IS_REBUILT = "SELECT 1 FROM rebuilt"
MARK_REBUILT = "INSERT INTO rebuilt VALUES (1) ON CONFLICT DO NOTHING"
PEEK = """
    SELECT execution_id, task_id, priority, due_at FROM items
    WHERE lane = (SELECT number FROM lanes WHERE name = ?) AND state = 'waiting'
    ORDER BY priority DESC, number LIMIT ?
"""
LIST_LANES = "SELECT number, name, waiting, delayed, leased FROM lanes"
COUNT_DUE = "SELECT count(*) FROM items WHERE lane = ? AND state = 'delayed' AND due_at <= ?"
NEXT_DUE = "SELECT min(due_at) FROM items WHERE lane = ? AND state = 'delayed' AND due_at > ?"
FIRST_DUE = "SELECT min(due_at) FROM items WHERE lane = ? AND state = 'delayed'"
FIRST_EXPIRY = "SELECT min(expires_at) FROM items WHERE lane = ? AND state = 'leased'"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """What a claim got."""

    leases: Sequence[Lease]
    #: Changes of the lane that it has seen.
    changes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneState:
    """What a waiter needs to know of its lanes."""

    changes: Mapping[str, int]
    #: When something becomes claimable by the passing of time; None for never.
    at: float | None


def put(connection: sqlite3.Connection, items: Sequence[QueueItem], now: float) -> None:
    """Add those that are not there."""
    _add_lanes(connection, {item.lane for item in items})
    connection.executemany(
        ADD_ITEM,
        [
            (each.execution_id, each.task_id, each.lane, each.priority, each.due_at, _waiting_state(each.due_at, now))
            for each in items
        ],
    )


def claim(
    connection: sqlite3.Connection, lane: str, worker: str, capacity: int, limit: int, now: float, expires_at: float
) -> Claimed:
    """Adopt leases that ran out, then lease what waits."""
    row = connection.execute(FIND_LANE, (lane,)).fetchone()
    if row is None:
        return Claimed(leases=(), changes=0)
    number, delayed, leased, changes, rebuilt = row
    if not rebuilt:
        return Claimed(leases=(), changes=changes)
    if delayed:
        connection.execute(PROMOTE, (number, now, _PROMOTED_AT_ONCE))
    leases: list[Lease] = []
    if leased and limit > 0:
        rows = connection.execute(ADOPT, (worker, expires_at, number, now, limit)).fetchall()
        leases += [_lease(each, lane, worker, adopted=True) for each in sorted(rows)]
    free = min(limit - len(leases), capacity - leased)
    if free > 0:
        rows = connection.execute(GRANT, (worker, expires_at, number, free)).fetchall()
        # An UPDATE returns its rows in no particular order.
        rows.sort(key=lambda each: (-each[3], each[0]))
        leases += [_lease(each, lane, worker, adopted=False) for each in rows]
    return Claimed(leases=leases, changes=changes)


def assign(connection: sqlite3.Connection, lease: Lease, offers: Sequence[tuple[str, int]]) -> str | None:
    """Give the lease a place with room. Raises LeaseLost."""
    number, place, lane = _held(connection, lease)
    if place is not None and any(offered == place for offered, _ in offers):
        return place
    for offered, capacity in offers:
        (taken,) = connection.execute(COUNT_PLACE, (lane, offered)).fetchone()
        if taken < capacity:
            connection.execute(SET_PLACE, (offered, number))
            return offered
    return None


def renew(connection: sqlite3.Connection, leases: Sequence[Lease], expires_at: float) -> Renewal:
    """Extend those that are still held."""
    lost, stop = set(), set()
    for lease in leases:
        rows = connection.execute(RENEW, (expires_at, lease.item.execution_id, lease.token)).fetchall()
        if not rows:
            lost.add(lease.item.execution_id)
        elif rows[0][0]:
            stop.add(lease.item.execution_id)
    return Renewal(lost=frozenset(lost), stop=frozenset(stop))


def ack(connection: sqlite3.Connection, lease: Lease) -> None:
    """Remove the item, if it is there. Raises LeaseLost."""
    if connection.execute(FIND_ITEM, (lease.item.execution_id,)).fetchone() is not None:
        connection.execute(REMOVE, (_held(connection, lease)[0],))


def release(connection: sqlite3.Connection, lease: Lease, now: float, due_at: float) -> None:
    """Put the item back, if it was not. Raises LeaseLost."""
    row = connection.execute(FIND_ITEM, (lease.item.execution_id,)).fetchone()
    if row is None or row[1] == "leased":
        number = _held(connection, lease)[0]
        connection.execute(RELEASE, (_waiting_state(due_at, now), due_at, number))


def hand_over(connection: sqlite3.Connection, leases: Sequence[Lease], now: float) -> None:
    """Let those that are still held run out."""
    lanes = set()
    for lease in leases:
        lanes.update(connection.execute(HAND_OVER, (now, lease.item.execution_id, lease.token)).fetchall())
    connection.executemany(TOUCH_LANE, lanes)


def cancel(connection: sqlite3.Connection, execution_id: str) -> Cancelled:
    """Remove a waiting item, or mark a leased one."""
    row = connection.execute(FIND_ITEM, (execution_id,)).fetchone()
    if row is None:
        return Cancelled.ABSENT
    number, state = row[:2]
    if state == "leased":
        connection.execute(ASK_TO_STOP, (number,))
        return Cancelled.LEASED
    connection.execute(REMOVE, (number,))
    return Cancelled.REMOVED


def restore_leases(connection: sqlite3.Connection, leases: Sequence[Lease], expires_at: float) -> None:
    """Add leases of executions that are not there."""
    _add_lanes(connection, {lease.item.lane for lease in leases})
    for lease in leases:
        item = lease.item
        about_item = (item.execution_id, item.task_id, item.lane, item.priority, item.due_at)
        connection.execute(ADD_LEASE, (*about_item, lease.worker, lease.token, lease.place, expires_at))


def mark_rebuilt(connection: sqlite3.Connection) -> None:
    """Grant from now on."""
    if connection.execute(MARK_REBUILT).rowcount:
        connection.execute(TOUCH_LANES)


def needs_rebuild(connection: sqlite3.Connection) -> bool:
    """Whether `mark_rebuilt` was never called on this file."""
    return connection.execute(IS_REBUILT).fetchone() is None


def contains(connection: sqlite3.Connection, execution_ids: Sequence[str]) -> frozenset[str]:
    """Those of the ids that are there."""
    return frozenset(
        execution_id
        for execution_id in execution_ids
        if connection.execute(IS_PRESENT, (execution_id,)).fetchone() is not None
    )


def promote(connection: sqlite3.Connection, lane: str, now: float) -> None:
    """Make delayed items that are due claimable."""
    row = connection.execute(FIND_LANE, (lane,)).fetchone()
    if row is not None and row[1]:
        connection.execute(PROMOTE, (row[0], now, _PROMOTED_AT_ONCE))


def peek(connection: sqlite3.Connection, lane: str, limit: int) -> Sequence[QueueItem]:
    """What would be granted next."""
    return [
        QueueItem(execution_id=execution_id, task_id=task_id, lane=lane, priority=priority, due_at=due_at)
        for execution_id, task_id, priority, due_at in connection.execute(PEEK, (lane, limit))
    ]


def loads(connection: sqlite3.Connection, lane: str) -> Mapping[str, int]:
    """Leases by place."""
    return dict(connection.execute(COUNT_PLACES, (lane,)).fetchall())


def stats(connection: sqlite3.Connection, now: float) -> Mapping[str, LaneStats]:
    """Every lane that holds anything; the caller's transaction makes the numbers fit together."""
    found = {}
    for number, name, waiting, delayed, leased in connection.execute(LIST_LANES).fetchall():
        if waiting or delayed or leased:
            (due,) = connection.execute(COUNT_DUE, (number, now)).fetchone() if delayed else (0,)
            (next_due_at,) = connection.execute(NEXT_DUE, (number, now)).fetchone() if delayed else (None,)
            found[name] = LaneStats(
                waiting=waiting + due,
                delayed=delayed - due,
                leased=leased,
                next_due_at=next_due_at,
                places=loads(connection, name) if leased else {},
            )
    return found


def lane_state(connection: sqlite3.Connection, lanes: Collection[str]) -> LaneState:
    """What a waiter compares."""
    changes = {}
    times = []
    for lane in lanes:
        row = connection.execute(FIND_LANE, (lane,)).fetchone()
        if row is None:
            changes[lane] = 0
            continue
        number, _, _, changes[lane], rebuilt = row
        if rebuilt:
            times += connection.execute(FIRST_DUE, (number,)).fetchone()
            times += connection.execute(FIRST_EXPIRY, (number,)).fetchone()
    return LaneState(changes=changes, at=min((time for time in times if time is not None), default=None))


def _add_lanes(connection: sqlite3.Connection, lanes: Collection[str]) -> None:
    connection.executemany(ADD_LANE, [(lane,) for lane in lanes])


def _held(connection: sqlite3.Connection, lease: Lease) -> tuple[int, str | None, int]:
    """Number, place and lane's number of the item. Raises LeaseLost unless the lease is the current one."""
    row = connection.execute(FIND_ITEM, (lease.item.execution_id,)).fetchone()
    if row is None or row[1] != "leased" or row[2] != lease.token:
        state = "is not in the queue" if row is None else f"is {row[1]}, not by this lease"
        raise LeaseLost(f"{lease.worker} lost its lease: the execution {lease.item.execution_id} {state}")
    number, _, _, place, lane = row
    return number, place, lane


def _waiting_state(due_at: float, now: float) -> str:
    return "waiting" if due_at <= now else "delayed"


def _lease(row: Row, lane: str, worker: str, *, adopted: bool) -> Lease:
    _, execution_id, task_id, priority, due_at, token, place = row
    item = QueueItem(execution_id=execution_id, task_id=task_id, lane=lane, priority=priority, due_at=due_at)
    return Lease(item=item, worker=worker, token=token, adopted=adopted, place=place)
