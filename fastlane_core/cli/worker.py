"""`fastlane worker`: a worker alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from fastlane_core.cli.options import common_options, worker_options


@click.command("worker")
@common_options
@worker_options
@click.option(
    "--lanes",
    default="",
    metavar="LANE,...",
    help="Lanes to run jobs of, by name or as docker:gpu* by beginning; all if none is named. GET /status lists them.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Executions of each lane to look after at a time, instead of WORKER_CONCURRENCY.",
)
@click.option("-j", "--no-jobs", is_flag=True, help="Take no new executions: only take over those of lost workers.")
@click.option(
    "-m",
    "--no-monitor",
    is_flag=True,
    help="Leave comparing and mending storage, queue and engines to others; one worker at least should do it. What a "
    "lost worker ran is taken over all the same, together with new executions.",
)
@click.option("-n", "--no-notify", is_flag=True, help="Deliver no notifications. (This version has none yet.)")
@click.option("-w", "--no-webhooks", is_flag=True, help="Call no webhooks. (This version has none yet.)")
def command(
    config: Path | None,
    worker_id: str | None,
    lanes: str,
    concurrency: int | None,
    no_jobs: bool,
    no_monitor: bool,
    no_notify: bool,
    no_webhooks: bool,
) -> None:
    """Run jobs that the API accepts.

    SIGTERM makes it hand everything over and exit in seconds; jobs that are running go on, and another worker, or the
    next start of this one, picks them up.
    """
    from fastlane_core.app import Application
    from fastlane_core.cli.serving import run_until_signal
    from fastlane_core.engine.context import Duties

    if no_jobs and no_monitor and no_notify and no_webhooks:
        raise click.ClickException("-j, -m, -n and -w together leave this worker nothing to do")
    duties = Duties(jobs=not no_jobs, monitor=not no_monitor, notify=not no_notify, webhooks=not no_webhooks)
    wanted = [each.strip() for each in lanes.split(",") if each.strip()]

    async def main(application: Application, stop: asyncio.Event) -> None:
        await application.worker(worker_id, lanes=wanted, duties=duties).run(stop)

    overrides = {} if concurrency is None else {"WORKER_CONCURRENCY": concurrency}
    run_until_signal(main, config=config, overrides=overrides)
