"""`fastlane doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastlane_core import __version__
from fastlane_core.cli.options import common_options

if TYPE_CHECKING:
    from fastlane_core.cli.diagnosis import Report
    from fastlane_core.hookspecs import Finding
    from fastlane_core.models import JsonObject
    from fastlane_core.plugins import PluginInfo, PluginRegistry


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@common_options
def command(config: Path | None, as_json: bool) -> None:
    """Look for what is wrong, and tell what to do about it.

    Asks every server of the settings, the plugins, and what processes tell of themselves, and compares storage, queue
    and engines as workers do; it mends nothing, and works while servers are down. The exit code is 1 if there is a
    problem, and 0 if there is none.
    """
    from fastlane_core.cli.diagnosis import diagnose

    plugins, report = asyncio.run(diagnose(config))
    problems = sum(finding.level == "problem" for found in report.values() for finding in found)
    if as_json:
        click.echo(json.dumps(_shape(plugins, report, problems), indent=2))
    else:
        for line in _lines(plugins, report, problems):
            click.echo(line)
    sys.exit(1 if problems else 0)


def _shape(plugins: PluginRegistry, report: Report, problems: int) -> JsonObject:
    return {
        "fastlane": __version__,
        "python": platform.python_version(),
        "plugins": [
            {
                "name": each.name,
                "distribution": each.distribution,
                "version": each.version,
                "state": str(each.state),
                "problem": each.problem or None,
            }
            for each in plugins.plugins()
        ],
        "problems": problems,
        "findings": [
            {
                "group": group,
                "level": str(finding.level),
                "subject": finding.subject,
                "message": finding.message,
                "advice": finding.advice or None,
            }
            for group, found in report.items()
            for finding in found
        ],
    }


def _lines(plugins: PluginRegistry, report: Report, problems: int) -> Iterator[str]:
    yield f"Fastlane {__version__} on Python {platform.python_version()}"
    yield f"Plugins: {', '.join(map(_plugin, plugins.plugins()))}"
    for group, found in report.items():
        if found:
            yield ""
            yield group
            for finding in found:
                yield from _told(finding)
    yield ""
    warnings = sum(finding.level == "warning" for found in report.values() for finding in found)
    also = f", {_counted(warnings, 'warning')}" if warnings else ""
    yield f"{_counted(problems, 'problem') if problems else 'No problem'}{also}."


def _plugin(info: PluginInfo) -> str:
    source = f"{info.distribution} {info.version}" if info.distribution else "built in"
    state = "" if info.state == "loaded" else f", {info.state}"
    return f"{info.name} ({source}{state})"


def _told(finding: Finding) -> Iterator[str]:
    message = " ".join(finding.message.split())
    yield f"  {finding.level:<8}{': '.join(filter(None, (finding.subject, message)))}"
    if finding.advice:
        yield f"          -> {finding.advice}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
