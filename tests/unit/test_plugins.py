"""Finding, checking and loading plugins: real distributions on disk, found by their entry points."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

import click
import pytest
from pydantic import BaseModel, Field

from fastlane_core.contracts.notifier import Notifier
from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.runner import Runner
from fastlane_core.contracts.storage import Storage
from fastlane_core.errors import PluginError, SettingsError
from fastlane_core.hookspecs import (
    HOOKS_VERSION,
    NotifierPlugin,
    PluginContext,
    QueuePlugin,
    RunnerContext,
    RunnerPlugin,
    SettingsSection,
    StoragePlugin,
    hookimpl,
)
from fastlane_core.plugins import (
    FoundPlugin,
    PluginInfo,
    PluginRegistry,
    PluginState,
    find_plugins,
    load_application_parts,
)
from fastlane_core.plugins.discovery import GROUP
from fastlane_core.settings import GeneralSettings

#: Installs a plugin as a distribution of its own: name and source of its module; gives the module's name.
Install = Callable[[str, str], str]
_numbers = itertools.count()

GOOD = """
from fastlane_core.hookspecs import RunnerPlugin, hookimpl

@hookimpl
def fastlane_runners():
    yield RunnerPlugin(name={name!r}, create=lambda context: None)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that packages are installed in."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture
def install(site: Path) -> Install:
    def installed(name: str, source: str) -> str:
        module = f"plugin_of_a_test_{next(_numbers)}"
        (site / f"{module}.py").write_text(source)
        metadata = site / f"fastlane_{module}-1.2.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fastlane-{name}\nVersion: 1.2\n")
        (metadata / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {module}\n")
        return module

    return installed


def found(site: Path) -> list[FoundPlugin]:
    entry_points = [each for dist in distributions(path=[str(site)]) for each in dist.entry_points]
    return find_plugins({}, [each for each in entry_points if each.group == GROUP])


def core() -> list[FoundPlugin]:
    """What core brings: something that offers the storage and queue that the settings name by default."""

    class Core:
        @hookimpl
        def fastlane_storages(self) -> list[StoragePlugin]:
            return [StoragePlugin(name="sqlite", create=_no_storage)]

        @hookimpl
        def fastlane_queues(self) -> list[QueuePlugin]:
            return [QueuePlugin(name="sqlite", create=_no_queue)]

    return [FoundPlugin(PluginInfo(name="sqlite", module="core"), Core, is_built_in=True)]


def _no_storage(context: PluginContext) -> Storage:
    raise NotImplementedError


def _no_queue(context: PluginContext) -> Queue:
    raise NotImplementedError


def _no_runner(context: RunnerContext) -> Runner:
    raise NotImplementedError


def _no_notifier(context: PluginContext) -> Notifier:
    raise NotImplementedError


def info(name: str) -> PluginInfo:
    return PluginInfo(name=name, module=f"modules.{name}", distribution=f"fastlane-{name}", version="3.1")


def refused(plugin: object) -> str:
    registry = PluginRegistry()
    with pytest.raises(PluginError) as raised:
        registry.register(plugin, info("mine"))
    assert registry.plugins() == ()
    assert registry.runners() == []
    message = str(raised.value)
    assert "mine (modules.mine of fastlane-mine 3.1)" in message
    return message


# Finding and isolating


def test_an_installed_plugin_is_found_and_its_records_are_kept(install: Install, site: Path) -> None:
    module = install("mine", GOOD.format(name="runs"))

    registry = PluginRegistry.load(GeneralSettings(), found(site))

    assert registry.plugins() == (
        PluginInfo(name="mine", module=module, distribution="fastlane-mine", version="1.2", state=PluginState.LOADED),
    )
    assert [each.name for each in registry.runners()] == ["runs"]
    assert registry.notices == []


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def x(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("", "no function that is marked"),
        (GOOD.format(name="x").replace("_runners", "_runner"), "did you mean fastlane_runners?"),
        (GOOD.format(name="x").replace("yield", "1 / 0; yield"), "ZeroDivisionError"),
        (GOOD.format(name="x") + "\nFASTLANE_HOOKS_VERSION = (1, 99)", "version 1.99 of the hooks"),
    ],
)
def test_a_broken_plugin_is_left_out_and_told_of_and_the_others_work(
    source: str, told: str, install: Install, site: Path
) -> None:
    module = install("broken", source)
    install("good", GOOD.format(name="works"))

    registry = PluginRegistry.load(GeneralSettings(), found(site))

    broken, good = registry.plugins()
    assert (broken.state, good.state) == (PluginState.BROKEN, PluginState.LOADED)
    assert [each.name for each in registry.runners()] == ["works"]
    (notice,) = registry.notices
    assert f"broken ({module} of fastlane-broken 1.2)" in notice
    assert told in notice


@pytest.mark.parametrize("required", ["broken", "fastlane-broken"])
def test_a_broken_plugin_that_is_required_is_fatal(required: str, install: Install, site: Path) -> None:
    module = install("broken", "import no_such_module")

    with pytest.raises(PluginError, match=rf"broken \({module} of fastlane-broken 1\.2\).*no_such_module"):
        PluginRegistry.load(GeneralSettings(required_plugins=[required]), found(site))


def test_a_required_plugin_that_is_not_installed_is_fatal(install: Install, site: Path) -> None:
    install("good", GOOD.format(name="works"))

    with pytest.raises(PluginError, match=r"REQUIRED_PLUGINS names absent, .* there are: fastlane-good, good"):
        PluginRegistry.load(GeneralSettings(required_plugins=["absent", "good"]), found(site))


@pytest.mark.parametrize("blocked", ["broken", "fastlane-broken"])
def test_a_blocked_plugin_is_never_imported(blocked: str, install: Install, site: Path) -> None:
    mark = site / "imported"
    install("broken", f"open({str(mark)!r}, 'w').close()")

    registry = PluginRegistry.load(GeneralSettings(blocked_plugins=[blocked]), found(site))

    assert [each.state for each in registry.plugins()] == [PluginState.BLOCKED]
    assert not mark.exists()
    assert registry.notices == []


def test_a_broken_built_in_plugin_is_fatal() -> None:
    with pytest.raises(PluginError, match="no_such_module"):
        PluginRegistry.load(GeneralSettings(), find_plugins({"core": "no_such_module"}, []))


def test_two_plugins_of_one_name_are_refused_with_both_origins(install: Install, site: Path) -> None:
    first = install("mine", GOOD.format(name="a"))
    second = install("mine", GOOD.format(name="b"))

    with pytest.raises(PluginError, match="same name") as raised:
        found(site)

    assert first in str(raised.value)
    assert second in str(raised.value)


def test_each_application_has_plugins_of_its_own() -> None:
    one, other = PluginRegistry(), PluginRegistry()
    one.register(core()[0].load(), info("core"))

    assert len(one.storages()) == 1
    assert other.storages() == []


# Checks at load


def test_a_misspelt_hook_is_refused_with_the_nearest_name() -> None:
    class Misspelt:
        @hookimpl
        def fastlane_setings(self) -> list[SettingsSection]:
            return []

    assert "no hook fastlane_setings: did you mean fastlane_settings?" in refused(Misspelt())


def test_a_hook_that_nobody_marked_is_refused() -> None:
    class Unmarked:
        def fastlane_runners(self) -> list[RunnerPlugin]:
            return []

    assert "fastlane_runners is not marked with @hookimpl" in refused(Unmarked())


def test_awaited_hooks_have_to_be_async() -> None:
    class Plain:
        @hookimpl
        def fastlane_event(self) -> None: ...

    assert "its fastlane_event has to be an `async def`" in refused(Plain())


def test_registration_hooks_must_not_be_async() -> None:
    class Coroutine:
        @hookimpl
        async def fastlane_runners(self) -> list[RunnerPlugin]:
            return []

    class Generator:
        @hookimpl
        async def fastlane_queues(self) -> object:
            yield

    assert "its fastlane_runners has to be a plain function" in refused(Coroutine())
    assert "its fastlane_queues has to be a plain function" in refused(Generator())


def test_an_argument_that_the_hook_does_not_have_is_refused() -> None:
    class Greedy:
        @hookimpl
        async def fastlane_event(self, event: object, job: object) -> None: ...

    assert "'job'" in refused(Greedy())


def test_wrappers_and_orders_are_refused() -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def fastlane_runners(self) -> object:
            return (yield)

    class First:
        @hookimpl(tryfirst=True)
        def fastlane_runners(self) -> list[RunnerPlugin]:
            return []

    for plugin in (Wrapper(), First()):
        assert "each plugin's hooks are called by themselves" in refused(plugin)


def test_a_hook_may_have_another_functions_name() -> None:
    class Named:
        @hookimpl(specname="fastlane_runners")
        def my_runners(self) -> list[RunnerPlugin]:
            return [RunnerPlugin(name="mine", create=_no_runner)]

    registry = PluginRegistry()
    registry.register(Named(), info("mine"))

    assert [each.name for each in registry.runners()] == ["mine"]


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ((HOOKS_VERSION[0] + 1, 0), "version 2.0 of the hooks"),
        ((HOOKS_VERSION[0] - 1, 0), "version 0.0 of the hooks"),
        ((HOOKS_VERSION[0], HOOKS_VERSION[1] + 1), "of the hooks, but this Fastlane has"),
        ("1.0", "is not two numbers"),
    ],
)
def test_a_plugin_for_other_hooks_is_refused(version: object, told: str) -> None:
    plugin = types.ModuleType("mine")
    vars(plugin).update(FASTLANE_HOOKS_VERSION=version, fastlane_runners=hookimpl(lambda: []))

    assert told in refused(plugin)


@pytest.mark.parametrize(
    ("yielded", "told"),
    [
        (None, "returned nothing"),
        (3, "returned a int"),
        ("docker", "returned a str"),
        (RunnerPlugin(name="x", create=_no_runner), "returned a RunnerPlugin"),
        (["docker"], "has to yield RunnerPlugin, but yielded a str"),
        ([None], "yielded nothing"),
        ([RunnerPlugin(name="x", create=_no_runner), object()], "yielded a object"),
        ([StoragePlugin(name="x", create=_no_storage)], "yielded a StoragePlugin"),
    ],
)
def test_what_is_no_record_is_refused(yielded: object, told: str) -> None:
    class Careless:
        @hookimpl
        def fastlane_runners(self) -> object:
            return yielded

    message = refused(Careless())

    assert "its fastlane_runners" in message
    assert told in message


def test_a_refused_plugin_leaves_its_name_free() -> None:
    registry = PluginRegistry()
    with pytest.raises(PluginError):
        registry.register(plugin_with(fastlane_runners=None), info("mine"))

    registry.register(plugin_with(fastlane_runners=[RunnerPlugin(name="x", create=_no_runner)]), info("mine"))

    assert [each.name for each in registry.runners()] == ["x"]


# Names


class _Options(BaseModel):
    x: int = 0


class _Farms(BaseModel):
    my_farms: int = Field(default=0, description="Farms.")


class _MoreFarms(BaseModel):
    my_farms: int = Field(default=0, description="Farms.")


class _Lease(BaseModel):
    lease_seconds: int = Field(default=0, description="As in core.")


def plugin_with(**hooks: object) -> object:
    """A plugin whose hooks yield these records."""

    def hook(records: object) -> object:
        def function() -> object:
            return records

        return hookimpl(function)

    return type("Plugin", (), {name: staticmethod(hook(records)) for name, records in hooks.items()})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("one", "other", "taken"),
    [
        (
            plugin_with(fastlane_runners=[RunnerPlugin(name="x", create=_no_runner)]),
            plugin_with(fastlane_runners=[RunnerPlugin(name="x", create=_no_runner)]),
            "the runner x",
        ),
        (
            plugin_with(fastlane_queues=[QueuePlugin(name="x", create=_no_queue)]),
            plugin_with(fastlane_queues=[QueuePlugin(name="x", create=_no_queue)]),
            "the queue x",
        ),
        (
            plugin_with(fastlane_settings=[SettingsSection(title="A", model=_Farms)]),
            plugin_with(fastlane_settings=[SettingsSection(title="B", model=_MoreFarms)]),
            "the setting MY_FARMS",
        ),
        (
            plugin_with(fastlane_runners=[RunnerPlugin(name="mail", create=_no_runner, options=_Options)]),
            plugin_with(fastlane_notifiers=[NotifierPlugin(name="n", create=_no_notifier, payload={"mail": _Options})]),
            "the payload field mail",
        ),
    ],
)
def test_a_name_that_two_plugins_register_is_refused_with_both_origins(one: object, other: object, taken: str) -> None:
    plugins = [FoundPlugin(info("one"), lambda: one), FoundPlugin(info("other"), lambda: other)]

    with pytest.raises(PluginError) as raised:
        PluginRegistry.load(GeneralSettings(), plugins)

    message = str(raised.value)
    assert taken in message
    assert "one (modules.one of fastlane-one 3.1)" in message
    assert "other (modules.other of fastlane-other 3.1)" in message


def test_a_name_registered_twice_by_one_plugin_is_refused() -> None:
    record = RunnerPlugin(name="x", create=_no_runner)

    assert "the runner x is registered twice" in refused(plugin_with(fastlane_runners=[record, record]))


def test_a_key_of_core_is_refused() -> None:
    message = refused(plugin_with(fastlane_settings=[SettingsSection(title="A", model=_Lease)]))

    assert "the setting LEASE_SECONDS is registered by Fastlane itself and by mine" in message


def test_the_same_name_for_a_storage_and_a_queue_is_fine() -> None:
    registry = PluginRegistry.load(GeneralSettings(), core())

    assert [each.name for each in registry.storages()] == [each.name for each in registry.queues()] == ["sqlite"]


def test_commands_cannot_take_cores_names_nor_each_others() -> None:
    registry = PluginRegistry()
    registry.register(plugin_with(fastlane_commands=[click.Command("prune")]), info("one"))

    assert [each.name for each in registry.commands(reserved=["dev"])] == ["prune"]
    with pytest.raises(PluginError, match=r"the command prune is registered by Fastlane itself and by one"):
        registry.commands(reserved=["prune"])
    registry.register(plugin_with(fastlane_commands=[click.Command("prune")]), info("other"))
    with pytest.raises(PluginError, match=r"the command prune is registered by one .* and by other"):
        registry.commands()


# Settings and plugins together

SECTION = """
from pydantic import BaseModel, Field
from fastlane_core.hookspecs import SettingsSection, hookimpl

class MySettings(BaseModel):
    my_size: int = Field(default=1, description="A size.")

@hookimpl
def fastlane_settings():
    yield SettingsSection(title="Mine", model=MySettings, bare_environment=frozenset({"MY_SIZE"}))
"""


def test_settings_of_plugins_are_read_with_those_of_core(install: Install, site: Path) -> None:
    install("mine", SECTION)
    path = site / "fastlane.conf"
    path.write_text("MY_SIZE = 3\nDEBUG = True\n")

    settings, registry = load_application_parts(path, {}, found=[*core(), *found(site)])

    (section,) = [each for each in registry.settings_sections() if each.title == "Mine"]
    assert settings.section(section.model).model_dump() == {"my_size": 3}
    assert settings.section(GeneralSettings).debug


def test_settings_of_a_blocked_plugin_are_unknown(install: Install, site: Path) -> None:
    install("mine", SECTION)

    with pytest.raises(SettingsError, match="MY_SIZE: neither Fastlane nor an installed plugin"):
        load_application_parts(
            None,
            {"FASTLANE_MY_SIZE": "3", "FASTLANE_BLOCKED_PLUGINS": "mine"},
            found=[*core(), *found(site)],
        )


@pytest.mark.parametrize("key", ["RUNNERS", "STORAGE", "QUEUE"])
def test_choosing_what_no_plugin_offers_is_refused_with_what_there_is(key: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_application_parts(None, {f"FASTLANE_{key}": "sqlit"}, found=core())

    assert f"environment variable FASTLANE_{key}: {key} names 'sqlit'" in str(raised.value)
    if key != "RUNNERS":
        assert "did you mean sqlite?" in str(raised.value)


def test_choosing_what_a_broken_plugin_would_offer_is_refused_with_what_broke_it(install: Install, site: Path) -> None:
    install("docker", "import no_such_module")

    with pytest.raises(SettingsError, match=r"RUNNERS names 'docker'.*no_such_module"):
        load_application_parts(None, {"FASTLANE_RUNNERS": "docker"}, found=[*core(), *found(site)])


def test_the_command_line_may_choose(install: Install, site: Path) -> None:
    install("mine", GOOD.format(name="mine"))

    settings, _ = load_application_parts(None, {}, {"RUNNERS": ["mine"]}, found=[*core(), *found(site)])

    assert settings.origin("RUNNERS") == "command line"
