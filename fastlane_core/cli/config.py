"""`fastlane config` and `fastlane version`: what is installed here."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import click
import structlog

from fastlane_core import __version__
from fastlane_core.cli.options import common_options
from fastlane_core.plugins import PluginRegistry, PluginState
from fastlane_core.settings import read_general, render

log = structlog.get_logger(__name__)


@click.command("config")
@common_options
def command(config: Path | None) -> None:
    """Print every setting with its description and default, as a file to start from."""
    registry = _installed(config)
    for notice in registry.notices:
        log.warning(notice)
    click.echo(render(registry.settings_sections()), nl=False)


@click.command("version")
@common_options
def version(config: Path | None) -> None:
    """Print the versions of Fastlane, Python and every plugin."""
    rows = []
    for plugin in _installed(config).plugins():
        source = f"{plugin.distribution} {plugin.version}" if plugin.distribution else "built in"
        state = "" if plugin.state is PluginState.LOADED else f"{plugin.state}: {plugin.problem}".removesuffix(": ")
        rows.append((plugin.name, source, plugin.module, state))
    click.echo(f"fastlane {__version__}")
    click.echo(f"python {platform.python_version()}")
    click.echo("plugins:")
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for row in rows:
        line = "  ".join(text.ljust(width) for text, width in zip(row, [*widths, 0], strict=True))
        click.echo(f"  {line.rstrip()}")


def _installed(config: Path | None) -> PluginRegistry:
    return PluginRegistry.load(read_general(path=config, environment=os.environ))
