"""The contract of a queue: an index over what waits and what is leased. Storage is the truth.

An item waits in its lane until `claim` turns it into a lease. The lease is the slot in the lane: it is freed by `ack`
or `release` only. A lease that ran out keeps its slot until another worker claims it for adoption, so capacity stays
exact through crashes. The queue server's clock decides all times.

Items also count under *keys*, each of which may have a capacity: the key of their task, and those of their limits. Only
leases count, so a limit is exact through crashes as well. What waits behind a key that is at its capacity is *held*:
claims do not meet it, however much it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import Final

from fastlane_core.quick_dataclass import quick_dataclass

#: Seconds of waiting that one step of priority is worth.
AGEING_SECONDS: Final = 600


def task_key(task_id: str) -> str:
    """The key under which every item of a task counts."""
    return f"task:{task_id}"


def job_key(task_id: str, job_id: str) -> str:
    """The key for items of one job."""
    return f"job:{task_id}/{job_id}"


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """How many items that count under a key may be leased at a time."""

    key: str
    capacity: int


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class QueueItem:
    """An execution that waits for a slot in a lane."""

    execution_id: str
    task_id: str
    lane: str
    #: 0 to 9, higher first, but no item waits for ever: items go by the time they were put, or the due time where that
    #: is later, less `AGEING_SECONDS` for each step of priority. First in, first out within one priority.
    priority: int = 0
    #: Unix time before which it is not granted; 0 for at once.
    due_at: float = 0.0
    #: Granted only while fewer are leased under each of these keys, narrowest first: items that share one of them share
    #: those after it too. One may be the task's, under which the item counts without it as well.
    limits: tuple[Limit, ...] = ()


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """A worker's renewable claim on an item."""

    item: QueueItem
    worker: str
    #: Names this very claim; a later claim of the same item has another.
    token: str
    #: Whether it was taken over from a lease that had run out.
    adopted: bool
    #: The place that was assigned to it, if any; kept when it is adopted.
    place: str | None = None
    #: Whether the one from whom it was taken over had handed it over, rather than let it run out.
    handed_over: bool = False


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Renewal:
    """What a renewal found. A lease in a part of the queue that is out of reach is neither lost nor renewed, and named
    nowhere."""

    #: Execution ids whose lease is held by somebody else now, or is gone.
    lost: frozenset[str] = frozenset()
    #: Execution ids that were asked to stop.
    stop: frozenset[str] = frozenset()


class Cancelled(StrEnum):
    """What `cancel` found."""

    #: It was waiting and is removed.
    REMOVED = "removed"
    #: It is leased; its holder hears of it at its next renewal.
    LEASED = "leased"
    ABSENT = "absent"


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class LaneStats:
    """One lane, counted."""

    #: Items that could be granted now.
    waiting: int = 0
    #: Items whose time has not come.
    delayed: int = 0
    #: Slots taken: leases, run out or not.
    leased: int = 0
    #: Items that a key keeps from being granted; one that a claim has not met since then counts as waiting.
    held: int = 0
    #: When the next delayed item is due.
    next_due_at: float | None = None
    #: Those of the leases that have run out, or were handed over, and that nobody has adopted.
    run_out: int = 0
    #: Leases by assigned place.
    places: Mapping[str, int] | None = None
    #: False where the lane is out of reach while others are not: nothing is known of it.
    reachable: bool = True


class Subscription(ABC):
    """Topics listened to."""

    @abstractmethod
    async def next(self, timeout: float) -> str | None:
        """The topic of the next message, or None after `timeout` seconds. Repeats may be folded into one."""


class Queue(ABC):
    """Every method raises QueueUnavailable when the server cannot be reached in time.

    Each is atomic, and harmless when it is repeated because its answer was lost. A queue on several servers may have
    lanes out of reach while others are not: `renew`, `hand_over`, `contains`, `stats` and `needs_rebuild` then go by
    what can be reached, and raise if nothing can.
    """

    #: Whether `claim` can count the leases of all lanes.
    counts_overall: bool = True

    @abstractmethod
    async def open(self) -> None:
        """Connect and make ready; raises QueueUnavailable."""

    async def open_to_look(self) -> None:
        """Open for a caller that only reads: no call changes anything, and this one makes and migrates nothing.

        Raises QueueUnavailable, SchemaTooNew, and SchemaNotReady where there is nothing yet, or something older.
        One that makes nothing when it is opened opens as ever.
        """
        await self.open()

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections and threads."""

    @abstractmethod
    async def put(self, items: Sequence[QueueItem]) -> None:
        """Add items. An item whose execution is there already is left as it is, but for its limits if it waits."""

    @abstractmethod
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
        """Lease up to `limit` items of `lane` for `worker`.

        Leases that ran out are given first, for adoption: they hold their slot already. Then due items in order, while
        the lane holds fewer than `capacity` leases, all lanes together fewer than `overall`, and each key of the item
        fewer than its capacity. Grants nothing while `needs_rebuild`. Fewer than `limit` are given only where there is
        nothing more to give now. A queue without `counts_overall` is not asked with `overall`.
        """

    @abstractmethod
    async def set_limit(self, key: str, capacity: int | None) -> None:
        """Let fewer than `capacity` leases under `key` be there when an item is granted; None lifts that.

        It stays until it is set anew or the queue loses its data, and goes together with the items' own limits: the
        strictest counts. Leases beyond a lower capacity go on.
        """

    @abstractmethod
    async def limits(self) -> Mapping[str, int]:
        """The capacities that `set_limit` has set, by key."""

    @abstractmethod
    async def held_by(self, execution_ids: Sequence[str]) -> Mapping[str, Limit]:
        """The limit that keeps an execution waiting, for those whose time has come and that one of them keeps."""

    @abstractmethod
    async def assign(self, lease: Lease, offers: Sequence[tuple[str, int]]) -> str | None:
        """Give the lease the first of the `(place, capacity)` offers that has room, and return that place.

        A lease that has a place keeps it if it is among the offers. None when no place has room.
        Raises LeaseLost.
        """

    @abstractmethod
    async def loads(self, lane: str) -> Mapping[str, int]:
        """Leases of `lane` by assigned place."""

    @abstractmethod
    async def renew(self, leases: Sequence[Lease], lease_seconds: float) -> Renewal:
        """Make leases of one worker last `lease_seconds` from now.

        One that ran out but was not claimed by another is renewed all the same. One that is out of reach is left alone:
        nobody can claim it there either, and once it is back the next renewal tells whose it is.
        """

    @abstractmethod
    async def ack(self, lease: Lease) -> None:
        """The execution has ended: remove the item and free its slot. Raises LeaseLost if another holds it."""

    @abstractmethod
    async def release(self, lease: Lease, *, delay: float) -> None:
        """Put the item back, due `delay` seconds from now, in its old order, and free its slot. Raises LeaseLost."""

    @abstractmethod
    async def hand_over(self, leases: Sequence[Lease]) -> None:
        """Let the leases run out now; slots stay taken until another worker adopts. Leases lost are left out, and those
        out of reach run out in their time."""

    @abstractmethod
    async def cancel(self, execution_id: str) -> Cancelled:
        """Remove a waiting item, or tell the holder of its lease to stop."""

    @abstractmethod
    async def contains(self, execution_ids: Sequence[str]) -> frozenset[str]:
        """Those of the ids that wait or are leased, or that may, as they are out of reach."""

    @abstractmethod
    async def peek(self, lane: str, limit: int) -> Sequence[QueueItem]:
        """The items of `lane` that would be granted next, then some that are held; leased ones not included."""

    @abstractmethod
    async def stats(self) -> Mapping[str, LaneStats]:
        """Every lane that holds anything, or may, as it is out of reach."""

    @abstractmethod
    async def wait(self, lanes: Sequence[str], timeout: float) -> None:
        """Return when something may have become claimable in one of the lanes, or after `timeout` seconds.

        May return early for no reason; a wake-up that is lost only costs the time-out.
        """

    @abstractmethod
    async def needs_rebuild(self) -> bool:
        """Whether the queue has lost its data (or never had any): it grants nothing until `rebuilt`.

        What is out of reach counts as not lost; `rebuilt` lets none of it grant that was lost after all.
        """

    @abstractmethod
    async def restore_leases(self, leases: Sequence[Lease], lease_seconds: float) -> None:
        """Put back leases of running executions, each valid for `lease_seconds`; existing ones are left alone."""

    @abstractmethod
    async def rebuilt(self) -> None:
        """Everything was put back: grant again."""

    @abstractmethod
    async def publish(self, topic: str) -> None:
        """Wake whoever listens to `topic`. Best effort: everything works, later, when it is lost."""

    @abstractmethod
    def subscribe(self, topics: Sequence[str]) -> AbstractAsyncContextManager[Subscription]:
        """Listen to `topics` while the context is open."""

    @abstractmethod
    async def health(self) -> str:
        """Ask the server; a short description of it. Raises QueueUnavailable."""

    async def clock(self) -> float | None:
        """The server's clock, as Unix time in seconds; None if it has none of its own. Raises QueueUnavailable."""
        return None
