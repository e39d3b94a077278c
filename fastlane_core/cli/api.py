"""`fastlane api`: the API alone."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from fastlane_core.cli.options import bind_options, common_options, verbosity


@click.command("api")
@common_options
@bind_options
@click.option(
    "-w",
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that serve the API, from one socket: one per core makes use of a machine.",
)
@click.option("--supervised", type=int, nargs=3, default=None, hidden=True)
def command(config: Path | None, host: str, port: int, workers: int, supervised: tuple[int, int, int] | None) -> None:
    """Serve the API; workers run the jobs.

    With more than one process a supervisor replaces those that die; SIGTERM to it ends them all in seconds.
    """
    from fastlane_core.app import Application
    from fastlane_core.cli.serving import bind_listener, inherited_listener, real_port, run_until_signal, serve_api
    from fastlane_core.cli.supervisor import Inherited, child_command, end_with_supervisor, supervise, tell_ready

    if workers > 1 and supervised is None:
        listener = bind_listener(host, port)
        options = [*(["-c", str(config)] if config else []), *["-v"] * verbosity()]
        child = child_command("api", "-b", host, "-p", str(real_port(listener)), *options)
        sys.exit(supervise(child, listener, count=workers))

    inherited = Inherited(*supervised) if supervised is not None else None
    if inherited is not None:
        end_with_supervisor(inherited)
    listener = bind_listener(host, port) if inherited is None else inherited_listener(inherited.listener)

    async def main(application: Application, stop: asyncio.Event) -> None:
        ready = None if inherited is None else lambda: tell_ready(inherited)
        await serve_api(application, host, listener, stop, ready=ready)

    run_until_signal(main, config=config, api_bind=host, works=False)
