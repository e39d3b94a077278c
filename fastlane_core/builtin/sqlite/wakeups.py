"""Telling waiters of this process that something changed: at once for its own writes, soon for other processes'."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import structlog

from fastlane_core.builtin.sqlite.connection import open_reader
from fastlane_core.builtin.sqlite.queue_schema import TOPICS_KEPT
from fastlane_core.contracts.queue import Subscription

log = structlog.get_logger(__name__)

#: Seconds between looks at whether another process has written: while one does, and while none has for some seconds.
_LOOK_SECONDS, _SELDOM_SECONDS = 0.025, 0.1
_QUIET_SECONDS = 10.0

LANE_CHANGES = "SELECT changes FROM lanes WHERE name = ?"
LAST_TOPIC = "SELECT max(sequence) FROM topics"
NEW_TOPICS = "SELECT sequence, origin, topic FROM topics WHERE sequence > ? ORDER BY sequence LIMIT ?"
INSERT_TOPIC = "INSERT INTO topics (origin, topic) VALUES (?, ?)"
TRIM_TOPICS = "DELETE FROM topics WHERE sequence <= (SELECT max(sequence) FROM topics) - ?"


class LaneWaiter:
    """One call of `wait`: added, then armed with the state of its lanes as it was read after that."""

    def __init__(self, lanes: Sequence[str], clock: Callable[[], float]) -> None:
        self.lanes = lanes
        self.clock = clock
        #: The changes of each lane that it knows of; None until armed.
        self.seen: Mapping[str, int] | None = None
        #: By `clock`, when something becomes claimable by the passing of time; None for never.
        self.at: float | None = None
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()

    def arm(self, seen: Mapping[str, int], at: float | None) -> None:
        """Wake when a lane's changes differ from `seen`, or the clock reaches `at`."""
        self.seen = seen
        self.at = at

    async def wait(self) -> None:
        """Return when it was woken."""
        await self._woken.wait()

    def wake(self) -> None:
        """Callable from any thread."""
        _call_in(self._loop, self._woken.set)

    @property
    def is_woken(self) -> bool:
        """Whether it was woken already."""
        return self._woken.is_set()


class TopicSubscription(Subscription):
    """Topics listened to; messages of one topic that were not read yet are folded into one."""

    def __init__(self, topics: Iterable[str]) -> None:
        self.topics = frozenset(topics)
        self._loop = asyncio.get_running_loop()
        self._unread: dict[str, None] = {}
        self._arrived = asyncio.Event()

    async def next(self, timeout: float) -> str | None:
        try:
            async with asyncio.timeout(timeout):
                while not self._unread:
                    await self._arrived.wait()
        except TimeoutError:
            return None
        topic = next(iter(self._unread))
        del self._unread[topic]
        if not self._unread:
            self._arrived.clear()
        return topic

    def deliver(self, topics: Iterable[str]) -> None:
        """Callable from any thread; topics not listened to are left out."""
        listened = self.topics.intersection(topics)
        if listened:
            _call_in(self._loop, lambda: self._add(listened))

    def _add(self, topics: Iterable[str]) -> None:
        self._unread.update(dict.fromkeys(topics))
        self._arrived.set()


class Wakeups:
    """Waiters and subscriptions of everybody in this process who uses one file, and the thread that wakes them."""

    def __init__(self, path: Path, busy_seconds: float) -> None:
        """Starts the thread. Raises DatabaseUnavailable."""
        # Tells this process's messages from others'.
        self._origin = uuid.uuid4().hex
        self._connection = open_reader(path, busy_seconds)
        self._lock = threading.Lock()
        self._waiters: set[LaneWaiter] = set()
        self._subscriptions: dict[str, set[TopicSubscription]] = {}
        self._unsent: dict[str, None] = {}
        self._ended = threading.Event()
        self._version = self._data_version()
        #: When another process's write was last noticed.
        self._others_wrote_at = float("-inf")
        #: Lanes that were found changed, and of which this process has not said since that it was itself.
        self._suspected: set[str] = set()
        (last,) = self._connection.execute(LAST_TOPIC).fetchone()
        self._last_topic: int = last or 0
        self._thread = threading.Thread(target=self._run, name="fastlane-sqlite-wakeups", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread. Blocks."""
        self._ended.set()
        self._thread.join()

    def add_waiter(self, waiter: LaneWaiter) -> None:
        """Wake it from now on; add it before it reads the state of its lanes, so that nothing is missed."""
        with self._lock:
            self._waiters.add(waiter)

    def remove_waiter(self, waiter: LaneWaiter) -> None:
        """Forget it."""
        with self._lock:
            self._waiters.discard(waiter)

    def add_subscription(self, subscription: TopicSubscription) -> None:
        """Deliver to it from now on."""
        with self._lock:
            for topic in subscription.topics:
                self._subscriptions.setdefault(topic, set()).add(subscription)

    def remove_subscription(self, subscription: TopicSubscription) -> None:
        """Forget it."""
        with self._lock:
            for topic in subscription.topics:
                listeners = self._subscriptions[topic]
                listeners.discard(subscription)
                if not listeners:
                    del self._subscriptions[topic]

    def lanes_changed(self, lanes: Iterable[str]) -> None:
        """This process changed something in the lanes."""
        changed = frozenset(lanes)
        with self._lock:
            self._suspected -= changed
            waiters = [waiter for waiter in self._waiters if not changed.isdisjoint(waiter.lanes)]
        for waiter in waiters:
            waiter.wake()

    def publish(self, topic: str, defer: Callable[[Callable[[sqlite3.Connection], None]], None]) -> None:
        """Deliver in this process at once, and let `defer` write it to where other processes look."""
        self._deliver([topic])
        with self._lock:
            first = not self._unsent
            self._unsent[topic] = None
            if len(self._unsent) > TOPICS_KEPT:
                del self._unsent[next(iter(self._unsent))]
        if first:
            try:
                defer(self._send_topics)
            except BaseException:
                self._take_unsent()
                raise

    def _send_topics(self, connection: sqlite3.Connection) -> None:
        # Where the transaction fails they are lost, as messages may be.
        connection.executemany(INSERT_TOPIC, [(self._origin, topic) for topic in self._take_unsent()])
        connection.execute(TRIM_TOPICS, (TOPICS_KEPT,))

    def _take_unsent(self) -> Iterable[str]:
        with self._lock:
            topics, self._unsent = self._unsent, {}
        return topics

    def _run(self) -> None:
        with closing(self._connection):
            failing = False
            while not self._ended.wait(self._pause()):
                try:
                    self._look()
                    failing = False
                except sqlite3.Error as error:
                    if not failing:
                        log.warning("cannot see what other processes write; waiting takes longer", error=str(error))
                    failing = True
                self._wake_due()

    def _pause(self) -> float:
        with self._lock:
            left = [waiter.at - waiter.clock() for waiter in self._waiters if waiter.at is not None]
        busy = time.monotonic() - self._others_wrote_at < _QUIET_SECONDS
        return max(0.0, min([*left, _LOOK_SECONDS if busy else _SELDOM_SECONDS]))

    def _look(self) -> None:
        version = self._data_version()
        if version == self._version:
            return
        self._version = version
        with self._lock:
            waiters = list(self._waiters)
            if self._suspected:
                self._others_wrote_at = time.monotonic()
        suspected: set[str] = set()
        changes = {lane: self._changes(lane) for lane in {lane for waiter in waiters for lane in waiter.lanes}}
        for waiter in waiters:
            # One that is about to read may read from before this look, and there would be no other.
            if waiter.seen is None or any(changes[lane] != waiter.seen[lane] for lane in waiter.lanes):
                if waiter.seen is not None and not waiter.is_woken:
                    suspected.update(waiter.lanes)
                waiter.wake()
        with self._lock:
            self._suspected = suspected
        self._read_topics()

    def _read_topics(self) -> None:
        rows = self._connection.execute(NEW_TOPICS, (self._last_topic, TOPICS_KEPT)).fetchall()
        if not rows:
            return
        if any(origin != self._origin for _, origin, _ in rows):
            self._others_wrote_at = time.monotonic()
        missed = rows[0][0] != self._last_topic + 1
        self._last_topic = rows[-1][0]
        if missed:
            with self._lock:
                everything = list(self._subscriptions)
            self._deliver(everything)
        else:
            self._deliver([topic for _, origin, topic in rows if origin != self._origin])

    def _deliver(self, topics: Sequence[str]) -> None:
        with self._lock:
            subscriptions = {each for topic in topics for each in self._subscriptions.get(topic, ())}
        for subscription in subscriptions:
            subscription.deliver(topics)

    def _wake_due(self) -> None:
        with self._lock:
            waiters = [waiter for waiter in self._waiters if waiter.at is not None and waiter.clock() >= waiter.at]
        for waiter in waiters:
            waiter.at = None
            waiter.wake()

    def _data_version(self) -> int:
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(version)

    def _changes(self, lane: str) -> int:
        row = self._connection.execute(LANE_CHANGES, (lane,)).fetchone()
        return 0 if row is None else int(row[0])


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        running = None
    if running is loop:
        function()
        return
    with suppress(RuntimeError):  # A loop that was closed has nobody waiting.
        loop.call_soon_threadsafe(function)
