"""`fastlane dev`: API and worker in one process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from fastlane_core.cli.options import bind_options, common_options, worker_options


@click.command("dev")
@common_options
@bind_options
@worker_options
def command(config: Path | None, host: str, port: int, worker_id: str | None) -> None:
    """Serve the API and run jobs, in one process.

    Keeps everything in one SQLite file under fastlane-data/ unless the settings say otherwise. Jobs that are running
    when it ends go on, and the next start picks them up.
    """
    from fastlane_core.app import Application
    from fastlane_core.cli.serving import bind_listener, first_to_end, run_until_signal, serve_api

    listener = bind_listener(host, port)

    async def main(application: Application, stop: asyncio.Event) -> None:
        worker = application.worker(worker_id)
        await first_to_end(stop, serve_api(application, host, listener, stop), worker.run(stop))

    run_until_signal(main, config=config, api_bind=host)
