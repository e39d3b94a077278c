"""Time-outs of what is begun thousands of times a second and is hardly ever late.

`asyncio.timeout` sets a timer each time, and the event loop keeps even those that were called off in order: some 30 µs
each in an API under load. Here one timer of an event loop looks through all that is under way, so a time-out costs
hardly more than an entry in a dictionary, and comes up to a tenth of a second late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from weakref import WeakKeyDictionary

#: Seconds between two looks.
_PRECISION = 0.1


class coarse_timeout:  # noqa: N801 - named as what it stands in for
    """A context like `asyncio.timeout`: cancels its body after so many seconds, and turns that into TimeoutError.

    None sets no limit. To be entered at once, and once, in a task.
    """

    __slots__ = ("_cancelling", "_late", "_seconds", "_sweeper", "deadline", "task")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._late = False
        self._sweeper: _Sweeper | None = None

    def __enter__(self) -> None:
        if self._seconds is None:
            return
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a time-out needs a task to cancel")
        #: What is cancelled when, by the clock of the event loop.
        self.task = task
        self.deadline = loop.time() + self._seconds
        self._cancelling = task.cancelling()
        self._sweeper = _sweeper_of(loop)
        self._sweeper.add(self, loop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sweeper is None:
            return
        self._sweeper.under_way.pop(self, None)
        # As asyncio does: a cancellation that somebody else asked for as well stays one.
        if self._late and self.task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """Cancel the body."""
        self._late = True
        self.task.cancel()


class CoarseTimer:
    """A timer like `loop.call_later`, to be started and stopped again and again, in the loop that made it."""

    __slots__ = ("_loop", "_seconds", "_sweeper", "deadline", "expire")

    def __init__(self, seconds: float, expire: Callable[[], None]) -> None:
        """Whenever it has run for so many seconds, `expire` is called."""
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._sweeper = _sweeper_of(self._loop)
        self.expire = expire
        #: When, by the clock of the event loop.
        self.deadline = 0.0

    def start(self) -> None:
        """Begin anew."""
        self.deadline = self._loop.time() + self._seconds
        self._sweeper.add(self, self._loop)

    def stop(self) -> None:
        """Have it never expire, unless it is started again."""
        self._sweeper.under_way.pop(self, None)


class _Sweeper:
    """Looks after the time-outs of one event loop, while there are any."""

    def __init__(self) -> None:
        self.under_way: dict[coarse_timeout | CoarseTimer, None] = {}
        self._is_set = False

    def add(self, timeout: coarse_timeout | CoarseTimer, loop: asyncio.AbstractEventLoop) -> None:
        self.under_way[timeout] = None
        if not self._is_set:
            self._is_set = True
            loop.call_later(_PRECISION, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for timeout in [each for each in self.under_way if each.deadline <= now]:
            del self.under_way[timeout]
            timeout.expire()
        self._is_set = bool(self.under_way)
        if self._is_set:
            loop.call_later(_PRECISION, self._look, loop)


def _sweeper_of(loop: asyncio.AbstractEventLoop) -> _Sweeper:
    found = _sweepers.get(loop)
    if found is None:
        found = _sweepers[loop] = _Sweeper()
    return found


_sweepers: WeakKeyDictionary[asyncio.AbstractEventLoop, _Sweeper] = WeakKeyDictionary()
