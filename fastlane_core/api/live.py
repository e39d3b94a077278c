"""Following an execution: its output and its status as they come, out of storage, woken by the queue's pub/sub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import cast

import structlog
from quart import current_app

from fastlane_core.api.answers import TooManyFollowers
from fastlane_core.api.context import ApiContext
from fastlane_core.api.outputs import PIECE_BYTES
from fastlane_core.api.waiting import SharedReasons
from fastlane_core.contracts.queue import Queue, Subscription
from fastlane_core.engine.topics import execution_topic
from fastlane_core.errors import QueueUnavailable
from fastlane_core.models import Execution, LogChunk, Status

log = structlog.get_logger(__name__)

#: Key of the followers' count among the extensions of the Quart application.
FOLLOWERS = "fastlane.followers"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Nothing new, but still there."""


Happening = LogChunk | Execution | Heartbeat


class Followers:
    """How many clients follow, bounded: each costs a task, a subscription and a look at storage now and then."""

    def __init__(self, limit: int, reasons: SharedReasons) -> None:
        self._limit = limit
        #: Why what they follow has not started.
        self.reasons = reasons
        self._count = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count one for as long as the context is open. Raises TooManyFollowers."""
        if self._count >= self._limit:
            raise TooManyFollowers(f"{self._limit} clients follow output already; try again in a while")
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


def followers() -> Followers:
    """Those of the application that handles the current request."""
    return cast("Followers", current_app.extensions[FOLLOWERS])


async def follow_execution(
    context: ApiContext, execution_id: str, *, after: int, reasons: SharedReasons | None = None
) -> AsyncGenerator[Happening, None]:
    """Chunks beyond sequence `after`, and the record whenever its status (or what it waits for) is a new one.

    With `reasons`, the record of one that has been waiting for a while also says what for where only they know.

    The last item of an execution that has ended is its record, behind everything that it wrote. The iterator also
    ends, without that, when the server closes or the record was removed. Raises StorageUnavailable.
    """
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        wakeups = await stack.enter_async_context(_Wakeups(context, execution_topic(execution_id)))
        told: tuple[object, ...] | None = None
        begun_at = spoken_at = loop.time()
        while True:
            # The record before the log: what a record with a final status leaves behind is all there.
            execution = await context.storage.get_execution(execution_id)
            if execution is None:
                return
            has_waited = loop.time() - begun_at >= context.limits.follow_poll_seconds
            if reasons is not None and execution.status is Status.ENQUEUED and has_waited:
                execution = replace(execution, waiting_for=await reasons.of(execution))
            state = (execution.status, execution.waiting_for)
            if state != told and not execution.status.is_final:
                told, spoken_at = state, loop.time()
                yield execution
            while chunks := await context.storage.read_log(
                execution_id, after=after, stream=None, max_bytes=PIECE_BYTES
            ):
                for chunk in chunks:
                    yield chunk
                after, spoken_at = chunks[-1].sequence, loop.time()
            if execution.status.is_final:
                yield execution
                return
            if loop.time() - spoken_at >= context.limits.heartbeat_seconds:
                spoken_at = loop.time()
                yield Heartbeat()
            until_heartbeat = spoken_at + context.limits.heartbeat_seconds - loop.time()
            await wakeups.wait(min(context.limits.follow_poll_seconds, max(0.01, until_heartbeat)))
            if context.closing.is_set():
                return


class _Wakeups:
    """Waiting for one topic, or the end of the server; without the queue, for time to pass."""

    def __init__(self, context: ApiContext, topic: str) -> None:
        self._context = context
        self._topic = topic
        self._stack = AsyncExitStack()
        self._subscription: Subscription | None = None
        self._closing: asyncio.Task[object] | None = None

    async def __aenter__(self) -> _Wakeups:
        self._closing = asyncio.create_task(self._context.closing.wait())
        queue: Queue = self._context.queue
        try:
            self._subscription = await self._stack.enter_async_context(queue.subscribe([self._topic]))
        except QueueUnavailable as error:
            log.warning("following without wake-ups", topic=self._topic, error=str(error))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._closing is not None:
            self._closing.cancel()
        await self._stack.aclose()

    async def wait(self, timeout: float) -> None:
        """Return when the topic was published, the server closes, or after `timeout` seconds."""
        closing = self._closing
        if closing is None:
            raise RuntimeError("waiting outside of the context")
        waiting = asyncio.create_task(self._next(timeout))
        try:
            await asyncio.wait({waiting, closing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    async def _next(self, timeout: float) -> None:
        if self._subscription is None:
            await asyncio.sleep(timeout)
            return
        try:
            await self._subscription.next(timeout)
        except QueueUnavailable as error:
            log.warning("following goes on without wake-ups", topic=self._topic, error=str(error))
            self._subscription = None
