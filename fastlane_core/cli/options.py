"""Options that commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

P = ParamSpec("P")
R = TypeVar("R")

#: Where a command's context keeps the number of `-v`.
VERBOSITY = "fastlane.verbosity"
#: The environment variable that names the settings file.
CONFIG_VARIABLE = "FASTLANE_CONFIG"

config_option = click.option(
    "-c",
    "--config-file",
    "--config",
    "config",
    type=click.Path(path_type=Path),
    envvar=CONFIG_VARIABLE,
    show_envvar=True,
    metavar="PATH",
    help="Settings file, or a directory of *.conf files.",
)


def _remember(context: click.Context, parameter: click.Parameter, value: int) -> int:
    del parameter
    context.meta[VERBOSITY] = value
    return value


verbosity_option = click.option(
    "-v",
    "verbosity",
    count=True,
    expose_value=False,
    is_eager=True,
    callback=_remember,
    help="Log more: -v also what libraries do, -vv debug lines of Fastlane, -vvv everybody's.",
)


def verbosity() -> int:
    """The number of `-v` that the command in hand was given; 0 outside a command."""
    context = click.get_current_context(silent=True)
    count = context.meta.get(VERBOSITY, 0) if context else 0
    return int(count)


def common_options(command: Callable[..., R]) -> Callable[..., R]:
    """`-c` and `-v`: the command gets `config`, a path or None; logging is set up before it runs."""

    @config_option
    @verbosity_option
    @functools.wraps(command)
    def with_logging(config: Path | None, **others: object) -> R:
        start_logging(config)
        return command(config=config, **others)

    return with_logging


def start_logging(config: Path | None) -> None:
    """Set logging up as the settings and `-v` want it. Raises SettingsError for settings that cannot be read."""
    from fastlane_core.log import configure_logging
    from fastlane_core.settings import read_general

    general = read_general(path=config, environment=os.environ)
    configure_logging(
        verbosity=max(verbosity(), 2 if general.debug else 0),
        log_format=general.log_format,
        secret_words=general.env_blacklisted_words,
    )


def bind_options(command: Callable[P, R]) -> Callable[P, R]:
    """`-b` and `-p`: the command gets `host` and `port`."""
    host = click.option(
        "-b",
        "--host",
        default="127.0.0.1",
        show_default=True,
        help="Address to listen on. Whoever can reach it can run commands here.",
    )
    port = click.option(
        "-p", "--port", type=click.IntRange(0, 65535), default=10000, show_default=True, help="Port to listen on."
    )
    return host(port(command))


def worker_options(command: Callable[P, R]) -> Callable[P, R]:
    """`-i`: the command gets `worker_id`, or None for one that is made up."""
    return click.option(
        "-i",
        "--worker-id",
        "--id",
        "worker_id",
        default=None,
        metavar="ID",
        help="Name of the worker in lists and logs; no other worker that lives may have it.",
    )(command)
