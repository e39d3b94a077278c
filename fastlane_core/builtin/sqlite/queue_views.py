"""What the queue tells about its tables, and changes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fastlane_core.builtin.sqlite.queue_limits import LIST_CAPACITIES, Judge, limits_of
from fastlane_core.contracts.queue import LaneStats, Limit, QueueItem

#: A row as the sqlite3 module gives it.
Row: TypeAlias = tuple[Any, ...]

FIND_LANE = """
    SELECT number, delayed, leased, changes, EXISTS (SELECT 1 FROM rebuilt) FROM lanes WHERE name = ?
"""
COUNT_PLACES = """
    SELECT place, count(*) FROM items
    WHERE lane = (SELECT number FROM lanes WHERE name = ?) AND state = 'leased' AND place IS NOT NULL GROUP BY place
"""
IS_PRESENT = "SELECT 1 FROM items WHERE execution_id = ?"
IS_REBUILT = "SELECT 1 FROM rebuilt"
PEEK = """
    SELECT number, execution_id, task_id, limited, priority, due_at FROM items
    WHERE lane = (SELECT number FROM lanes WHERE name = ?) AND state = 'waiting' ORDER BY rank, number LIMIT ?
"""
PEEK_AT_HELD = """
    SELECT number, execution_id, task_id, limited, priority, due_at FROM items
    WHERE lane = (SELECT number FROM lanes WHERE name = ?) AND state = 'held' ORDER BY rank, number LIMIT ?
"""
FIND_WAITING = """
    SELECT number, task_id, limited FROM items WHERE execution_id = ? AND state <> 'leased' AND due_at <= ?
"""
LIST_LANES = "SELECT number, name, waiting, delayed, leased, held FROM lanes"
COUNT_DUE = "SELECT count(*) FROM items WHERE lane = ? AND state = 'delayed' AND due_at <= ?"
NEXT_DUE = "SELECT min(due_at) FROM items WHERE lane = ? AND state = 'delayed' AND due_at > ?"
COUNT_RUN_OUT = "SELECT count(*) FROM items WHERE lane = ? AND state = 'leased' AND expires_at <= ?"
FIRST_DUE = "SELECT min(due_at) FROM items WHERE lane = ? AND state = 'delayed'"
FIRST_EXPIRY = "SELECT min(expires_at) FROM items WHERE lane = ? AND state = 'leased'"


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneState:
    """What a waiter needs to know of its lanes."""

    changes: Mapping[str, int]
    #: When something becomes claimable by the passing of time; None for never.
    at: float | None


def contains(connection: sqlite3.Connection, execution_ids: Sequence[str]) -> frozenset[str]:
    """Those of the ids that are there."""
    return frozenset(
        execution_id
        for execution_id in execution_ids
        if connection.execute(IS_PRESENT, (execution_id,)).fetchone() is not None
    )


def needs_rebuild(connection: sqlite3.Connection) -> bool:
    """Whether `mark_rebuilt` was never called on this file."""
    return connection.execute(IS_REBUILT).fetchone() is None


def peek(connection: sqlite3.Connection, lane: str, limit: int) -> Sequence[QueueItem]:
    """What would be granted next, then some of what is held."""
    rows = connection.execute(PEEK, (lane, limit)).fetchall()
    if len(rows) < limit:
        rows += connection.execute(PEEK_AT_HELD, (lane, limit - len(rows))).fetchall()
    return [item_of(connection, row, lane) for row in rows]


def item_of(connection: sqlite3.Connection, row: Sequence[Any], lane: str) -> QueueItem:
    """The item of a row of number, execution, task, whether it is limited, priority and due time."""
    number, execution_id, task_id, limited, priority, due_at = row
    return QueueItem(
        execution_id=execution_id,
        task_id=task_id,
        lane=lane,
        priority=priority,
        due_at=due_at,
        limits=limits_of(connection, number, limited),
    )


def limits(connection: sqlite3.Connection) -> Mapping[str, int]:
    """What was set for keys."""
    return dict(connection.execute(LIST_CAPACITIES).fetchall())


def held_by(connection: sqlite3.Connection, execution_ids: Sequence[str], now: float) -> Mapping[str, Limit]:
    """The limit that keeps an execution waiting, for those that one keeps."""
    found: dict[str, Limit] = {}
    judge = Judge(connection)
    if not judge.is_needed:
        return found
    for execution_id in execution_ids:
        row = connection.execute(FIND_WAITING, (execution_id, now)).fetchone()
        if row is None:
            continue
        number, task_id, limited = row
        blocking = judge.blocking(task_id, judge.keys(task_id, limits_of(connection, number, limited)))
        if blocking is not None:
            found[execution_id] = Limit(key=blocking.name, capacity=blocking.capacity)
    return found


def loads(connection: sqlite3.Connection, lane: str) -> Mapping[str, int]:
    """Leases by place."""
    return dict(connection.execute(COUNT_PLACES, (lane,)).fetchall())


def stats(connection: sqlite3.Connection, now: float) -> Mapping[str, LaneStats]:
    """Every lane that holds anything; the caller's transaction makes the numbers fit together."""
    found = {}
    for number, name, waiting, delayed, leased, held in connection.execute(LIST_LANES).fetchall():
        if waiting or delayed or leased or held:
            (due,) = connection.execute(COUNT_DUE, (number, now)).fetchone() if delayed else (0,)
            (next_due_at,) = connection.execute(NEXT_DUE, (number, now)).fetchone() if delayed else (None,)
            (run_out,) = connection.execute(COUNT_RUN_OUT, (number, now)).fetchone() if leased else (0,)
            found[name] = LaneStats(
                waiting=waiting + due,
                delayed=delayed - due,
                leased=leased,
                held=held,
                run_out=run_out,
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
