"""What `fastlane doctor` finds out: the servers, the plugins' checks and the reconciler's comparisons.

It changes nothing, needs no server, and looks at all of them side by side, each for a bounded time.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from fastlane_core.app import Application, enabled_runner_names, open_application
from fastlane_core.contracts.runner import Runner
from fastlane_core.engine.misfits import Inspection, Misfit
from fastlane_core.engine.presence import APIS_SCOPE, REPORT_SECONDS, WORKERS_SCOPE, check_company, live_reports
from fastlane_core.errors import FastlaneError, SchemaNotReady, SettingsError
from fastlane_core.hookspecs import CheckContext, Finding, Level, PluginContext
from fastlane_core.models import Execution, JsonObject, Mending, Status
from fastlane_core.plugins import PluginRegistry, load_application_parts
from fastlane_core.settings import GeneralSettings, Settings, WorkerSettings

#: Seconds that one server, or one place of a runner, gets to answer, and all comparisons of storage and queue together.
_SERVER_SECONDS = 15.0
_COMPARING_SECONDS = 60.0
#: Places that are asked at a time.
_AT_ONCE = 32
#: Unfinished executions that are looked at, and examples that a finding names.
_MOST = 5_000
_EXAMPLES = 3
#: Seconds that clocks may differ by.
_SKEW = 2.0
#: Seconds without a report after which a process that lives would have made two.
_SILENT = 2 * REPORT_SECONDS
#: Seconds that an execution may run beyond its time-out and the grace of its stop.
_OVERDUE = 60.0

#: What is the matter with executions of each kind of misfit, for more than one.
_KINDS: Mapping[Mending, str] = {
    Mending.MISSING_IN_QUEUE: "are missing in the queue",
    Mending.UNKNOWN_IN_QUEUE: "are in the queue, but the storage does not know them",
    Mending.ENDED_IN_QUEUE: "wait in the queue, but have ended",
    Mending.LANE_CLOSED: "wait in a lane that no runner offers any more",
    Mending.EXPIRED_WAITING: "have expired while they wait",
    Mending.STOP_UNHEARD: "were asked to stop and have not ended",
    Mending.RETRY_OWED: "have ended, and their next attempt was not made",
    Mending.LEFTOVER_RUN: "have left runs on an engine",
}

#: Findings by the heading that they are shown under.
Report = Mapping[str, Sequence[Finding]]


class _Server(Protocol):
    """What storages and queues have in common."""

    async def open_to_look(self) -> None: ...
    async def close(self) -> None: ...
    async def health(self) -> str: ...
    async def clock(self) -> float | None: ...


async def diagnose(config: Path | None) -> tuple[PluginRegistry, Report]:
    """All findings. Raises SettingsError and PluginError for what nothing could start with."""
    settings, plugins = load_application_parts(config, os.environ)
    general = settings.section(GeneralSettings)
    context = PluginContext(settings=settings, deployment_id=general.deployment_id, api_bind=None, clock=time.time)
    storage = next(each for each in plugins.storages() if each.name == general.storage)
    queue = next(each for each in plugins.queues() if each.name == general.queue)
    of_storage, of_queue, of_plugins = await asyncio.gather(
        _check_server(f"storage {storage.name}", "STORAGE", lambda: storage.create(context), context.clock),
        _check_server(f"queue {queue.name}", "QUEUE", lambda: queue.create(context), context.clock),
        plugins.checks(_check_context(context, settings, plugins)),
    )
    servers = [*of_storage, *of_queue]
    processes: Sequence[Finding]
    jobs: Sequence[Finding]
    if any(each.level is Level.PROBLEM for each in servers):
        advice = "Run this again when storage and queue answer."
        subject, message = "processes and jobs", "not looked at"
        processes, jobs = [], [Finding(level=Level.WARNING, subject=subject, message=message, advice=advice)]
    else:
        processes, jobs = await _look_inside(config)
    return plugins, {
        "Storage and queue": servers,
        "Engines and plugins": [each for found in of_plugins.values() for each in found],
        "Processes": processes,
        "Jobs": jobs,
    }


def _check_context(context: PluginContext, settings: Settings, plugins: PluginRegistry) -> CheckContext:
    general = settings.section(GeneralSettings)
    return CheckContext(
        settings=settings,
        deployment_id=context.deployment_id,
        api_bind=None,
        clock=context.clock,
        storage=general.storage,
        queue=general.queue,
        runners=enabled_runner_names(plugins, general.runners),
    )


async def _check_server(
    subject: str, key: str, create: Callable[[], _Server], clock: Callable[[], float]
) -> Sequence[Finding]:
    def problem(message: str) -> Sequence[Finding]:
        advice = f"See whether the server runs, and whether the settings of {key} lead to it."
        return [Finding(level=Level.PROBLEM, subject=subject, message=message, advice=advice)]

    try:
        async with asyncio.timeout(_SERVER_SECONDS):
            server = create()
            await server.open_to_look()
            try:
                before = clock()
                theirs = await server.clock()
                skew = 0.0 if theirs is None else max(before - theirs, theirs - clock())
                found = [Finding(level=Level.OK, subject=subject, message=await server.health())]
            finally:
                await server.close()
    except TimeoutError:
        return problem(f"no answer within {_SERVER_SECONDS:g} s")
    except SchemaNotReady as error:
        advice = (
            "Start a process of this Fastlane, which makes what is missing and brings older data up to date; older "
            "Fastlanes may be unable to read it then."
        )
        return [Finding(level=Level.PROBLEM, subject=subject, message=str(error), advice=advice)]
    except FastlaneError as error:
        return problem(str(error))
    return found if skew <= _SKEW else [*found, _skewed(subject, skew)]


def _skewed(subject: str, seconds: float) -> Finding:
    message = f"its clock differs by {seconds:.0f} s from this machine's"
    advice = "Have both machines set their clocks by NTP: due times and time-outs are wrong by as much."
    return Finding(level=Level.WARNING, subject=subject, message=message, advice=advice)


async def _look_inside(config: Path | None) -> tuple[Sequence[Finding], Sequence[Finding]]:
    try:
        async with open_application(config, os.environ, only_look=True) as application:
            workers = await live_reports(application.storage, WORKERS_SCOPE, now=application.context.clock())
            processes = await _processes(application, workers)
            async with asyncio.timeout(_COMPARING_SECONDS):
                jobs = [*await _waiting(application, workers), *await _compared(application, workers)]
            return processes, [*jobs, *await _leftovers(application, workers)]
    except TimeoutError:
        message = f"storage and queue could not be compared within {_COMPARING_SECONDS:g} s"
        failed = Finding(level=Level.PROBLEM, subject="comparison", message=message, advice="See what slows them down.")
    except FastlaneError as error:
        failed = Finding(level=Level.PROBLEM, subject="comparison", message=str(error), advice="Run this again.")
    return [], [failed]


# Processes


async def _processes(application: Application, workers: Mapping[str, JsonObject]) -> Sequence[Finding]:
    now = application.context.clock()
    found: list[Finding] = []
    try:
        await check_company(application.storage, application.identity, now=now)
    except SettingsError as error:
        advice = "Give every process of a deployment the same settings, and the machines that these allow."
        found.append(Finding(level=Level.PROBLEM, subject="this machine", message=str(error), advice=advice))
    apis = await live_reports(application.storage, APIS_SCOPE, now=now)
    versions = {str(report.get("version")) for report in (*workers.values(), *apis.values())}
    if len(versions) > 1:
        message = f"run different versions of Fastlane: {', '.join(sorted(versions))}"
        advice = "Bring the older ones up to date when you can."
        found.append(Finding(level=Level.WARNING, subject="processes", message=message, advice=advice))
    for name, report in sorted(workers.items()):
        load = f"{report.get('running')} of {report.get('concurrency')} executions"
        found.append(Finding(level=Level.OK, subject=f"worker {name}", message=f"{_where(report)}; {load}"))
    for report in apis.values():
        found.append(Finding(level=Level.OK, subject=f"API {report.get('bind')}", message=_where(report)))
    for report in (*workers.values(), *apis.values()):
        at = report.get("at")
        if isinstance(at, int | float) and at - now > _SKEW:
            found.append(_skewed(f"host {report.get('host')}", at - now))
        elif isinstance(at, int | float) and now - at > _SILENT:
            message = (
                f"its last report is {now - at:.0f} s old: it hangs or is gone, or the clock of its host is behind"
            )
            advice = "See whether it lives; if so, have its host set its clock by NTP."
            found.append(Finding(level=Level.WARNING, subject=_where(report), message=message, advice=advice))
    if not workers:
        advice = "Start one: fastlane worker."
        found.append(Finding(level=Level.PROBLEM, subject="workers", message="none is running", advice=advice))
    elif not _reconciled(workers):
        advice = "Start one without -m: until then nothing that goes wrong is mended."
        found.append(Finding(level=Level.PROBLEM, subject="workers", message="none monitors", advice=advice))
    return found


def _where(report: JsonObject) -> str:
    return f"process {report.get('pid')} on {report.get('host')}, Fastlane {report.get('version')}"


def _reconciled(workers: Mapping[str, JsonObject]) -> bool:
    """Whether a worker mends what does not fit."""
    left_out = [report.get("leftOut") for report in workers.values()]
    return any(not isinstance(each, list) or "monitor" not in each for each in left_out)


# Jobs


async def _waiting(application: Application, workers: Mapping[str, JsonObject]) -> Sequence[Finding]:
    """Lanes in which something waits, or is held, and which no worker serves."""
    served = {
        name for report in workers.values() if isinstance(lanes := report.get("lanes"), Mapping) for name in lanes
    }
    found: list[Finding] = []
    for lane, stats in sorted((await application.queue.stats()).items()):
        if not stats.reachable:
            advice = "Bring the server of the queue that holds it back; what it has lost is put back from the storage."
            message = "is out of reach in the queue, and grants nothing"
            found.append(Finding(level=Level.PROBLEM, subject=f"lane {lane}", message=message, advice=advice))
        elif workers and lane not in served and application.routing.lane(lane) is not None:
            message = f"{stats.waiting} wait and {stats.leased} are held, and no worker serves it"
            advice = f"Start a worker that does: fastlane worker --lanes {lane}."
            found.append(Finding(level=Level.PROBLEM, subject=f"lane {lane}", message=message, advice=advice))
        if stats.run_out:
            message = (
                f"{stats.run_out} of {stats.leased} leases ran out or were handed over, and nobody has adopted them"
            )
            advice = "A worker with free concurrency adopts them within seconds."
            found.append(Finding(level=Level.WARNING, subject=f"lane {lane}", message=message, advice=advice))
    if await application.queue.needs_rebuild():
        message = "is empty or has lost its data, and grants nothing until a worker has put everything back"
        advice = "" if _reconciled(workers) else "Start a worker."
        found.append(Finding(level=Level.WARNING, subject="the queue", message=message, advice=advice))
    return found


async def _compared(application: Application, workers: Mapping[str, JsonObject]) -> Sequence[Finding]:
    if await application.queue.needs_rebuild():
        # Everything would be missing in it.
        return []
    inspection = _inspection(application)
    misfits: list[Misfit] = []
    overdue: list[Execution] = []
    looked_at, cursor = 0, None
    while looked_at < _MOST:
        some, page = await inspection.unfinished(cursor)
        misfits += some
        overdue += [each for each in page.items if _is_overdue(each, application)]
        looked_at += len(page.items)
        cursor = page.cursor
        if cursor is None:
            break
    misfits += await inspection.heads()
    misfits += await inspection.owing()
    misfits += [each async for each in inspection.closed_lanes()]
    found = _told(misfits, workers)
    if overdue:
        message = (
            f"{_counted(overdue, 'execution')} run longer than allowed: {_examples([each.id for each in overdue])}"
        )
        advice = "See whether the engines they run on answer, and what the logs of their workers say."
        found.append(Finding(level=Level.PROBLEM, subject="overdue", message=message, advice=advice))
    if not found:
        more = " (there are more)" if cursor is not None else ""
        message = f"storage and queue agree on {looked_at} unfinished executions{more}"
        found.append(Finding(level=Level.OK, subject="comparison", message=message))
    return found


async def _leftovers(application: Application, workers: Mapping[str, JsonObject]) -> Sequence[Finding]:
    """Runs that nobody has anything to do with any more, on every place of every runner."""
    inspection = _inspection(application)
    asking = asyncio.Semaphore(_AT_ONCE)

    async def look(runner: Runner, place: str) -> Sequence[Misfit] | Finding:
        try:
            async with asking, asyncio.timeout(_SERVER_SECONDS):
                return [each async for each in inspection.leftovers(runner, place)]
        except TimeoutError:
            message = f"its runs could not be listed within {_SERVER_SECONDS:g} s"
        except FastlaneError as error:
            message = f"its runs could not be listed: {error}"
        advice = "Nothing is known of leftovers there; they are removed when it is back."
        return Finding(level=Level.WARNING, subject=f"{runner.name} {place}", message=message, advice=advice)

    looks: list[Awaitable[Sequence[Misfit] | Finding]] = []
    for runner in application.routing.runners:
        places = {place for lane in runner.lanes() for place in (await runner.availability(lane.name)).reached}
        looks += [look(runner, place) for place in sorted(places)]
    answers = await asyncio.gather(*looks)
    for runner in application.routing.runners:
        await runner.close()
    misfits = [each for answer in answers if not isinstance(answer, Finding) for each in answer]
    return [*_told(misfits, workers), *(answer for answer in answers if isinstance(answer, Finding))]


def _inspection(application: Application) -> Inspection:
    return Inspection(application.storage, application.queue, application.routing, application.context.clock)


def _is_overdue(execution: Execution, application: Application) -> bool:
    if execution.status is not Status.RUNNING or execution.started_at is None:
        return False
    grace = application.settings.section(WorkerSettings).stop_grace_seconds
    return application.context.clock() > execution.started_at + execution.spec.timeout + grace + _OVERDUE


def _told(misfits: Sequence[Misfit], workers: Mapping[str, JsonObject]) -> list[Finding]:
    """One finding per kind."""
    advice = (
        "A worker mends this within seconds. If it is still so when you run this again, read the workers' logs."
        if _reconciled(workers)
        else "A worker mends this as soon as one runs."
    )
    found: list[Finding] = []
    for kind in Mending:
        ids = [each.execution_id for each in misfits if each.kind is kind]
        if ids:
            message = f"{_counted(ids, 'execution')} {_KINDS[kind]}: {_examples(ids)}"
            found.append(Finding(level=Level.PROBLEM, subject=str(kind), message=message, advice=advice))
    return found


def _counted(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}" if len(items) == 1 else f"{len(items)} {noun}s"


def _examples(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_EXAMPLES]) + (", ..." if len(ids) > _EXAMPLES else "")
