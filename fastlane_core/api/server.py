"""Serving the application by hypercorn inside the process's own event loop."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart

from fastlane_core.api.context import EXTENSION, ApiContext

#: Seconds that requests under way get to end, once streams have been ended.
_GRACE = 2.0


async def serve_api(
    app: Quart, *, until: Callable[[], Awaitable[None]], listener: socket.socket | None = None
) -> None:
    """Serve `app`, made by `create_api`, until `until` returns; then end its streams and let requests finish.

    Listens on the address of the context's options, or on `listener`, a bound socket.
    Raises OSError when the address cannot be bound.
    """
    context: ApiContext = app.extensions[EXTENSION]

    async def shutdown() -> None:
        await until()
        context.closing.set()

    await serve(app, _config(context, listener), shutdown_trigger=shutdown)


def _config(context: ApiContext, listener: socket.socket | None) -> Config:
    config = Config()
    if listener is not None:
        config.bind = [f"fd://{listener.fileno()}"]
    else:
        host = context.options.bind_host
        config.bind = [f"[{host}]:{context.options.bind_port}" if ":" in host else f"{host}:{context.options.bind_port}"]
    config.graceful_timeout = _GRACE
    config.include_server_header = False
    # Task ids of 255 characters take up to 3,060 bytes in a URL, and links may carry them twice.
    config.h11_max_incomplete_size = 64 * 1024
    config.websocket_ping_interval = 20.0
    # Clients have nothing to say on a WebSocket.
    config.websocket_max_message_size = 64 * 1024
    return config
