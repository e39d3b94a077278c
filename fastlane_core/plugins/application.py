"""Settings and plugins, which need each other: the settings say what plugins to load, these declare settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import structlog

from fastlane_core.errors import SettingsError
from fastlane_core.plugins.discovery import FoundPlugin
from fastlane_core.plugins.registry import PluginRegistry
from fastlane_core.settings import GeneralSettings, Settings, read_general

log = structlog.get_logger(__name__)


def load_application_parts(
    path: Path | None,
    environment: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
    *,
    found: Iterable[FoundPlugin] | None = None,
) -> tuple[Settings, PluginRegistry]:
    """The settings and the plugins of one application; what is not fatal is logged as warnings.

    `path` is a settings file or directory, `environment` the variables of the process, `overrides` what the command
    line says, by key; `found` replaces the plugins that are installed. Raises SettingsError, PluginError.
    """
    general = read_general(path=path, environment=environment, overrides=overrides or {})
    registry = PluginRegistry.load(general, found)
    settings = Settings.load(
        registry.settings_sections(), path=path, environment=environment, overrides=overrides or {}
    )
    _check_choices(settings, registry)
    for notice in (*settings.notices, *registry.notices):
        log.warning(notice)
    return settings, registry


def _check_choices(settings: Settings, registry: PluginRegistry) -> None:
    """Refuse settings that name a storage, queue or runner which no loaded plugin offers."""
    general = settings.section(GeneralSettings)
    _check_choice(settings, registry, "STORAGE", [general.storage], [each.name for each in registry.storages()])
    _check_choice(settings, registry, "QUEUE", [general.queue], [each.name for each in registry.queues()])
    _check_choice(settings, registry, "RUNNERS", general.runners, [each.name for each in registry.runners()])


def _check_choice(
    settings: Settings, registry: PluginRegistry, key: str, chosen: Sequence[str], offered: Sequence[str]
) -> None:
    for name in chosen:
        if name in offered:
            continue
        nearest = difflib.get_close_matches(name, offered, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"there are: {', '.join(offered) or 'none'}"
        broken = "".join(f"; {notice}" for notice in registry.notices)
        raise SettingsError(
            f"{settings.origin(key)}: {key} names {name!r}, which no loaded plugin offers; {hint}{broken}"
        )
