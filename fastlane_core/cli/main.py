"""The command line: `fastlane`, also installed as `fl`."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from fastlane_core.cli.options import CONFIG_VARIABLE, VERBOSITY
from fastlane_core.errors import FastlaneError, InvalidInput, PluginError, SettingsError

#: Modules of core's own commands, imported when they are asked for: each has a `command`.
_COMMANDS = {
    "dev": "fastlane_core.cli.dev",
    "api": "fastlane_core.cli.api",
    "worker": "fastlane_core.cli.worker",
    "run": "fastlane_core.cli.run",
    "prune": "fastlane_core.cli.prune",
    "doctor": "fastlane_core.cli.doctor",
    "config": "fastlane_core.cli.config",
    "version": "fastlane_core.cli.config:version",
}


class _Failed(click.ClickException):
    """An error as people see it: its message, no traceback."""

    exit_code = 1


class _WrongUse(_Failed):
    """The caller has to change settings, plugins or what was asked for, as with wrong options."""

    exit_code = 2


class Root(click.Group):
    """Core's commands, imported when they are needed, and those of plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Core's commands in their order, then the plugins'. A plugin that is in trouble costs only its commands."""
        try:
            plugins = _plugin_commands()
        except FastlaneError as error:
            click.echo(f"Warning: commands of plugins are not listed: {error}", err=True)
            plugins = {}
        return [*_COMMANDS, *sorted(plugins)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported; None if there is none by that name."""
        if cmd_name not in _COMMANDS:
            return _plugin_commands().get(cmd_name)
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute or "command")
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; what Fastlane raises on purpose becomes a message, and a traceback with `-vv`."""
        try:
            return super().invoke(ctx)
        except FastlaneError as error:
            if ctx.meta.get(VERBOSITY, 0) >= 2:
                click.echo("".join(traceback.format_exception(error)), err=True)
            is_wrong_use = isinstance(error, SettingsError | PluginError | InvalidInput)
            raise (_WrongUse if is_wrong_use else _Failed)(str(error)) from error


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Run any container command for anyone who can send an HTTP request: now, later, or on a schedule."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process: 0 for success, 2 for wrong options or settings, 1 for failures."""
    cli.main(args=arguments, prog_name="fastlane")


def _plugin_commands() -> dict[str, click.Command]:
    from fastlane_core.plugins import PluginRegistry
    from fastlane_core.settings import read_general

    named = os.environ.get(CONFIG_VARIABLE)
    general = read_general(path=Path(named) if named else None, environment=os.environ)
    commands = PluginRegistry.load(general).commands(reserved=_COMMANDS)
    return {command.name: command for command in commands if command.name}
