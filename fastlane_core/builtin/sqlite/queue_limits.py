"""Limits: which key keeps an item from being granted, and what is to be looked at again once it has room.

A key counts leases, nothing else. An item that finds a key of its own at its capacity is held behind that key, the
narrowest one. Whatever makes room under a key sends one item from behind it back to where claims look, and they judge
anew. As items that share a key share the wider ones, no item behind a key can go while one that was sent back is held
behind a wider one; so each step moves a few items, however many are held.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastlane_core.contracts.queue import Limit, task_key

COUNT_TASK = "SELECT count(*) FROM items WHERE state = 'leased' AND task_id = ?"
COUNT_KEY = "SELECT count(*) FROM item_limits WHERE key = ? AND leased"
LIMITS_EXIST = "SELECT EXISTS (SELECT 1 FROM capacities) OR EXISTS (SELECT 1 FROM item_limits WHERE item >= 0)"
CAPACITY = "SELECT capacity FROM capacities WHERE key = ?"
LIST_CAPACITIES = "SELECT key, capacity FROM capacities"
SET_CAPACITY = """
    INSERT INTO capacities VALUES (?, ?) ON CONFLICT DO UPDATE SET capacity = excluded.capacity
"""
UNSET_CAPACITY = "DELETE FROM capacities WHERE key = ?"
ITEM_LIMITS = "SELECT key, capacity FROM item_limits WHERE item = ? ORDER BY position"
ADD_ITEM_LIMIT = "INSERT INTO item_limits VALUES (?, ?, ?, ?, ?)"
REMOVE_ITEM_LIMITS = "DELETE FROM item_limits WHERE item = ?"
FIRST_HELD = """
    SELECT number, task_id, limited FROM items WHERE state = 'held' AND held_by = ? ORDER BY rank, number LIMIT 1
"""
HOLD = "UPDATE items SET state = 'held', held_by = ? WHERE number = ?"
SEND_BACK = "UPDATE items SET state = 'waiting', held_by = NULL WHERE number = ?"
SEND_SOME_BACK = """
    UPDATE items SET state = 'waiting', held_by = NULL WHERE number IN (
        SELECT number FROM items WHERE state = 'held' AND held_by = ? ORDER BY rank, number LIMIT ?
    )
"""

#: Stands for a capacity that nobody has set.
_UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True)
class Key:
    """A key under which an item counts, and the strictest of the capacities that hold for it."""

    name: str
    capacity: int
    is_task: bool


class Judge:
    """Tells, within one transaction, which keys have room."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._leased: dict[str, int] = {}
        self._capacities: dict[str, int] = {}
        #: Whether there is any limit in the queue.
        self.is_needed = bool(connection.execute(LIMITS_EXIST).fetchone()[0])

    def keys(self, task_id: str, limits: Iterable[Limit]) -> Sequence[Key]:
        """The keys of an item, narrowest first."""
        key_of_task = task_key(task_id)
        told = {limit.key: limit.capacity for limit in limits}
        told.setdefault(key_of_task, _UNLIMITED)
        return [Key(name, min(told[name], self._capacity(name)), name == key_of_task) for name in told]

    def blocking(self, task_id: str, keys: Sequence[Key]) -> Key | None:
        """The narrowest key without room, if there is one."""
        return next((key for key in keys if not self.has_room(task_id, key)), None)

    def has_room(self, task_id: str, key: Key) -> bool:
        """Whether one more may be leased under the key."""
        return key.capacity == _UNLIMITED or self.leased(task_id, key) < key.capacity

    def leased(self, task_id: str, key: Key) -> int:
        """How many leases count under the key."""
        count = self._leased.get(key.name)
        if count is None:
            row = self._connection.execute(*((COUNT_TASK, (task_id,)) if key.is_task else (COUNT_KEY, (key.name,))))
            (count,) = row.fetchone()
            self._leased[key.name] = count
        return count

    def take(self, keys: Sequence[Key]) -> None:
        """Count one more under each of them, which is about to be leased."""
        for key in keys:
            if key.name in self._leased:
                self._leased[key.name] += 1

    def wake(self, keys: Sequence[Key]) -> None:
        """Have the first item behind each of the keys that has room looked at again."""
        for key in keys:
            row = self._connection.execute(FIRST_HELD, (key.name,)).fetchone()
            if row is None:
                continue
            number, task_id, limited = row
            its_keys = self.keys(task_id, limits_of(self._connection, number, limited))
            if all(self.has_room(task_id, each) for each in its_keys if each.name == key.name):
                self._connection.execute(SEND_BACK, (number,))

    def _capacity(self, key: str) -> int:
        capacity = self._capacities.get(key)
        if capacity is None:
            row = self._connection.execute(CAPACITY, (key,)).fetchone()
            capacity = self._capacities[key] = _UNLIMITED if row is None else row[0]
        return capacity


def limits_of(connection: sqlite3.Connection, number: int, limited: int) -> tuple[Limit, ...]:
    """The limits that an item came with."""
    if not limited:
        return ()
    return tuple(Limit(key=key, capacity=capacity) for key, capacity in connection.execute(ITEM_LIMITS, (number,)))


def set_item_limits(connection: sqlite3.Connection, number: int, limits: Sequence[Limit], *, leased: bool) -> None:
    """Write the limits of an item that has none."""
    connection.executemany(
        ADD_ITEM_LIMIT,
        [(number, position, limit.key, limit.capacity, leased) for position, limit in enumerate(limits)],
    )
