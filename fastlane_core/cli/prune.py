"""`fastlane prune`: remove what processed runs have left on their engines."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastlane_core.cli.options import common_options
from fastlane_core.durations import parse_duration
from fastlane_core.errors import FastlaneError

if TYPE_CHECKING:
    from fastlane_core.contracts.runner import PrunedRun, PruneReport, Runner
    from fastlane_core.models import JsonObject


def _seconds(context: click.Context, parameter: click.Parameter, value: str) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


@click.command("prune")
@click.option(
    "--older-than",
    callback=_seconds,
    default="0s",
    show_default=True,
    metavar="DURATION",
    help="Only what ended at least so long ago: 30s, 90m, 24h, 2d.",
)
@click.option("--dry-run", is_flag=True, help="Remove nothing: tell what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@common_options
def command(config: Path | None, older_than: float, dry_run: bool, as_json: bool) -> None:
    """Remove what processed runs have left on every host, such as ended containers.

    It removes only runs of this Fastlane whose results are stored. A host that cannot be pruned does not keep the
    others from it; the exit code is 1 then.
    """
    reports = asyncio.run(_prune(config, older_than=older_than, dry_run=dry_run))
    if as_json:
        click.echo(json.dumps(_shape(reports, dry_run=dry_run), indent=2))
    else:
        for line in _lines(reports, dry_run=dry_run):
            click.echo(line)
    if any(report.error for report in reports):
        sys.exit(1)


async def _prune(config: Path | None, *, older_than: float, dry_run: bool) -> Sequence[PruneReport]:
    from fastlane_core.app import open_application
    from fastlane_core.contracts.runner import PruneReport

    async def prune(runner: Runner) -> Sequence[PruneReport]:
        try:
            return await runner.prune(older_than=older_than, dry_run=dry_run)
        except FastlaneError as error:
            return [PruneReport(place=runner.name, error=str(error))]
        finally:
            await runner.close()

    async with open_application(config, os.environ) as application:
        able = [runner for runner in application.routing.runners if runner.capabilities.prune]
        reports = await asyncio.gather(*(prune(runner) for runner in able))
    return sorted((each for some in reports for each in some), key=lambda report: report.place)


def _shape(reports: Sequence[PruneReport], *, dry_run: bool) -> JsonObject:
    return {
        "dryRun": dry_run,
        "removed": sum(len(report.runs) for report in reports),
        "failedHosts": sum(bool(report.error) for report in reports),
        "hosts": [
            {"host": report.place, "removed": [_run_shape(run) for run in report.runs], "error": report.error or None}
            for report in reports
        ],
    }


def _run_shape(run: PrunedRun) -> JsonObject:
    created = None if run.created_at is None else datetime.fromtimestamp(run.created_at, UTC).isoformat()
    return {"name": run.name, "executionId": run.execution_id, "image": run.image, "createdAt": created}


def _lines(reports: Sequence[PruneReport], *, dry_run: bool) -> Iterator[str]:
    runs = [(report.place, run) for report in reports for run in report.runs]
    if runs:
        rows = [(place, run.name, run.execution_id, run.image or "(unknown)") for place, run in runs]
        yield from _table(("HOST", "NAME", "EXECUTION", "IMAGE"), rows)
        yield ""
    if reports:
        counts = [(each.place, str(len(each.runs)), " ".join(each.error.split())) for each in reports]
        yield from _table(("HOST", "TO REMOVE" if dry_run else "REMOVED", "ERROR"), counts)
        yield ""
    yield _summary(len(runs), reports, dry_run=dry_run)


def _summary(count: int, reports: Sequence[PruneReport], *, dry_run: bool) -> str:
    if not reports:
        return "No enabled runner leaves anything behind: there is nothing to prune."
    failed = sum(bool(report.error) for report in reports)
    did = (
        f"{'Would remove' if dry_run else 'Removed'} {_counted(count, 'run')}" if count else "There is nothing to prune"
    )
    trouble = f"; {_counted(failed, 'host')} could not be pruned, or not wholly" if failed else ""
    return f"{did} on {_counted(len(reports), 'host')}{trouble}."


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
