"""What this distribution registers with Fastlane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fastlane_core.hookspecs import CheckContext, Finding, RunnerContext, RunnerPlugin, SettingsSection, hookimpl
from fastlane_docker.options.docker_options import DockerOptions
from fastlane_docker.runner import DockerRunner
from fastlane_docker.settings import DockerSettings

if TYPE_CHECKING:
    from quart import Blueprint

#: Keys that the first Fastlane read from the environment by these names.
_BARE = frozenset({"DOCKER_HOSTS", "DOCKER_CIRCUIT_BREAKER_MAX_FAILS", "DOCKER_CIRCUIT_BREAKER_RESET_TIMEOUT_SECONDS"})


@hookimpl
def fastlane_settings() -> Iterator[SettingsSection]:
    """The farm's settings."""
    yield SettingsSection(title="Docker farm", model=DockerSettings, bare_environment=_BARE)


@hookimpl
def fastlane_runners() -> Iterator[RunnerPlugin]:
    """The runner `docker`."""
    yield RunnerPlugin(
        name="docker", create=DockerRunner, options=DockerOptions, aliases={"additionalDNSEntries": "extraHosts"}
    )


@hookimpl
def fastlane_blueprints(context: RunnerContext) -> Iterator[Blueprint]:
    """The routes that blacklist and drain hosts."""
    from fastlane_docker.farm.blacklist import blacklist_blueprint

    yield blacklist_blueprint(context)


@hookimpl
async def fastlane_checks(context: CheckContext) -> Sequence[Finding]:
    """Whether each engine answers, and what its clock says."""
    if "docker" not in context.runners:
        return []
    from fastlane_docker.farm.checks import check_hosts

    return await check_hosts(context)
