"""What the API works with: everything it needs, handed in once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import cast

from pydantic import BaseModel
from quart import current_app

from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.storage import Storage
from fastlane_core.engine.routing import Routing
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import JobSubmission

#: Key of the context among the extensions of the Quart application.
EXTENSION = "fastlane"


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiOptions:
    """How the API behaves; durations in seconds, sizes in bytes."""

    #: Address that the server listens on. Bound to loopback, only loopback names are taken as `Host`.
    bind_host: str = "127.0.0.1"
    bind_port: int = 10000
    #: Host (and port) in the URLs of answers; None takes the one that each request names.
    server_name: str | None = None
    #: Origins of pages in browsers that may use this API; "*" is any.
    cors_origins: tuple[str, ...] = ()
    #: Tasks on a page.
    per_page: int = 10
    max_body_bytes: int = 1024 * 1024
    #: Longest time-out that a job may have, and the one of a job that names none.
    hard_timeout_seconds: float = 1800.0
    #: Values of keys that contain one of these are hidden.
    redacted_words: tuple[str, ...] = ("password", "key", "secret", "client_id")
    #: Output per stream in the JSON of an execution, and of each execution within a job.
    execution_log_bytes: int = 1024 * 1024
    listed_log_bytes: int = 64 * 1024
    #: Between two signs of life on a quiet stream.
    heartbeat_seconds: float = 15.0
    #: Between two looks at storage while following, should a wake-up be lost.
    follow_poll_seconds: float = 2.0
    #: Clients that follow output at a time; further ones are asked to come back.
    max_followers: int = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiContext:
    """The parts that the API serves from."""

    storage: Storage
    queue: Queue
    routing: Routing
    submission: JobSubmission
    stopping: Stopping
    version: str
    #: Now, as Unix time in seconds.
    clock: Callable[[], float]
    options: ApiOptions = field(default_factory=ApiOptions)
    #: Model of the job option of each runner, by payload field, which is the runner's name.
    runner_options: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    #: Models of the payload fields that notifiers own, by payload field.
    notifier_payloads: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    #: Set when the server is about to end: streams end then.
    closing: asyncio.Event = field(default_factory=asyncio.Event)


def current_context() -> ApiContext:
    """The context of the application that handles the current request."""
    return cast("ApiContext", current_app.extensions[EXTENSION])
