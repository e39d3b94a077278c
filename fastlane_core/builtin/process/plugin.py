"""The plugin: what the process runner registers."""

from __future__ import annotations

from collections.abc import Iterable

from fastlane_core.builtin.process.runner import ProcessRunner
from fastlane_core.builtin.process.settings import ProcessOptions, ProcessSettings
from fastlane_core.hookspecs import RunnerPlugin, SettingsSection, hookimpl


@hookimpl
def fastlane_settings() -> Iterable[SettingsSection]:
    """The keys PROCESS_*."""
    yield SettingsSection(title="Process runner", model=ProcessSettings)


@hookimpl
def fastlane_runners() -> Iterable[RunnerPlugin]:
    """The runner `process`."""
    yield RunnerPlugin(name=ProcessRunner.name, create=ProcessRunner, options=ProcessOptions)
