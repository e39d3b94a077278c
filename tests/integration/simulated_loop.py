"""An event loop in which time passes only when a test lets it, and one thing from outside happens at a time."""

from __future__ import annotations

import asyncio
import contextvars
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, Protocol


class Owner(Protocol):
    """Who tasks belong to."""

    tasks: set[asyncio.Task[Any]]


_OWNER: contextvars.ContextVar[Owner | None] = contextvars.ContextVar("owner", default=None)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Runs what can run; then lets one thing outside happen; then moves the time on to the next timer.

    So what a test sees follows from what it does, down to the order of steps, and an hour costs nothing.
    """

    def __init__(self, outside: Callable[[], bool]) -> None:
        """`outside` lets one thing happen that the tasks wait for, and says whether there was one."""
        self._outside = outside
        self._elapsed = 0.0
        self._until = 0.0
        super().__init__(_IdleSelector(self._idle))
        self.set_task_factory(_make_task)
        # A killed task is looked at by nobody.
        self.set_exception_handler(lambda loop, context: None)

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Let so much time pass, and everything happen that comes of it, until all that is left waits for later."""
        self._until = self._elapsed + seconds
        self.run_forever()

    def begin(self, owner: Owner, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of the owner's, as are those that it makes."""
        context = contextvars.copy_context()
        context.run(_OWNER.set, owner)
        return self.create_task(coroutine, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """At once: a thread would make the order a matter of chance."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    def _idle(self, next_timer: float | None) -> None:
        if self._outside():
            return
        if next_timer is not None and self._elapsed + next_timer <= self._until:
            self._elapsed += next_timer
        else:
            self._elapsed = self._until
            self.stop()


class _IdleSelector(selectors.SelectSelector):
    """Says when the loop would wait, and never does."""

    def __init__(self, idle: Callable[[float | None], None]) -> None:
        super().__init__()
        self._idle = idle

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout > 0:
            self._idle(timeout)
        return super().select(0)


def _make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    task = asyncio.Task(coroutine, loop=loop, **options)
    owner = (options.get("context") or contextvars.copy_context()).get(_OWNER)
    if owner is not None:
        owner.tasks.add(task)
        task.add_done_callback(owner.tasks.discard)
    return task
