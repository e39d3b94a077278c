"""One Fastlane put together from settings and plugins: what every process of it, and every test, starts from."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from fastlane_core import __version__
from fastlane_core.api.context import ApiContext
from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.runner import Runner
from fastlane_core.contracts.storage import Storage
from fastlane_core.engine.backoff import Backoff
from fastlane_core.engine.context import Duties, EngineOptions, WorkerContext
from fastlane_core.engine.failures import Failures
from fastlane_core.engine.faultpoints import Reach, pass_by
from fastlane_core.engine.identifiers import new_id
from fastlane_core.engine.presence import APIS_SCOPE, Identity, Presence, api_binds
from fastlane_core.engine.records import confirm_start
from fastlane_core.engine.replacing import JobReplacement
from fastlane_core.engine.retrying import Retrying
from fastlane_core.engine.routing import Routing, TaskLimit
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import JobSubmission
from fastlane_core.engine.task_limits import TaskLimits
from fastlane_core.engine.worker import Worker
from fastlane_core.errors import RevisionConflict, SettingsError
from fastlane_core.hookspecs import PluginContext, QueuePlugin, RunnerContext, StoragePlugin
from fastlane_core.models import Event
from fastlane_core.plugins import PluginRegistry, load_application_parts
from fastlane_core.settings import ApiSettings, GeneralSettings, Settings, WorkerSettings

if TYPE_CHECKING:
    from quart import Blueprint

log = structlog.get_logger(__name__)

_DAY = 86_400.0
#: Scope and key under which a deployment keeps its id.
_DEPLOYMENT_SCOPE, _DEPLOYMENT_KEY = "deployment", "id"


@dataclass(frozen=True, kw_only=True, slots=True)
class Application:
    """Everything that one process of Fastlane holds open."""

    settings: Settings
    plugins: PluginRegistry
    storage: Storage
    queue: Queue
    routing: Routing
    #: What plugins of this process are built with.
    context: RunnerContext
    identity: Identity

    @property
    def blueprints(self) -> Sequence[Blueprint]:
        """What plugins add to the API."""
        return self.plugins.blueprints(self.context)

    def api_context(self, *, host: str, port: int, closing: asyncio.Event) -> ApiContext:
        """What the API of this process works with."""
        enabled = {runner.name for runner in self.routing.runners}
        runners = {each.name: each for each in self.plugins.runners() if each.name in enabled}
        storage, queue, clock = self.storage, self.queue, self.context.clock
        submission = JobSubmission(storage, queue, self.routing, clock)
        stopping = Stopping(storage, queue, clock)
        limits = self.settings.section(WorkerSettings)
        return ApiContext(
            storage=storage,
            queue=queue,
            routing=self.routing,
            submission=submission,
            task_limits=TaskLimits(storage, queue, clock),
            stopping=stopping,
            replacement=JobReplacement(storage, queue, submission, stopping),
            retrying=Retrying(storage, queue, self.routing, stopping, clock),
            failures=Failures(storage, queue, self.routing, clock),
            general=self.settings.section(GeneralSettings),
            api=self.settings.section(ApiSettings),
            hard_timeout=limits.hard_execution_timeout_seconds,
            queue_timeout=limits.queue_timeout_seconds,
            pull_timeout=limits.pull_timeout_seconds,
            max_running=limits.max_running,
            runner_options={name: each.options for name, each in runners.items() if each.options is not None},
            option_aliases={name: each.aliases for name, each in runners.items()},
            notifier_payload={name: model for each in self.plugins.notifiers() for name, model in each.payload.items()},
            version=__version__,
            host=host,
            port=port,
            clock=clock,
            closing=closing,
        )

    def worker(
        self,
        worker_id: str | None = None,
        *,
        lanes: Sequence[str] = (),
        duties: Duties | None = None,
        reach: Reach = pass_by,
    ) -> Worker:
        """A worker of this process.

        `lanes` are names or beginnings (`docker:gpu*`) of lanes to claim from, all if there are none; `reach` is called
        at each fault point. Raises SettingsError for lanes that do not exist.
        """
        settings = self.settings.section(WorkerSettings)
        context = WorkerContext(
            worker=worker_id or new_id(),
            deployment_id=self.context.deployment_id,
            storage=self.storage,
            queue=self.queue,
            routing=self.routing,
            options=replace(
                engine_options(settings),
                lanes=self.routing.lanes_matching(lanes) if lanes else None,
                duties=duties or Duties(),
            ),
            clock=self.context.clock,
            emit=self.plugins.emit,
            report=self._report,
            reach=reach,
            identity=self.identity,
        )
        return Worker(context, drain_seconds=settings.drain_seconds)

    def api_presence(self) -> Presence:
        """The entry of an API of this process among those of the deployment."""
        return Presence(self.storage, self.context.clock, self.identity, scope=APIS_SCOPE, name=new_id())

    def _report(self, error: BaseException, event: Event) -> None:
        self.plugins.emit(event)


def engine_options(settings: WorkerSettings) -> EngineOptions:
    """How the settings want workers to behave."""
    return EngineOptions(
        lease_seconds=settings.lease_seconds,
        concurrency=settings.worker_concurrency,
        max_running=settings.max_running,
        poll_seconds=settings.worker_sleep_time_ms / 1000,
        stop_grace_seconds=settings.stop_grace_seconds,
        hard_timeout_seconds=settings.hard_execution_timeout_seconds,
        max_log_bytes=settings.max_log_bytes,
        reconcile_interval_seconds=settings.reconcile_interval_seconds,
        engine_lost_after_seconds=settings.engine_lost_after_seconds,
        keep_finished_seconds=settings.keep_finished_days and settings.keep_finished_days * _DAY,
        retry_backoff=Backoff(
            first=settings.exponential_backoff_min_ms / 1000,
            factor=settings.exponential_backoff_factor,
            cap=settings.exponential_backoff_max_ms / 1000,
            jitter=settings.exponential_backoff_jitter,
        ),
    )


@asynccontextmanager
async def open_application(
    path: Path | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    overrides: Mapping[str, object] | None = None,
    api_bind: str | None = None,
    clock: Callable[[], float] = time.time,
    only_look: bool = False,
) -> AsyncIterator[Application]:
    """Load settings and plugins, open storage and queue, and close them again.

    `overrides` win over file and environment; `api_bind` is the address that an API of this process will listen on.
    With `only_look` nothing is made or changed, and SchemaNotReady raised where something would have to be.
    Raises SettingsError, PluginError, StorageError, QueueError.
    """
    settings, plugins = load_application_parts(path, environment or {}, overrides)
    general = settings.section(GeneralSettings)
    before = PluginContext(settings=settings, deployment_id=general.deployment_id, api_bind=api_bind, clock=clock)
    for notice in (*settings.notices, *plugins.notices):
        log.warning(notice)
    storage_plugin = next(each for each in plugins.storages() if each.name == general.storage)
    queue_plugin = next(each for each in plugins.queues() if each.name == general.queue)
    storage = storage_plugin.create(before)
    await (storage.open_to_look() if only_look else storage.open())
    try:
        deployment_id = general.deployment_id or await _kept_deployment_id(storage, make=not only_look)
        # Two storages never share a queue, also where the settings give neither Fastlane an id.
        queue = queue_plugin.create(replace(before, deployment_id=deployment_id))
        limits = settings.section(WorkerSettings)
        if limits.max_running is not None and not queue.counts_overall:
            raise SettingsError(
                f"MAX_RUNNING needs a queue that counts over all lanes, and {general.queue} as it is configured does "
                "not: its lanes lie on several servers. Limit the lanes or the tasks (TASK_LIMITS) instead"
            )
        await (queue.open_to_look() if only_look else queue.open())
        try:
            context = RunnerContext(
                settings=settings,
                deployment_id=deployment_id,
                api_bind=api_bind,
                clock=clock,
                storage=storage,
                emit=plugins.emit,
                confirm_start=partial(confirm_start, storage),
                api_binds=partial(_api_binds, storage, clock),
                stop_grace_seconds=limits.stop_grace_seconds,
            )
            await plugins.startup(context)
            try:
                yield Application(
                    settings=settings,
                    plugins=plugins,
                    storage=storage,
                    queue=queue,
                    routing=Routing(_enabled_runners(plugins, general.runners, context), _task_limits(limits)),
                    context=context,
                    identity=_identity(storage_plugin, queue_plugin),
                )
            finally:
                await plugins.shutdown()
        finally:
            await queue.close()
    finally:
        await storage.close()


def _identity(storage: StoragePlugin, queue: QueuePlugin) -> Identity:
    bound = {"STORAGE": (storage.name, storage.one_machine), "QUEUE": (queue.name, queue.one_machine)}
    one_machine = tuple(f"{key} = {name}" for key, (name, is_bound) in bound.items() if is_bound)
    return Identity(storage=storage.name, queue=queue.name, one_machine=one_machine)


def _task_limits(settings: WorkerSettings) -> Sequence[TaskLimit]:
    return [TaskLimit(pattern=re.compile(each.match), capacity=each.maxRunning) for each in settings.task_limits]


async def _api_binds(storage: Storage, clock: Callable[[], float]) -> frozenset[str]:
    return await api_binds(storage, now=clock())


def _enabled_runners(plugins: PluginRegistry, wanted: Sequence[str], context: RunnerContext) -> list[Runner]:
    installed = {each.name: each for each in plugins.runners()}
    return [installed[name].create(context) for name in enabled_runner_names(plugins, wanted)]


def enabled_runner_names(plugins: PluginRegistry, wanted: Sequence[str]) -> Sequence[str]:
    """The runners to use, where the setting RUNNERS names `wanted`."""
    return list(wanted) or [each.name for each in plugins.runners() if each.name != "process"] or ["process"]


async def _kept_deployment_id(storage: Storage, *, make: bool) -> str:
    """The id that this deployment's first process made; all that share the storage share it. "" if there is none."""
    while True:
        kept = await storage.get_state(_DEPLOYMENT_SCOPE, _DEPLOYMENT_KEY)
        if kept is not None:
            return str(kept.value["id"])
        if not make:
            return ""
        try:
            await storage.put_state(_DEPLOYMENT_SCOPE, _DEPLOYMENT_KEY, {"id": new_id()}, revision=0)
        except RevisionConflict:
            continue
