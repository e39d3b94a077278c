"""`fastlane config`, `fastlane version`, and how the command line fails."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import click.testing
import pytest
import structlog

from fastlane_core import __version__
from fastlane_core.cli.options import bind_options, common_options, verbosity, worker_options
from fastlane_core.plugins import load_application_parts

PLUGIN = """
import click
from pydantic import BaseModel, Field
from fastlane_core.errors import StorageUnavailable
from fastlane_core.hookspecs import SettingsSection, hookimpl

class GreetSettings(BaseModel):
    greet_words: list[str] = Field(default=["hello", "world"], description="What to say.")

@click.command("greet")
@click.option("--fail", is_flag=True)
def greet(fail):
    "Say hello."
    if fail:
        raise StorageUnavailable("the storage at x does not answer: start it")
    click.echo("hello")

@hookimpl
def fastlane_settings():
    yield SettingsSection(title="Greetings", model=GreetSettings)

@hookimpl
def fastlane_commands():
    yield greet
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with two installed plugins: one that greets, one that is broken."""
    site = tmp_path / "site"
    site.mkdir()
    for name, source in (("greet", PLUGIN), ("broken", "import no_such_module")):
        (site / f"fastlane_{name}_plugin.py").write_text(source)
        metadata = site / f"fastlane_{name}-4.5.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: fastlane-{name}\nVersion: 4.5\n")
        (metadata / "entry_points.txt").write_text(f"[fastlane]\n{name} = fastlane_{name}_plugin\n")
    return site


def fastlane(*arguments: str, site: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FASTLANE_")}
    paths = [str(site)] if site else []
    return subprocess.run(
        [sys.executable, "-c", "from fastlane_core.cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**inherited, "PYTHONPATH": os.pathsep.join([*paths, *sys.path]), **environment},
    )


def test_config_prints_core_built_in_and_installed_sections_and_loads_back(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = fastlane("config", site=site)

    assert result.returncode == 0
    for title in ("General", "Worker", "API", "SQLite", "Greetings"):
        assert f"## {title}\n" in result.stdout
    assert "plugin left out" in result.stderr
    assert "no_such_module" in result.stderr
    monkeypatch.syspath_prepend(site)
    path = tmp_path / "fastlane.conf"
    for text in (result.stdout, "\n".join(line.removeprefix("#") for line in result.stdout.split("\n"))):
        path.write_text(text)
        settings, registry = load_application_parts(path, {})
        for section in registry.settings_sections():
            assert settings.section(section.model) == section.model()


def test_config_leaves_blocked_plugins_out(site: Path, tmp_path: Path) -> None:
    path = tmp_path / "fastlane.conf"
    path.write_text("BLOCKED_PLUGINS = ['greet', 'broken']\n")

    by_option = fastlane("config", "--config", str(path), site=site)
    by_variable = fastlane("config", site=site, FASTLANE_CONFIG=str(path))

    for result in (by_option, by_variable):
        assert result.returncode == 0
        assert "Greetings" not in result.stdout
        assert "fastlane-broken" not in result.stderr


def test_version_tells_of_every_plugin(site: Path) -> None:
    result = fastlane("version", site=site, FASTLANE_BLOCKED_PLUGINS="greet")

    assert result.returncode == 0
    first, python, *_ = result.stdout.splitlines()
    assert first == f"fastlane {__version__}"
    assert python.startswith("python 3.")
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in result.stdout.splitlines()[3:]}
    assert rows["sqlite"] == "built in fastlane_core.builtin.sqlite.plugin"
    assert rows["greet"] == "fastlane-greet 4.5 fastlane_greet_plugin blocked"
    assert rows["broken"].startswith("fastlane-broken 4.5 fastlane_broken_plugin broken: ")


def test_settings_that_cannot_be_used_end_with_2_and_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "fastlane.conf"
    path.write_text("DEBUG = sure\n")

    for arguments in (["version", "-c", str(path)], ["version", "-c", str(tmp_path / "absent")]):
        result = fastlane(*arguments)
        assert result.returncode == 2
        assert result.stderr.startswith("Error: the settings")
        assert str(tmp_path) in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""


def test_vv_shows_where_an_error_came_from(tmp_path: Path) -> None:
    result = fastlane("version", "-vv", "-c", str(tmp_path / "absent"))

    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert result.stderr.rstrip().endswith("does not exist")


def test_a_required_plugin_that_is_broken_ends_with_2(site: Path) -> None:
    result = fastlane("version", site=site, FASTLANE_REQUIRED_PLUGINS="broken")

    assert result.returncode == 2
    assert "fastlane-broken 4.5" in result.stderr


def test_commands_of_plugins_are_commands(site: Path) -> None:
    listed = fastlane("--help", site=site)
    run = fastlane("greet", site=site)
    failed = fastlane("greet", "--fail", site=site)

    assert "greet    Say hello." in listed.stdout
    assert (run.returncode, run.stdout) == (0, "hello\n")
    assert failed.returncode == 1
    assert "Error: the storage at x does not answer: start it\n" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_help_lists_cores_commands_even_if_plugins_cannot_be_loaded(site: Path) -> None:
    result = fastlane("--help", site=site, FASTLANE_REQUIRED_PLUGINS="broken")

    assert result.returncode == 0
    assert "commands of plugins are not listed" in result.stderr
    for name in ("dev", "api", "worker", "run", "config", "version"):
        assert f"\n  {name} " in result.stdout


def test_a_command_that_does_not_exist_ends_with_2() -> None:
    result = fastlane("frobnicate")

    assert result.returncode == 2
    assert "frobnicate" in result.stderr


def test_starting_imports_nothing_that_the_command_does_not_need() -> None:
    script = "import sys, fastlane_core.cli.main; print(*(m for m in sys.modules if m.partition('.')[0] in heavy))"
    heavy = "heavy = {'pydantic', 'quart', 'hypercorn', 'httpx', 'structlog', 'pluggy', 'docker'}; "

    result = subprocess.run(
        [sys.executable, "-c", heavy + script], capture_output=True, text=True, timeout=60, check=True
    )

    assert result.stdout.split() == []


# The options, as commands use them


@click.command()
@common_options
@bind_options
@worker_options
def probe(config: Path | None, host: str, port: int, worker_id: str | None) -> None:
    click.echo(f"{config} {host} {port} {worker_id} {verbosity()}")


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, show = root.handlers[:], root.level, warnings.showwarning
    yield
    logging.captureWarnings(False)
    warnings.showwarning = show
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "None 127.0.0.1 10000 None 0"),
        (["-b", "0.0.0.0", "-p", "0", "-i", "w", "-v"], "None 0.0.0.0 0 w 1"),
        (["--host", "::1", "--port", "80", "--worker-id", "w", "-vvv"], "None ::1 80 w 3"),
        (["--id", "w", "-v", "-vvvv"], "None 127.0.0.1 10000 w 5"),
    ],
)
def test_options_reach_the_command(arguments: list[str], expected: str) -> None:
    result = click.testing.CliRunner().invoke(probe, arguments)

    assert (result.exit_code, result.output) == (0, f"{expected}\n")


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize("option", ["-c", "--config-file", "--config"])
def test_the_settings_file_has_three_names(option: str, tmp_path: Path) -> None:
    path = tmp_path / "x.conf"
    path.touch()

    result = click.testing.CliRunner().invoke(probe, [option, str(path)])

    assert result.output.startswith(f"{path} ")


@pytest.mark.parametrize("port", ["-1", "65536", "http"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    assert click.testing.CliRunner().invoke(probe, ["-p", port]).exit_code == 2
