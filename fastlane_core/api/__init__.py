"""The HTTP and WebSocket API: `create_api` makes the application, `server_config` how hypercorn is to serve it."""

from fastlane_core.api.application import create_api
from fastlane_core.api.context import ApiContext, ApiLimits
from fastlane_core.api.server import server_config

__all__ = ["ApiContext", "ApiLimits", "create_api", "server_config"]
