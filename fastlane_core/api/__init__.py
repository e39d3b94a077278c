"""The HTTP and WebSocket API: `create_api` makes the application, `serve_api` serves it until it is asked to end."""

from fastlane_core.api.application import create_api
from fastlane_core.api.context import ApiContext, ApiOptions
from fastlane_core.api.server import serve_api

__all__ = ["ApiContext", "ApiOptions", "create_api", "serve_api"]
