"""The Quart application."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from quart import Blueprint, Quart
from quart.sessions import NullSession, SecureCookieSessionInterface
from quart.wrappers import BaseRequestWebsocket

from fastlane_core.api.answers import answer_errors
from fastlane_core.api.bodies import BoundedRequest
from fastlane_core.api.bulk import blueprint as bulk
from fastlane_core.api.connection import DirectConnection
from fastlane_core.api.context import EXTENSION, ApiContext
from fastlane_core.api.executions import blueprint as executions
from fastlane_core.api.failures import blueprint as failures
from fastlane_core.api.follow import blueprint as follow
from fastlane_core.api.jobs import blueprint as jobs
from fastlane_core.api.live import FOLLOWERS, Followers
from fastlane_core.api.lookup import read_address
from fastlane_core.api.openapi import blueprint as openapi
from fastlane_core.api.pages import blueprint as pages
from fastlane_core.api.payload import PAYLOAD_SCHEMA, PayloadSchema
from fastlane_core.api.retries import blueprint as retries
from fastlane_core.api.schedules import blueprint as schedules
from fastlane_core.api.security import guard
from fastlane_core.api.status import blueprint as status
from fastlane_core.api.tasks import blueprint as tasks
from fastlane_core.api.waiting import SharedReasons
from fastlane_core.api.websocket import blueprint as websocket


def create_api(context: ApiContext, blueprints: Iterable[Blueprint] = ()) -> Quart:
    """The application that serves `context`, with the blueprints of plugins mounted at its root.

    Every address is answered with and without a slash at its end, without a redirect.
    Raises SettingsError where two plugins own the same field of the job payload.
    """
    app = _Api("fastlane_core", static_folder=None, template_folder=None)
    app.session_interface = _NoSessions()
    app.request_class = BoundedRequest
    app.asgi_http_class = DirectConnection
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = context.api.max_body_bytes
    app.extensions[EXTENSION] = context
    app.extensions[PAYLOAD_SCHEMA] = PayloadSchema(
        runner_options=context.runner_options,
        notifier_payload=context.notifier_payload,
        option_aliases=context.option_aliases,
        hard_timeout=context.hard_timeout,
        queue_timeout=context.queue_timeout,
        pull_timeout=context.pull_timeout,
    )
    app.extensions[FOLLOWERS] = Followers(
        context.limits.followers, SharedReasons(context, seconds=context.limits.follow_poll_seconds)
    )
    answer_errors(app)
    guard(app, context)
    app.before_request(read_address)
    app.before_websocket(read_address)
    own = (tasks, bulk, jobs, schedules, retries, failures, executions, follow, pages, status, openapi, websocket)
    for blueprint in (*own, *blueprints):
        app.register_blueprint(blueprint)
    return app


class _Api(Quart):
    """Quart, which inspects each handler and each hook before every call to see whether it is asynchronous."""

    def __init__(self, import_name: str, **options: Any) -> None:
        super().__init__(import_name, **options)
        # Bounded: plugins may hand over functions that are made for one request.
        self._inspected = lru_cache(maxsize=1_024)(super().ensure_async)

    def ensure_async(self, func: Any) -> Any:
        """As Quart's, once for each function."""
        return self._inspected(func)


class _NoSessions(SecureCookieSessionInterface):
    """The API keeps none, so none needs to be looked for in each request."""

    _NONE = NullSession()

    async def open_session(self, app: Quart, request: BaseRequestWebsocket) -> NullSession:
        return self._NONE
