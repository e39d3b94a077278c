"""What this distribution registers with Fastlane."""

from __future__ import annotations

from collections.abc import Iterator

from fastlane_core.hookspecs import RunnerPlugin, SettingsSection, hookimpl
from fastlane_docker.options import DockerOptions
from fastlane_docker.runner import DockerRunner
from fastlane_docker.settings import DockerSettings


@hookimpl
def fastlane_settings() -> Iterator[SettingsSection]:
    """The farm's settings."""
    yield SettingsSection(title="Docker farm", model=DockerSettings, bare_environment=frozenset({"DOCKER_HOSTS"}))


@hookimpl
def fastlane_runners() -> Iterator[RunnerPlugin]:
    """The runner `docker`."""
    yield RunnerPlugin(name="docker", create=DockerRunner, options=DockerOptions)
