"""Every hook has a docstring, and a test named for it that runs it through a real registry."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click
import pytest
from pydantic import BaseModel, Field
from quart import Blueprint, Quart

from fastlane_core.contracts.error_reporter import ErrorReporter
from fastlane_core.contracts.metrics import MetricsSink
from fastlane_core.contracts.notifier import Notifier
from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.runner import Runner
from fastlane_core.contracts.storage import Storage
from fastlane_core.hookspecs import (
    AdminPage,
    CheckContext,
    ErrorReporterPlugin,
    Finding,
    Hooks,
    Level,
    MetricsPlugin,
    NotifierPlugin,
    PluginContext,
    QueuePlugin,
    RunnerContext,
    RunnerPlugin,
    SettingsSection,
    StoragePlugin,
    hookimpl,
)
from fastlane_core.models import Event, EventKind
from fastlane_core.plugins import PluginInfo, PluginRegistry
from fastlane_core.plugins.discovery import ASYNC_HOOKS, HOOKS
from fastlane_core.settings import Settings
from fastlane_core.testing.runner_context import GivenSettings, runner_context


class ShoutSettings(BaseModel):
    shout_volume: int = Field(default=11, description="How loud.")


class ShoutOptions(BaseModel):
    twice: bool = False


def never(context: PluginContext) -> Any:
    raise AssertionError(f"built with {context}")


class Shout:
    """A small plugin that uses every hook."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    @hookimpl
    def fastlane_settings(self) -> Iterator[SettingsSection]:
        yield SettingsSection(title="Shout", model=ShoutSettings)

    @hookimpl
    def fastlane_runners(self) -> Iterator[RunnerPlugin]:
        yield RunnerPlugin(name="shout", create=never, options=ShoutOptions)

    @hookimpl
    def fastlane_storages(self) -> Iterator[StoragePlugin]:
        yield StoragePlugin(name="echo", create=never)

    @hookimpl
    def fastlane_queues(self) -> Iterator[QueuePlugin]:
        yield QueuePlugin(name="chorus", create=never)

    @hookimpl
    def fastlane_notifiers(self) -> Iterator[NotifierPlugin]:
        yield NotifierPlugin(name="horn", create=never, payload={"horns": ShoutOptions})

    @hookimpl
    def fastlane_error_reporters(self) -> Iterator[ErrorReporterPlugin]:
        yield ErrorReporterPlugin(name="scream", create=never)

    @hookimpl
    def fastlane_metrics(self) -> Iterator[MetricsPlugin]:
        yield MetricsPlugin(name="decibel", create=never)

    @hookimpl
    def fastlane_blueprints(self, context: RunnerContext) -> Iterator[Blueprint]:
        blueprint = Blueprint("shout", __name__)

        @blueprint.get("/shout")
        async def shout() -> str:
            return f"HEY {context.deployment_id}"

        yield blueprint

    @hookimpl
    def fastlane_commands(self) -> Iterator[click.Command]:
        yield click.Command("shout", callback=lambda: click.echo("HEY"))

    @hookimpl
    def fastlane_admin_pages(self) -> Iterator[AdminPage]:
        yield AdminPage(title="Shouting", path="/shout")

    @hookimpl
    async def fastlane_checks(self, context: CheckContext) -> list[Finding]:
        return [Finding(level=Level.OK, subject="horn", message=f"can be heard by {context.deployment_id}")]

    @hookimpl
    async def fastlane_startup(self, context: PluginContext) -> None:
        self.calls.append(context)

    @hookimpl
    async def fastlane_shutdown(self) -> None:
        self.calls.append("shutdown")

    @hookimpl
    async def fastlane_event(self, event: Event) -> None:
        self.calls.append(event)


@pytest.fixture
def shout() -> Shout:
    return Shout()


@pytest.fixture
def registry(shout: Shout) -> PluginRegistry:
    registry = PluginRegistry()
    registry.register(shout, PluginInfo(name="shout", module=__name__))
    return registry


@pytest.fixture
def context() -> RunnerContext:
    return runner_context(deployment_id="choir", clock=lambda: 0.0)


def test_hook_fastlane_settings(registry: PluginRegistry) -> None:
    settings = Settings.load(registry.settings_sections(), path=None, environment={"FASTLANE_SHOUT_VOLUME": "3"})

    assert settings.section(ShoutSettings).shout_volume == 3


def test_hook_fastlane_runners(registry: PluginRegistry) -> None:
    assert list(registry.runners()) == [RunnerPlugin(name="shout", create=never, options=ShoutOptions)]


def test_hook_fastlane_storages(registry: PluginRegistry) -> None:
    assert list(registry.storages()) == [StoragePlugin(name="echo", create=never)]


def test_hook_fastlane_queues(registry: PluginRegistry) -> None:
    assert list(registry.queues()) == [QueuePlugin(name="chorus", create=never)]


def test_hook_fastlane_notifiers(registry: PluginRegistry) -> None:
    assert list(registry.notifiers()) == [NotifierPlugin(name="horn", create=never, payload={"horns": ShoutOptions})]


def test_hook_fastlane_error_reporters(registry: PluginRegistry) -> None:
    assert list(registry.error_reporters()) == [ErrorReporterPlugin(name="scream", create=never)]


def test_hook_fastlane_metrics(registry: PluginRegistry) -> None:
    assert list(registry.metrics()) == [MetricsPlugin(name="decibel", create=never)]


async def test_hook_fastlane_blueprints(registry: PluginRegistry, context: RunnerContext) -> None:
    app = Quart(__name__)
    for blueprint in registry.blueprints(context):
        app.register_blueprint(blueprint)

    response = await app.test_client().get("/shout")

    assert await response.get_data(as_text=True) == "HEY choir"


def test_hook_fastlane_commands(registry: PluginRegistry) -> None:
    (command,) = registry.commands()

    assert click.testing.CliRunner().invoke(command).output == "HEY\n"


def test_hook_fastlane_admin_pages(registry: PluginRegistry) -> None:
    assert list(registry.admin_pages()) == [AdminPage(title="Shouting", path="/shout")]


async def test_hook_fastlane_checks(registry: PluginRegistry) -> None:
    assert await registry.checks(check_context()) == {
        "shout": [Finding(level=Level.OK, subject="horn", message="can be heard by choir")]
    }


async def test_checks_that_fail_are_a_problem_and_cost_nobody_else_s() -> None:
    class Broken:
        @hookimpl
        async def fastlane_checks(self, context: CheckContext) -> list[Finding]:
            raise OSError("no voice")

    class Mute:
        @hookimpl
        async def fastlane_checks(self, context: CheckContext) -> None:
            return None

    registry = PluginRegistry()
    for name, plugin in (("broken", Broken()), ("mute", Mute()), ("shout", Shout())):
        registry.register(plugin, PluginInfo(name=name, module=__name__))
    found = await registry.checks(check_context())

    assert [each.level for name in ("broken", "mute", "shout") for each in found[name]] == ["problem", "problem", "ok"]
    assert "OSError: no voice" in found["broken"][0].message


def check_context() -> CheckContext:
    return CheckContext(
        settings=GivenSettings(),
        deployment_id="choir",
        api_bind=None,
        clock=lambda: 0.0,
        storage="echo",
        queue="chorus",
        runners=["shout"],
    )


async def test_hook_fastlane_startup(registry: PluginRegistry, shout: Shout, context: PluginContext) -> None:
    await registry.startup(context)

    assert shout.calls == [context]
    await registry.shutdown()


async def test_hook_fastlane_shutdown(registry: PluginRegistry, shout: Shout, context: PluginContext) -> None:
    await registry.startup(context)
    await registry.shutdown()

    assert shout.calls == [context, "shutdown"]


async def test_hook_fastlane_event(registry: PluginRegistry, shout: Shout, context: PluginContext) -> None:
    event = Event(kind=EventKind.EXECUTION_CHANGED, at=1.0)
    await registry.startup(context)

    registry.emit(event)
    await registry.shutdown()

    assert shout.calls == [context, event, "shutdown"]


@pytest.mark.parametrize("hook", sorted(HOOKS))
def test_every_hook_is_documented_tested_and_used_here(hook: str) -> None:
    specification = getattr(Hooks, hook)

    assert (inspect.getdoc(specification) or "").strip()
    assert hasattr(sys.modules[__name__], f"test_hook_{hook}")
    assert hasattr(Shout, hook)
    assert inspect.iscoroutinefunction(specification) == (hook in ASYNC_HOOKS)


@pytest.mark.parametrize("contract", [Runner, Storage, Queue, Notifier, ErrorReporter, MetricsSink, RunnerContext])
def test_every_method_of_what_plugins_implement_is_documented(contract: type) -> None:
    methods: Iterable[tuple[str, object]] = inspect.getmembers(contract, inspect.isfunction)

    undocumented = [name for name, method in methods if not name.startswith("_") and not inspect.getdoc(method)]
    assert undocumented == []
