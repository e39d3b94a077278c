"""Items and leases: what the queue does to its tables, each on one connection inside the caller's transaction."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastlane_core.builtin.sqlite.queue_limits import (
    HOLD,
    REMOVE_ITEM_LIMITS,
    SEND_SOME_BACK,
    SET_CAPACITY,
    UNSET_CAPACITY,
    Judge,
    limits_of,
    set_item_limits,
)
from fastlane_core.builtin.sqlite.queue_views import FIND_LANE, Row, item_of
from fastlane_core.builtin.sqlite.rows import insert_rows
from fastlane_core.contracts.queue import AGEING_SECONDS, Cancelled, Lease, Limit, QueueItem, Renewal
from fastlane_core.errors import LeaseLost

#: Delayed items made claimable in one go.
_PROMOTED_AT_ONCE = 5_000
#: Items held, and let go, in one go; and rows read to find one that is not to be held.
_HELD_AT_ONCE = 1_000
_LOOKED_AT_ONCE = 200

ADD_LANE = "INSERT INTO lanes (name) VALUES (?) ON CONFLICT DO NOTHING"
LANE_NUMBER = "SELECT number FROM lanes WHERE name = ?"
ADD_ITEM = """
    INSERT INTO items (execution_id, task_id, lane, priority, due_at, rank, state)
    VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
ADD_LIMITED_ITEM = """
    INSERT INTO items (execution_id, task_id, lane, priority, due_at, rank, state, limited, held_by)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING number
"""
ADD_LEASE = """
    INSERT INTO items
        (execution_id, task_id, lane, priority, due_at, rank, state, limited, worker, token, place, expires_at)
    VALUES (?, ?, ?, ?, ?, ?, 'leased', ?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING RETURNING number
"""
CHANGE_LIMITED = """
    UPDATE items SET limited = ?, state = iif(state = 'held', 'waiting', state), held_by = NULL WHERE number = ?
"""
PROMOTE = """
    UPDATE items SET state = 'waiting' WHERE number IN (
        SELECT number FROM items WHERE lane = ? AND state = 'delayed' AND due_at <= ? ORDER BY due_at LIMIT ?
    )
"""
#: Far cheaper than finding nothing to adopt.
ANY_RUN_OUT = "SELECT 1 FROM items WHERE lane = ? AND state = 'leased' AND expires_at <= ? LIMIT 1"
#: How the token begins of a lease that was adopted after it had been handed over, and so had run out at 0.
_HANDED_OVER = "h"
ADOPT = """
    UPDATE items SET
        worker = ?,
        token = iif(expires_at = 0, 'h', '') || lower(hex(randomblob(16))),
        expires_at = ?
    WHERE number IN (
        SELECT number FROM items WHERE lane = ? AND state = 'leased' AND expires_at <= ? ORDER BY expires_at LIMIT ?
    ) RETURNING number, execution_id, task_id, limited, priority, due_at, token, place
"""
NEXT_WAITING = """
    SELECT number, execution_id, task_id, limited, priority, due_at FROM items WHERE lane = ? AND state = 'waiting'
    ORDER BY rank, number LIMIT ?
"""
GRANT = "UPDATE items SET state = 'leased', worker = ?, token = ?, expires_at = ? WHERE number = ?"
COUNT_HELD = "SELECT count(*) FROM (SELECT 1 FROM items WHERE state = 'held' AND held_by = ? LIMIT ?)"
COUNT_LEASES = "SELECT sum(leased) FROM lanes"
FIND_ITEM = "SELECT number, state, token, place, lane, task_id, limited FROM items WHERE execution_id = ?"
COUNT_PLACE = "SELECT count(*) FROM items WHERE lane = ? AND state = 'leased' AND place = ?"
SET_PLACE = "UPDATE items SET place = ? WHERE number = ?"
RENEW = "UPDATE items SET expires_at = ? WHERE execution_id = ? AND token = ? RETURNING stop"
HAND_OVER = "UPDATE items SET expires_at = 0 WHERE execution_id = ? AND token = ? RETURNING lane"
REMOVE = "DELETE FROM items WHERE number = ?"
RELEASE = """
    UPDATE items SET state = ?, due_at = ?, worker = NULL, token = NULL, place = NULL, expires_at = NULL
    WHERE number = ?
"""
TOUCH_LANE = "UPDATE lanes SET changes = changes + 1 WHERE number = ?"
TOUCH_LANES = "UPDATE lanes SET changes = changes + 1"
ASK_TO_STOP = "UPDATE items SET stop = 1 WHERE number = ?"
MARK_REBUILT = "INSERT INTO rebuilt VALUES (1) ON CONFLICT DO NOTHING"


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """What a claim got."""

    leases: Sequence[Lease]
    #: Changes of the lane that it has seen.
    changes: int
    #: Whether there may be more to give, behind what it found to be held.
    is_cut_short: bool = False


def put(connection: sqlite3.Connection, items: Sequence[QueueItem], now: float) -> None:
    """Add those that are not there, and bring the limits of those that wait up to date."""
    lanes = _lanes(connection, {item.lane for item in items})
    judge = Judge(connection)
    if judge.is_needed or any(item.limits for item in items):
        # In the order in which they are to be granted: further ones of a key are held at once.
        for item in sorted(items, key=lambda item: -item.priority):
            _put_limited(connection, judge, item, lanes[item.lane], now)
        return
    rows = [(*_about(item, lanes[item.lane], now), "waiting" if item.due_at <= now else "delayed") for item in items]
    insert_rows(connection, ADD_ITEM, rows)


def _put_limited(connection: sqlite3.Connection, judge: Judge, item: QueueItem, lane: int, now: float) -> None:
    state, held_by = "delayed", None
    keys = judge.keys(item.task_id, item.limits)
    if item.due_at <= now:
        blocking = judge.blocking(item.task_id, keys)
        state, held_by = ("waiting", None) if blocking is None else ("held", blocking.name)
    row = connection.execute(ADD_LIMITED_ITEM, (*_about(item, lane, now), state, bool(item.limits), held_by)).fetchone()
    if row is not None:
        set_item_limits(connection, row[0], item.limits, leased=False)
        if state == "waiting":
            judge.take(keys)
        return
    number, state, *_, limited = connection.execute(FIND_ITEM, (item.execution_id,)).fetchone()
    if state != "leased" and limits_of(connection, number, limited) != item.limits:
        connection.execute(REMOVE_ITEM_LIMITS, (number,))
        set_item_limits(connection, number, item.limits, leased=False)
        connection.execute(CHANGE_LIMITED, (bool(item.limits), number))


def claim(
    connection: sqlite3.Connection,
    lane: str,
    worker: str,
    now: float,
    expires_at: float,
    *,
    capacity: int,
    limit: int,
    overall: int | None = None,
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
    if leased and limit > 0 and connection.execute(ANY_RUN_OUT, (number, now)).fetchone():
        rows = connection.execute(ADOPT, (worker, expires_at, number, now, limit)).fetchall()
        leases += [
            _lease(connection, about, lane, worker, token, adopted=True, place=place)
            for *about, token, place in sorted(rows)
        ]
    free = min(limit - len(leases), capacity - leased)
    if overall is not None:
        free = min(free, overall - connection.execute(COUNT_LEASES).fetchone()[0])
    held = 0
    if free > 0:
        judge = Judge(connection)
        while free > 0 and held < _HELD_AT_ONCE:
            rows = connection.execute(NEXT_WAITING, (number, free + min(held, _LOOKED_AT_ONCE))).fetchall()
            if not rows:
                break
            granted, held_now = _pick(connection, judge, rows, free)
            held += held_now
            free -= len(granted)
            tokens = [secrets.token_hex(16) for _ in granted]
            about_leases = list(zip(granted, tokens, strict=True))
            connection.executemany(GRANT, [(worker, token, expires_at, row[0]) for row, token in about_leases])
            leases += [_lease(connection, row, lane, worker, token, adopted=False) for row, token in about_leases]
    return Claimed(leases=leases, changes=changes, is_cut_short=free > 0 and held >= _HELD_AT_ONCE)


def _pick(connection: sqlite3.Connection, judge: Judge, rows: Sequence[Row], free: int) -> tuple[Sequence[Row], int]:
    """Those of the waiting items that are to be granted, and how many had to be held."""
    if not judge.is_needed:
        return rows[:free], 0
    picked: list[Row] = []
    held = 0
    for row in rows:
        if len(picked) == free:
            break
        number, _, task_id, limited = row[:4]
        keys = judge.keys(task_id, limits_of(connection, number, limited))
        blocking = judge.blocking(task_id, keys)
        if blocking is None:
            judge.take(keys)
            picked.append(row)
        else:
            connection.execute(HOLD, (blocking.name, number))
            held += 1
            # It was there to use the room under the wider ones; another may.
            judge.wake(keys[keys.index(blocking) + 1 :])
    return picked, held


def assign(connection: sqlite3.Connection, lease: Lease, offers: Sequence[tuple[str, int]]) -> str | None:
    """Give the lease a place with room. Raises LeaseLost."""
    found = connection.execute(FIND_ITEM, (lease.item.execution_id,)).fetchone()
    number, _, _, place, lane, *_ = _check(found, lease)
    if place is not None and any(offered == place for offered, _ in offers):
        return str(place)
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
    row = connection.execute(FIND_ITEM, (lease.item.execution_id,)).fetchone()
    if row is not None:
        _check(row, lease)
        _remove(connection, row)


def release(connection: sqlite3.Connection, lease: Lease, now: float, due_at: float) -> None:
    """Put the item back, if it was not. Raises LeaseLost."""
    row = connection.execute(FIND_ITEM, (lease.item.execution_id,)).fetchone()
    if row is None or row[1] == "leased":
        number, *_, task_id, limited = _check(row, lease)
        connection.execute(RELEASE, ("waiting" if due_at <= now else "delayed", due_at, number))
        _wake(connection, task_id, limits_of(connection, number, limited))


def hand_over(connection: sqlite3.Connection, leases: Sequence[Lease]) -> None:
    """Let those that are still held run out."""
    lanes = set()
    for lease in leases:
        lanes.update(connection.execute(HAND_OVER, (lease.item.execution_id, lease.token)).fetchall())
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
    _remove(connection, row)
    return Cancelled.REMOVED


def set_limit(connection: sqlite3.Connection, key: str, capacity: int | None) -> int:
    """Set or lift what holds for a key, and return how many of those held by it are to be looked at again."""
    if capacity is None:
        connection.execute(UNSET_CAPACITY, (key,))
    else:
        connection.execute(SET_CAPACITY, (key, capacity))
    (held,) = connection.execute(COUNT_HELD, (key, -1 if capacity is None else capacity)).fetchone()
    return int(held)


def look_again(connection: sqlite3.Connection, key: str, limit: int) -> int:
    """Let claims meet up to `limit` of what the key holds, a bounded number at a time; returns how many."""
    return connection.execute(SEND_SOME_BACK, (key, min(limit, _HELD_AT_ONCE))).rowcount


def restore_leases(connection: sqlite3.Connection, leases: Sequence[Lease], now: float, expires_at: float) -> None:
    """Add leases of executions that are not there."""
    lanes = _lanes(connection, {lease.item.lane for lease in leases})
    for lease in leases:
        item = lease.item
        about_lease = (bool(item.limits), lease.worker, lease.token, lease.place, expires_at)
        row = connection.execute(ADD_LEASE, (*_about(item, lanes[item.lane], now), *about_lease)).fetchone()
        if row is not None:
            set_item_limits(connection, row[0], item.limits, leased=True)


def mark_rebuilt(connection: sqlite3.Connection) -> None:
    """Grant from now on."""
    if connection.execute(MARK_REBUILT).rowcount:
        connection.execute(TOUCH_LANES)


def promote(connection: sqlite3.Connection, lane: str, now: float) -> None:
    """Make delayed items that are due claimable."""
    row = connection.execute(FIND_LANE, (lane,)).fetchone()
    if row is not None and row[1]:
        connection.execute(PROMOTE, (row[0], now, _PROMOTED_AT_ONCE))


def _lanes(connection: sqlite3.Connection, names: Collection[str]) -> Mapping[str, int]:
    """The numbers of these lanes, which are added where they are missing."""
    connection.executemany(ADD_LANE, [(name,) for name in names])
    return {name: connection.execute(LANE_NUMBER, (name,)).fetchone()[0] for name in names}


def _about(item: QueueItem, lane: int, now: float) -> tuple[str, str, int, int, float, float]:
    rank = max(now, item.due_at) - AGEING_SECONDS * item.priority
    return item.execution_id, item.task_id, lane, item.priority, item.due_at, rank


def _check(row: Row | None, lease: Lease) -> Row:
    """The item's row. Raises LeaseLost unless the lease is the current one."""
    if row is None or row[1] != "leased" or row[2] != lease.token:
        state = "is not in the queue" if row is None else f"is {row[1]}, not by this lease"
        raise LeaseLost(f"{lease.worker} lost its lease: the execution {lease.item.execution_id} {state}")
    return row


def _remove(connection: sqlite3.Connection, row: Row) -> None:
    number, *_, task_id, limited = row
    limits = limits_of(connection, number, limited)
    connection.execute(REMOVE, (number,))
    _wake(connection, task_id, limits)


def _wake(connection: sqlite3.Connection, task_id: str, limits: Sequence[Limit]) -> None:
    """Somebody may use what an item of these keys does not use any more, or will not use."""
    judge = Judge(connection)
    if judge.is_needed:
        judge.wake(judge.keys(task_id, limits))


def _lease(
    connection: sqlite3.Connection,
    row: Sequence[Any],
    lane: str,
    worker: str,
    token: str,
    *,
    adopted: bool,
    place: str | None = None,
) -> Lease:
    return Lease(
        item=item_of(connection, row, lane),
        worker=worker,
        token=token,
        adopted=adopted,
        place=place,
        handed_over=token.startswith(_HANDED_OVER),
    )
