"""Every hook of Fastlane: the one file that a plugin author must read.

A plugin is a module (or object) named by an entry point of the group `fastlane`, whose functions are marked with
`hookimpl` and named as below. *Registration hooks* are plain functions that do no I/O and yield typed records; a name
registered twice is an error that names both origins. *Lifecycle and event hooks* are `async def`, which is checked at
load; one that fails is logged with its plugin's name and never slows or fails a job.

    from fastlane_core.hookspecs import RunnerPlugin, hookimpl

    @hookimpl
    def fastlane_runners():
        yield RunnerPlugin(name="mine", create=MyRunner, options=MyOptions)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

import pluggy
from pydantic import BaseModel

from fastlane_core.contracts.error_reporter import ErrorReporter
from fastlane_core.contracts.metrics import MetricsSink
from fastlane_core.contracts.notifier import Notifier
from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.runner import Runner
from fastlane_core.contracts.storage import Storage
from fastlane_core.models import Event, RunRequest

if TYPE_CHECKING:
    import click
    from quart import Blueprint

PROJECT = "fastlane"
#: Grows when a hook or argument is added (second number) or removed (first number).
HOOKS_VERSION = (1, 1)

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Section = TypeVar("Section", bound=BaseModel)


class SettingsSource(Protocol):
    """The settings, as plugins see them."""

    def section(self, model: type[Section]) -> Section:
        """The validated values of a section that `fastlane_settings` declared with this model."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginContext:
    """What a plugin gets to build its part with."""

    settings: SettingsSource
    #: Two Fastlanes that share an engine or a server have different ones.
    deployment_id: str
    #: The address that the API of this process listens on; None if it has none. `RunnerContext.api_binds` has all.
    api_bind: str | None
    #: Now, as Unix time in seconds.
    clock: Callable[[], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerContext(PluginContext):
    """What runners and blueprints get besides: state that all processes share, and the observers' ear."""

    storage: Storage
    #: Tells observers what happened; returns at once.
    emit: Callable[[Event], None]
    #: For runners that leave nothing on the engine by which a start that comes too late could be told: awaited between
    #: creating a run and starting it. What it raises goes through to core; what was created is left for others.
    confirm_start: Callable[[RunRequest], Awaitable[None]]
    #: The addresses that the APIs of the deployment listen on now, in whatever processes. Raises StorageUnavailable.
    api_binds: Callable[[], Awaitable[Collection[str]]]
    #: Seconds between asking a run to end and killing it, for runs that a runner ends by itself (STOP_GRACE_SECONDS).
    stop_grace_seconds: float = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingsSection:
    """Settings of one plugin.

    Each field of the model is one key: its name in upper case, described by the field's `description`, typed by its
    annotation. Keys are unique over all sections. Every field needs a default.
    """

    #: Heading in `fastlane config`.
    title: str
    model: type[BaseModel]
    #: Keys also read from the environment without the prefix `FASTLANE_`.
    bare_environment: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerPlugin:
    """A runner that can be built."""

    name: str
    create: Callable[[RunnerContext], Runner]
    #: Model of the job option named like the runner; None for a runner without options.
    options: type[BaseModel] | None = None
    #: Fields at the top of the payload, as the first Fastlane had them, each with the option that it is another way to
    #: say. Several runners may have the same: it means the option of the runner that the job goes to.
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.options.model_fields if self.options is not None else {}
        if unknown := sorted(set(self.aliases.values()) - set(known)):
            raise ValueError(f"the runner {self.name} has aliases of options that it has not: {', '.join(unknown)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StoragePlugin:
    """A storage that the setting STORAGE can name."""

    name: str
    create: Callable[[PluginContext], Storage]
    #: Whether all processes that share it must be on one machine: Fastlane refuses to run on a second one.
    one_machine: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class QueuePlugin:
    """A queue that the setting QUEUE can name."""

    name: str
    create: Callable[[PluginContext], Queue]
    #: Whether all processes that share it must be on one machine, as for storages.
    one_machine: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class NotifierPlugin:
    """A notifier, with the fields of the job payload that it owns."""

    name: str
    create: Callable[[PluginContext], Notifier]
    #: Model of each payload field, by field name.
    payload: dict[str, type[BaseModel]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorReporterPlugin:
    """An error reporter that can be built."""

    name: str
    create: Callable[[PluginContext], ErrorReporter]


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsPlugin:
    """A metrics sink that can be built."""

    name: str
    create: Callable[[PluginContext], MetricsSink]


@dataclass(frozen=True, kw_only=True, slots=True)
class AdminPage:
    """A page in the admin's menu, served by one of the plugin's blueprints."""

    title: str
    path: str


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    #: Worth knowing; Fastlane works.
    WARNING = "warning"
    #: Something does not work.
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What a check has found out about one thing. Carries no secrets."""

    level: Level
    #: What was looked at: `Docker host 10.0.0.5:2375`.
    subject: str
    #: What was found, as a sentence.
    message: str
    #: What to do about it, as a sentence; "" when nothing is to be done.
    advice: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckContext(PluginContext):
    """What checks get: there may be no storage and no queue in reach."""

    #: What the settings choose; a plugin checks only what is in use.
    storage: str
    queue: str
    runners: Collection[str]


class Hooks:
    """The specifications; each docstring says when the hook is called and what it gives."""

    # Registration

    @hookspec
    def fastlane_settings(self) -> Iterable[SettingsSection]:
        """Settings sections. Called first, when the plugin is loaded."""
        raise NotImplementedError

    @hookspec
    def fastlane_runners(self) -> Iterable[RunnerPlugin]:
        """Runners. Every process builds the enabled ones for routing; only workers open them."""
        raise NotImplementedError

    @hookspec
    def fastlane_storages(self) -> Iterable[StoragePlugin]:
        """Storages; the one that the setting STORAGE names is built."""
        raise NotImplementedError

    @hookspec
    def fastlane_queues(self) -> Iterable[QueuePlugin]:
        """Queues; the one that the setting QUEUE names is built."""
        raise NotImplementedError

    @hookspec
    def fastlane_notifiers(self) -> Iterable[NotifierPlugin]:
        """Notifiers; all are built."""
        raise NotImplementedError

    @hookspec
    def fastlane_error_reporters(self) -> Iterable[ErrorReporterPlugin]:
        """Error reporters; all are built."""
        raise NotImplementedError

    @hookspec
    def fastlane_metrics(self) -> Iterable[MetricsPlugin]:
        """Metrics sinks; all are built."""
        raise NotImplementedError

    @hookspec
    def fastlane_blueprints(self, context: RunnerContext) -> Iterable[Blueprint]:
        """Quart blueprints to mount at the root of the API."""
        raise NotImplementedError

    @hookspec
    def fastlane_commands(self) -> Iterable[click.Command]:
        """Subcommands of `fastlane`."""
        raise NotImplementedError

    @hookspec
    def fastlane_admin_pages(self) -> Iterable[AdminPage]:
        """Entries of the admin's menu."""
        raise NotImplementedError

    # Checks

    @hookspec
    async def fastlane_checks(self, context: CheckContext) -> Sequence[Finding]:
        """The plugin's own checks, for `fastlane doctor`: is what it needs in reach, its clock right, room on its disk?

        Changes nothing, and works when servers are down, for that is when it is asked. Has thirty seconds.
        """
        raise NotImplementedError

    # Lifecycle and events

    @hookspec
    async def fastlane_startup(self, context: PluginContext) -> None:
        """Called once in each process, inside its event loop, when storage and queue are open."""

    @hookspec
    async def fastlane_shutdown(self) -> None:
        """Called once before the process closes storage and queue; has two seconds."""

    @hookspec
    async def fastlane_event(self, event: Event) -> None:
        """Something happened in this process. Runs beside the job, never before it goes on."""
