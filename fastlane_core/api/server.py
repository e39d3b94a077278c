"""How hypercorn serves the API."""

from __future__ import annotations

from hypercorn.config import Config

from fastlane_core.api.context import ApiContext

#: Seconds that requests under way get to end, once streams have been ended.
_GRACE = 1.0


def server_config(context: ApiContext) -> Config:
    """The configuration for `hypercorn.asyncio.serve`; what it listens on is for the caller to say.

    Whoever serves sets `context.closing` as soon as the server is to end, so that streams end by themselves.
    """
    config = Config()
    config.graceful_timeout = _GRACE
    config.include_server_header = False
    config.accesslog = None
    config.errorlog = None
    # A task id of 10,000 characters of four bytes reaches the application, which refuses it with an answer of its own.
    config.h11_max_incomplete_size = 128 * 1024
    config.websocket_ping_interval = context.api.ws_ping_seconds
    # Clients have nothing to say on a WebSocket.
    config.websocket_max_message_size = 64 * 1024
    return config
