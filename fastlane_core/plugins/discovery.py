"""Finding plugins, importing them, and checking what they declare before any of it is used."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib.metadata import EntryPoint, entry_points

import pluggy

from fastlane_core.errors import PluginError
from fastlane_core.hookspecs import HOOKS_VERSION, PROJECT, Hooks

#: Entry-point group of plugins.
GROUP = "fastlane"
#: Plugins that are part of core, by name; registered first, through the same hooks as all others.
BUILT_IN: Mapping[str, str] = {
    "sqlite": "fastlane_core.builtin.sqlite.plugin",
    "mongo": "fastlane_core.builtin.mongo.plugin",
    "redis": "fastlane_core.builtin.redis.plugin",
    "process": "fastlane_core.builtin.process.plugin",
}
#: Attribute by which a plugin tells the version of the hooks that it needs, as `(1, 0)`.
VERSION_ATTRIBUTE = "FASTLANE_HOOKS_VERSION"

#: Hooks that are awaited; all others are plain functions.
ASYNC_HOOKS = frozenset({"fastlane_checks", "fastlane_startup", "fastlane_shutdown", "fastlane_event"})
HOOKS = frozenset(name for name in vars(Hooks) if name.startswith(f"{PROJECT}_"))


class PluginState(StrEnum):
    """What became of a plugin that was found."""

    LOADED = "loaded"
    #: The setting BLOCKED_PLUGINS names it.
    BLOCKED = "blocked"
    #: It could not be loaded, and nothing needs it.
    BROKEN = "broken"


@dataclass(frozen=True, kw_only=True, slots=True)
class PluginInfo:
    """A plugin, and where it comes from."""

    name: str
    #: `package.module` or `package.module:attribute`.
    module: str
    #: None for one that no distribution brought: built in, or registered by a test.
    distribution: str | None = None
    version: str | None = None
    state: PluginState = PluginState.LOADED
    #: Why it is broken, as a sentence; "" if it is not.
    problem: str = ""

    @property
    def names(self) -> frozenset[str]:
        """What the settings may call it: its name, or its distribution's."""
        return frozenset({self.name, self.distribution or self.name})

    @property
    def origin(self) -> str:
        """Name and origin for people: `docker (fastlane_docker.plugin of fastlane-docker 0.1.0)`."""
        source = f" of {self.distribution} {self.version}" if self.distribution else ""
        return f"{self.name} ({self.module}{source})"


@dataclass(frozen=True, slots=True)
class FoundPlugin:
    """A plugin that is installed, not yet imported."""

    info: PluginInfo
    #: Imports it; may raise anything.
    load: Callable[[], object]
    is_built_in: bool = False


def find_plugins(
    built_in: Mapping[str, str] = BUILT_IN, found: Iterable[EntryPoint] | None = None
) -> list[FoundPlugin]:
    """The built-in plugins, then those of installed distributions by name.

    Raises PluginError when two have the same name.
    """
    plugins = [
        FoundPlugin(PluginInfo(name=name, module=module), partial(importlib.import_module, module), True)
        for name, module in built_in.items()
    ]
    for entry_point in sorted(entry_points(group=GROUP) if found is None else found, key=lambda each: each.name):
        distribution = entry_point.dist
        info = PluginInfo(
            name=entry_point.name,
            module=entry_point.value,
            distribution=distribution.name if distribution else None,
            version=distribution.version if distribution else None,
        )
        plugins.append(FoundPlugin(info, entry_point.load))
    by_name: dict[str, PluginInfo] = {}
    for plugin in plugins:
        other = by_name.setdefault(plugin.info.name, plugin.info)
        if other is not plugin.info:
            raise PluginError(
                f"two plugins have the same name: {other.origin} and {plugin.info.origin}; uninstall one of them"
            )
    return plugins


def check_plugin(plugin: object, manager: pluggy.PluginManager) -> None:
    """Refuse a plugin whose hooks would be passed over or could not be called. Raises PluginError."""
    _check_version(getattr(plugin, VERSION_ATTRIBUTE, HOOKS_VERSION))
    marked = 0
    for name in dir(plugin):
        options = manager.parse_hookimpl_opts(plugin, name)
        function: object = getattr(plugin, name, None)
        if options is None:
            if name in HOOKS and inspect.isroutine(function):
                raise PluginError(f"the function {name} is not marked with @hookimpl, so it would never be called")
            continue
        marked += 1
        _check_hook(options.get("specname") or name, function, options)
    if not marked:
        raise PluginError("it has no function that is marked with fastlane_core.hookspecs.hookimpl")


def _check_version(wanted: object) -> None:
    match wanted:
        case (int() as major, int() as minor):
            has_major, has_minor = HOOKS_VERSION
            if major != has_major or minor > has_minor:
                raise PluginError(
                    f"it needs version {major}.{minor} of the hooks, but this Fastlane has {has_major}.{has_minor}: "
                    f"install a {'newer' if (major, minor) > HOOKS_VERSION else 'matching'} one of the two"
                )
        case _:
            raise PluginError(f"its {VERSION_ATTRIBUTE} is not two numbers like {HOOKS_VERSION}")


def _check_hook(name: str, function: object, options: pluggy.HookimplOpts) -> None:
    if name not in HOOKS:
        if options["optionalhook"]:
            return
        nearest = difflib.get_close_matches(name, HOOKS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "fastlane_core/hookspecs.py has all there are"
        raise PluginError(f"there is no hook {name}: {hint}")
    if any(options[option] for option in ("wrapper", "hookwrapper", "tryfirst", "trylast")):
        raise PluginError(f"its {name} wraps others or wants an order: each plugin's hooks are called by themselves")
    if name in ASYNC_HOOKS and not inspect.iscoroutinefunction(function):
        raise PluginError(f"its {name} has to be an `async def`")
    if name not in ASYNC_HOOKS and (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
        raise PluginError(f"its {name} has to be a plain function: nothing awaits a registration hook")
