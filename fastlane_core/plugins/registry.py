"""The plugins of one application, and what they registered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

import pluggy

from fastlane_core.errors import PluginError
from fastlane_core.hookspecs import (
    PROJECT,
    AdminPage,
    CheckContext,
    ErrorReporterPlugin,
    Finding,
    Hooks,
    MetricsPlugin,
    NotifierPlugin,
    PluginContext,
    QueuePlugin,
    RunnerContext,
    RunnerPlugin,
    SettingsSection,
    StoragePlugin,
)
from fastlane_core.models import Event
from fastlane_core.plugins import records
from fastlane_core.plugins.discovery import HOOKS, FoundPlugin, PluginInfo, PluginState, check_plugin, find_plugins
from fastlane_core.plugins.dispatch import Observer, call_isolated, findings_of, stop_observers
from fastlane_core.plugins.records import (
    CORE,
    NameTaken,
    RecordKind,
    Records,
    collect,
    collect_at_load,
    said,
    take_name,
)
from fastlane_core.settings import CORE_SECTIONS, GeneralSettings

if TYPE_CHECKING:
    import click
    from quart import Blueprint

#: Seconds that a plugin's start-up and shut-down may take.
_STARTUP_TIMEOUT = 30.0
_SHUTDOWN_TIMEOUT = 2.0
#: Seconds that a plugin's checks may take.
_CHECKS_TIMEOUT = 30.0

Record = TypeVar("Record")


class PluginRegistry:
    """Plugins in the order in which they were registered: built in first, then by name. One per application."""

    def __init__(self, *, required: Iterable[str] = ()) -> None:
        """An empty one. `required` names plugins whose failure to start is fatal."""
        self._required = frozenset(required)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(Hooks)
        self._infos: list[PluginInfo] = []
        self._records = Records()
        self._hooks: list[tuple[PluginInfo, dict[str, pluggy.HookImpl]]] = []
        self._observers: list[Observer] = []

    @classmethod
    def load(cls, general: GeneralSettings, found: Iterable[FoundPlugin] | None = None) -> PluginRegistry:
        """Load every installed plugin that the settings do not block.

        One that cannot be loaded is left out, with its problem in `plugins`; that is a PluginError if it is built in
        or REQUIRED_PLUGINS names it, as is a name that two plugins register.
        """
        registry = cls(required=general.required_plugins)
        names: set[str] = set()
        for plugin in find_plugins() if found is None else found:
            names |= plugin.info.names
            if plugin.info.names & set(general.blocked_plugins):
                registry._infos.append(replace(plugin.info, state=PluginState.BLOCKED))
                continue
            registry._load(plugin)
        if missing := sorted(registry._required - names):
            raise PluginError(
                f"REQUIRED_PLUGINS names {', '.join(missing)}, which is not installed; there are: "
                f"{', '.join(sorted(names))}"
            )
        return registry

    def register(self, plugin: object, info: PluginInfo) -> None:
        """Add one plugin: a module, or an object with the marked functions.

        Raises PluginError, naming its origin, for hooks that do not exist or cannot be called, for what they yield
        that is not the hook's record, and for a name that is taken.
        """
        try:
            check_plugin(plugin, self._manager)
            self._manager.register(plugin, name=info.name)
        except (PluginError, pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(f"the plugin {info.origin} cannot be used: {error}") from error
        hooks = self._hooks_of(info)
        try:
            self._records.add(
                info.origin, collect_at_load({name: implementation.function for name, implementation in hooks.items()})
            )
        except NameTaken:
            self._manager.unregister(name=info.name)
            raise
        except PluginError as error:
            self._manager.unregister(name=info.name)
            raise PluginError(f"the plugin {info.origin} cannot be used: {error}") from error
        self._infos.append(info)
        self._hooks.append((info, hooks))
        if observing := hooks.get("fastlane_event"):
            self._observers.append(Observer(info.name, lambda event: _awaitable(observing, event=event)))

    def plugins(self) -> Sequence[PluginInfo]:
        """All plugins that were found, loaded or not."""
        return tuple(self._infos)

    @property
    def notices(self) -> Sequence[str]:
        """What the operator should know although it is not fatal: the plugins that are left out, as sentences."""
        return [f"plugin left out: {info.problem}" for info in self._infos if info.state is PluginState.BROKEN]

    def settings_sections(self) -> Sequence[SettingsSection]:
        """Core's own sections, then those of the plugins."""
        return [*CORE_SECTIONS, *self._records.of(records.SETTINGS)]

    def runners(self) -> Sequence[RunnerPlugin]:
        """What `fastlane_runners` yielded; names are unique, here as below."""
        return self._records.of(records.RUNNERS)

    def storages(self) -> Sequence[StoragePlugin]:
        """What `fastlane_storages` yielded."""
        return self._records.of(records.STORAGES)

    def queues(self) -> Sequence[QueuePlugin]:
        """What `fastlane_queues` yielded."""
        return self._records.of(records.QUEUES)

    def notifiers(self) -> Sequence[NotifierPlugin]:
        """What `fastlane_notifiers` yielded; each payload field has one owner among them and the runners."""
        return self._records.of(records.NOTIFIERS)

    def error_reporters(self) -> Sequence[ErrorReporterPlugin]:
        """What `fastlane_error_reporters` yielded."""
        return self._records.of(records.ERROR_REPORTERS)

    def metrics(self) -> Sequence[MetricsPlugin]:
        """What `fastlane_metrics` yielded."""
        return self._records.of(records.METRICS)

    def blueprints(self, context: RunnerContext) -> Sequence[Blueprint]:
        """What `fastlane_blueprints` yields for this context. Raises PluginError."""
        from quart import Blueprint

        kind = RecordKind("fastlane_blueprints", Blueprint, lambda each: [("blueprint", each.name)])
        return self._ask(kind, context=context)

    def commands(self, reserved: Iterable[str] = ()) -> Sequence[click.Command]:
        """What `fastlane_commands` yields; `reserved` are core's own names. Raises PluginError."""
        import click

        kind = RecordKind("fastlane_commands", click.Command, lambda each: [("command", each.name or "")])
        return self._ask(kind, [("command", name) for name in reserved])

    def admin_pages(self) -> Sequence[AdminPage]:
        """What `fastlane_admin_pages` yields. Raises PluginError."""
        return self._ask(RecordKind("fastlane_admin_pages", AdminPage, lambda each: [("admin page", each.path)]))

    async def checks(self, context: CheckContext) -> Mapping[str, Sequence[Finding]]:
        """What each plugin's `fastlane_checks` finds, by plugin; one that fails or takes too long is a problem."""
        asked = self._with("fastlane_checks")
        answers = await asyncio.gather(
            *(
                findings_of(
                    info.name,
                    cast("Awaitable[Sequence[Finding]]", hook.function(**_accepted(hook, {"context": context}))),
                    timeout=_CHECKS_TIMEOUT,
                )
                for info, hook in asked
            )
        )
        return {info.name: found for (info, _), found in zip(asked, answers, strict=True)}

    async def startup(self, context: PluginContext) -> None:
        """Call every plugin's `fastlane_startup`, and begin to hand out events.

        A failure is logged and isolated; that of a plugin which the settings require is a PluginError.
        """
        for info, hook in self._with("fastlane_startup"):
            call = _awaitable(hook, context=context)
            error = await call_isolated(info.name, "fastlane_startup", call, timeout=_STARTUP_TIMEOUT)
            if error is not None and info.names & self._required:
                raise PluginError(f"the required plugin {info.origin} did not start: {said(error)}") from error
        for observer in self._observers:
            observer.start()

    async def shutdown(self) -> None:
        """Hand out the events that wait, then call every plugin's `fastlane_shutdown`; two seconds for each."""
        await stop_observers(self._observers, timeout=_SHUTDOWN_TIMEOUT)
        await asyncio.gather(
            *(
                call_isolated(info.name, "fastlane_shutdown", _awaitable(hook), timeout=_SHUTDOWN_TIMEOUT)
                for info, hook in self._with("fastlane_shutdown")
            )
        )

    def emit(self, event: Event) -> None:
        """Tell every plugin that observes events. Returns at once, never raises; from the event loop's thread only."""
        for observer in self._observers:
            observer.emit(event)

    def _load(self, found: FoundPlugin) -> None:
        try:
            try:
                plugin = found.load()
            except (Exception, SystemExit) as error:
                raise PluginError(f"the plugin {found.info.origin} cannot be imported: {said(error)}") from error
            self.register(plugin, found.info)
        except NameTaken:
            raise
        except PluginError as error:
            if found.is_built_in or found.info.names & self._required:
                raise
            self._infos.append(replace(found.info, state=PluginState.BROKEN, problem=str(error)))

    def _hooks_of(self, info: PluginInfo) -> dict[str, pluggy.HookImpl]:
        return {
            name: implementation
            for name in HOOKS
            for implementation in getattr(self._manager.hook, name).get_hookimpls()
            if implementation.plugin_name == info.name
        }

    def _with(self, hook: str) -> Sequence[tuple[PluginInfo, pluggy.HookImpl]]:
        return [(info, hooks[hook]) for info, hooks in self._hooks if hook in hooks]

    def _ask(
        self, kind: RecordKind[Record], reserved: Iterable[tuple[str, str]] = (), **arguments: object
    ) -> Sequence[Record]:
        owners = dict.fromkeys(reserved, CORE)
        found: list[Record] = []
        for info, hook in self._with(kind.hook):
            try:
                each = collect(kind, hook.function, **_accepted(hook, arguments))
            except PluginError as error:
                raise PluginError(f"the plugin {info.origin} cannot be used: {error}") from error
            for record in each:
                for name in kind.names(record):
                    take_name(owners, name, info.origin)
            found += each
        return found


def _accepted(hook: pluggy.HookImpl, arguments: Mapping[str, object]) -> dict[str, object]:
    """Those of the arguments that the plugin's function takes: it may leave out what it does not need."""
    return {name: value for name, value in arguments.items() if name in hook.argnames}


def _awaitable(hook: pluggy.HookImpl, **arguments: object) -> Awaitable[None]:
    return cast("Awaitable[None]", hook.function(**_accepted(hook, arguments)))
