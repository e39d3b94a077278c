"""`fastlane api`: the API alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from fastlane_core.cli.options import bind_options, common_options


@click.command("api")
@common_options
@bind_options
def command(config: Path | None, host: str, port: int) -> None:
    """Serve the API; workers run the jobs."""
    from fastlane_core.app import Application
    from fastlane_core.cli.serving import run_until_signal, serve_api

    async def main(application: Application, stop: asyncio.Event) -> None:
        await serve_api(application, host, port, stop)

    run_until_signal(main, config=config, listen=(host, port))
