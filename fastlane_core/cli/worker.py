"""`fastlane worker`: a worker alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from fastlane_core.cli.options import common_options, worker_options


@click.command("worker")
@common_options
@worker_options
def command(config: Path | None, worker_id: str | None) -> None:
    """Run jobs that the API accepts.

    SIGTERM makes it hand everything over and exit in seconds; jobs that are running go on, and another worker, or the
    next start of this one, picks them up.
    """
    from fastlane_core.app import Application
    from fastlane_core.cli.serving import run_until_signal

    async def main(application: Application, stop: asyncio.Event) -> None:
        await application.worker(worker_id).run(stop)

    run_until_signal(main, config=config)
