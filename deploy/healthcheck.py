"""The image's health check: a Fastlane process of this container has reported lately, and its API says that it is well.

Workers and APIs report to the storage every few seconds from the loop that does their work, so one that hangs, or that
is cut off from the storage, is noticed. Ends with 1 and a sentence for `docker inspect` where something is wrong.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastlane_core.engine.machine import Machine
from fastlane_core.engine.presence import APIS_SCOPE, REPORT_SECONDS, WORKERS_SCOPE, live_reports
from fastlane_core.errors import FastlaneError
from fastlane_core.hookspecs import PluginContext
from fastlane_core.models import JsonObject
from fastlane_core.plugins import load_application_parts
from fastlane_core.settings import GeneralSettings

#: Seconds that everything together gets; less than the time-out of the Dockerfile's HEALTHCHECK.
_PATIENCE = 8.0
#: A process is given up on when it missed this many reports.
_MISSED_REPORTS = 4


def main() -> int:
    """The exit code."""
    try:
        reports = asyncio.run(own_reports())
    except (FastlaneError, TimeoutError) as error:
        print(str(error) or f"the storage did not answer within {_PATIENCE:g} s")
        return 1
    if not reports:
        print(f"no worker or API of this container has reported in {_MISSED_REPORTS * REPORT_SECONDS:g} s")
        return 1
    binds = {bind for report in reports if isinstance(bind := report.get("bind"), str)}
    problems = [problem for bind in sorted(binds) if (problem := problem_of_api(bind))]
    print("\n".join(problems) or "well")
    return 1 if problems else 0


async def own_reports() -> Sequence[JsonObject]:
    """What the processes of this container told of themselves lately. Raises FastlaneError, TimeoutError."""
    named = os.environ.get("FASTLANE_CONFIG")
    settings, plugins = load_application_parts(Path(named) if named else None, os.environ)
    general = settings.section(GeneralSettings)
    context = PluginContext(settings=settings, deployment_id=general.deployment_id, api_bind=None, clock=time.time)
    storage = next(each for each in plugins.storages() if each.name == general.storage).create(context)
    oldest = time.time() - _MISSED_REPORTS * REPORT_SECONDS
    namespace = Machine.this().pid_namespace
    async with asyncio.timeout(_PATIENCE / 2):
        await storage.open_to_look()
        try:
            found: list[JsonObject] = []
            for scope in (WORKERS_SCOPE, APIS_SCOPE):
                reports: Mapping[str, JsonObject] = await live_reports(storage, scope, now=time.time())
                found += reports.values()
        finally:
            await storage.close()
    return [
        report
        for report in found
        if Machine.told(report).pid_namespace == namespace
        and isinstance(at := report.get("at"), int | float)
        and at >= oldest
    ]


def problem_of_api(bind: str) -> str:
    """What is wrong with the API that listens on `bind`; "" if it is well."""
    host, _, port = bind.rpartition(":")
    address = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - it is asked there, not bound
    url = f"http://{address}:{port}/healthcheck"
    # A proxy of the environment is for the world outside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_PATIENCE / 2):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            return f"{url} answers {error.code}: {error.read(4096).decode(errors='replace')}"
    except OSError as error:
        return f"{url} does not answer: {error}"


if __name__ == "__main__":
    sys.exit(main())
