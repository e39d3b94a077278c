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
from fastlane_core.engine.failures import Failures
from fastlane_core.engine.replacing import JobReplacement
from fastlane_core.engine.retrying import Retrying
from fastlane_core.engine.routing import Routing
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import JobSubmission
from fastlane_core.engine.task_limits import TaskLimits
from fastlane_core.settings import ApiSettings, GeneralSettings

#: Key of the context among the extensions of the Quart application.
EXTENSION = "fastlane"


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiLimits:
    """Bounds that are no settings; durations in seconds, sizes in bytes."""

    #: Output per stream in the JSON of an execution, and of each execution within a job.
    execution_log_bytes: int = 1024 * 1024
    listed_log_bytes: int = 64 * 1024
    #: Between two signs of life on a quiet stream.
    heartbeat_seconds: float = 15.0
    #: Between two looks at storage while following, should a wake-up be lost.
    follow_poll_seconds: float = 2.0
    #: Clients that follow output at a time; further ones are asked to come back.
    followers: int = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiContext:
    """The parts that the API serves from."""

    storage: Storage
    queue: Queue
    routing: Routing
    submission: JobSubmission
    task_limits: TaskLimits
    stopping: Stopping
    replacement: JobReplacement
    retrying: Retrying
    failures: Failures
    general: GeneralSettings
    api: ApiSettings
    #: Longest time-out that a job may have, and that of a job which names none; seconds.
    hard_timeout: float
    #: The same of its waiting and its preparation; None for no such time.
    queue_timeout: float | None = None
    pull_timeout: float | None = None
    #: Executions that may run at a time over all lanes; None for as many as the lanes have room for.
    max_running: int | None = None
    version: str
    #: Address that the server listens on. Bound to loopback, only loopback names are taken as `Host`.
    host: str
    port: int
    #: Now, as Unix time in seconds.
    clock: Callable[[], float]
    #: Model of the job option of each runner, by payload field, which is the runner's name.
    runner_options: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    #: Old payload fields, and the option that each means, by runner.
    option_aliases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    #: Models of the payload fields that notifiers own, by payload field.
    notifier_payload: Mapping[str, type[BaseModel]] = field(default_factory=dict)
    #: Set when the server is about to end: streams end then.
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    limits: ApiLimits = field(default_factory=ApiLimits)


def current_context() -> ApiContext:
    """The context of the application that handles the current request."""
    return cast("ApiContext", current_app.extensions[EXTENSION])
