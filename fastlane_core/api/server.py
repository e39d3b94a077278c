"""Serving the API by hypercorn's protocols."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping

from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.utils import wrap_app
from quart import Quart

from fastlane_core.api.context import ApiContext
from fastlane_core.api.tcp_connection import TcpConnection

#: Seconds that requests under way get to end, once streams have been ended.
_GRACE = 1.0
#: Seconds that those which were cut get to close their connection.
_CUT = 0.2


async def serve(
    app: Quart, context: ApiContext, listener: socket.socket, until_stopped: Callable[[], Awaitable[None]]
) -> None:
    """Serve from a bound socket until `until_stopped` returns, which sets `context.closing` so that streams end.

    What hypercorn's own `serve` does for one socket without TLS, but with connections of another class.
    """
    loop = asyncio.get_running_loop()
    config = _config(context)
    asgi = wrap_app(app, config.wsgi_max_body_size, "asgi")
    worker = WorkerContext(None)
    connections: dict[asyncio.Task[None], TcpConnection] = {}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or worker.terminated.is_set():
            writer.close()
            return
        connections[task] = connection = TcpConnection(asgi, loop, config, worker, {}, reader, writer)
        try:
            await connection
        except asyncio.CancelledError:
            # Cut as the server ends; asyncio would tell of it with a traceback.
            if not worker.terminated.is_set():
                raise
        finally:
            del connections[task]

    await app.startup()
    try:
        server = await asyncio.start_server(connected, sock=listener, backlog=config.backlog)
        try:
            await until_stopped()
        finally:
            server.close()
            await worker.terminated.set()
            await _end(connections)
    finally:
        await app.shutdown()


async def _end(connections: Mapping[asyncio.Task[None], TcpConnection]) -> None:
    """Return when all have ended: by themselves, or because the time for that is over."""
    for each in connections.values():
        each.close_if_idle()
    await _wait(connections, _GRACE)
    for task in connections:
        task.cancel()
    await _wait(connections, _CUT)
    # Those of clients that do not read wait for ever to be closed in good order.
    for each in connections.values():
        each.abort()
    await _wait(connections, _CUT)


async def _wait(tasks: Collection[asyncio.Task[None]], seconds: float) -> None:
    if tasks:
        await asyncio.wait(list(tasks), timeout=seconds)


def _config(context: ApiContext) -> Config:
    config = Config()
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    # A task id of 10,000 characters of four bytes reaches the application, which refuses it with an answer of its own.
    config.h11_max_incomplete_size = 128 * 1024
    config.websocket_ping_interval = context.api.ws_ping_seconds
    # Clients have nothing to say on a WebSocket.
    config.websocket_max_message_size = 64 * 1024
    return config
