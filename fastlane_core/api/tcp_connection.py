"""One client's connection, with less to do for each request than hypercorn's own.

Hypercorn sends the head of an answer, its body and its end one by one, and cancels and makes two tasks around each
request to close connections that stay idle: together a seventh of what an empty request costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.events import Closed, Event, RawData
from hypercorn.typing import TaskGroup

from fastlane_core.coarse_timeout import CoarseTimer

#: Bytes that wait at most for what follows them in the same turn of the event loop.
_GATHERED = 64 * 1024


class TcpConnection(TCPServer):
    """Sends what comes in one turn of the event loop together; closes itself when no request comes for a while."""

    def __init__(self, *arguments: Any) -> None:
        """As TCPServer, in the event loop that it works in."""
        super().__init__(*arguments)
        self._idle = _Idle(self.config.keep_alive_timeout, self.close_if_idle)
        # Its type is that of the first value; what it has to be is hypercorn's SingleTask.
        self.idle_task = self._idle  # type: ignore[assignment]
        self._unsent = bytearray()
        self._closing: asyncio.Task[None] | None = None

    async def protocol_send(self, event: Event) -> None:
        """What hypercorn's protocols have to say; returns when there is room for more."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            if self.context.terminated.is_set():
                # The last request of a connection that was not idle when the server ended.
                self.close_if_idle()
            return
        if not event.data:
            return
        if not self._unsent:
            self.loop.call_soon(self._send)
        self._unsent += event.data
        try:
            if len(self._unsent) >= _GATHERED:
                self._send()
            # Of what was sent before: a client that reads slowly holds up whoever sends, a turn later.
            await self.writer.drain()
        except (ConnectionError, RuntimeError):
            await self.protocol.handle(Closed())

    def close_if_idle(self) -> None:
        """Close it now, unless a request is under way."""
        if self._idle.is_idle:
            self._closing = self.loop.create_task(self._close_idle())

    async def _close_idle(self) -> None:
        # A request may have come before this task's turn.
        if self._idle.is_idle:
            await self._initiate_server_close()

    def abort(self) -> None:
        """Drop it, with what the client has not read."""
        self.writer.transport.abort()

    async def _close(self) -> None:
        self._send()
        await super()._close()

    def _send(self) -> None:
        if self._unsent:
            data = bytes(self._unsent)
            self._unsent.clear()
            # What comes after the end goes nowhere; `drain` tells its sender.
            with suppress(RuntimeError):
                self.writer.write(data)


class _Idle:
    """The time without a request, where hypercorn has a task that sleeps (its SingleTask)."""

    def __init__(self, seconds: float, expire: Callable[[], None]) -> None:
        self._timer = CoarseTimer(seconds, expire)
        self.is_idle = False

    async def restart(self, task_group: TaskGroup, action: Callable[..., Any]) -> None:
        """A request has ended, or the connection is new."""
        self.is_idle = True
        self._timer.start()

    async def stop(self) -> None:
        """A request has come, or the connection is at its end."""
        self.is_idle = False
        self._timer.stop()
