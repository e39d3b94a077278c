"""The HTTP and WebSocket API: `create_api` makes the application, `serve` serves it."""

from fastlane_core.api.application import create_api
from fastlane_core.api.context import ApiContext, ApiLimits
from fastlane_core.api.server import serve

__all__ = ["ApiContext", "ApiLimits", "create_api", "serve"]
