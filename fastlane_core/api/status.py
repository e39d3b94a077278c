"""Whether Fastlane is well, and what it is doing."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from quart import Blueprint, Response

from fastlane_core.api.answers import json_answer
from fastlane_core.api.context import ApiContext, current_context
from fastlane_core.api.links import request_links
from fastlane_core.api.shapes import container_id, host_and_port, scheduled_item
from fastlane_core.api.times import iso_time
from fastlane_core.api.waiting import live_workers
from fastlane_core.contracts.queue import LaneStats
from fastlane_core.engine.presence import APIS_SCOPE, live_reports
from fastlane_core.engine.schedules import is_active
from fastlane_core.errors import QueueUnavailable, StorageUnavailable
from fastlane_core.models import Job, Json, JsonObject, Status

blueprint = Blueprint("status", __name__)

#: Seconds that a server gets to say that it is well.
_HEALTH_TIMEOUT = 2.0
#: Seconds that the queue gets to count what it holds.
_STATS_TIMEOUT = 5.0
#: Unfinished executions looked through for running ones: the longest unfinished come first.
_LOOKED_THROUGH = 200
#: Jobs with a schedule that are told of: those that fire next.
_SCHEDULED = 1_000


@blueprint.get("/")
@blueprint.get("/healthcheck/")
async def healthcheck() -> Response:
    """Whether storage and queue answer; 500 if one does not.

    `mongo` and `redis` are what clients know the two by, whatever they are today.
    """
    context = current_context()
    storage_error, queue_error = await asyncio.gather(_problem(context.storage.health), _problem(context.queue.health))
    errors: list[Json] = []
    for source, part, problem in (("redis", "queue", queue_error), ("mongo", "storage", storage_error)):
        if problem is not None:
            errors.append({"source": source, "part": part, "message": problem})
    body: dict[str, Json] = {
        "redis": queue_error is None,
        "mongo": storage_error is None,
        "queue": queue_error is None,
        "storage": storage_error is None,
        "errors": errors,
    }
    return json_answer(body, 500 if errors else 200)


@blueprint.get("/status/")
async def status() -> Response:
    """Hosts, containers, queues and counts, and the processes that live.

    What only a queue that is out of reach could tell is null.
    """
    context = current_context()
    workers, apis, stats, tasks, jobs, running = await asyncio.gather(
        live_workers(context),
        live_reports(context.storage, APIS_SCOPE, now=context.clock()),
        _stats(context),
        context.storage.count_tasks(),
        context.storage.count_jobs(),
        _running(context),
    )
    scheduled, scheduled_count = await asyncio.gather(
        context.storage.list_scheduled_jobs(cursor=None, limit=_SCHEDULED),
        context.storage.count_scheduled_jobs(),
    )
    # Others are being stopped.
    listed = [each for each in scheduled.items if is_active(each)]
    links = request_links(context)
    return json_answer(
        {
            "hosts": _hosts(workers, stats),
            "containers": {"running": running},
            "queues": _queues(stats, listed, scheduled_count),
            "tasks": {"count": tasks},
            "jobs": {"count": jobs, "scheduled": [scheduled_item(context, each, links) for each in listed]},
            "fastlane": {
                "version": context.version,
                "pid": os.getpid(),
                "executor": ", ".join(runner.name for runner in context.routing.runners),
            },
            "lanes": _lanes(context, stats),
            "workers": [_process(each) for each in workers],
            "apis": [_process(each) for each in apis.values()],
        }
    )


def _process(report: JsonObject) -> dict[str, Json]:
    """What a process tells of itself, without what others show of it and what only other processes need."""
    shown = {key: value for key, value in report.items() if key not in ("hosts", "machine")}
    return {**shown, "heartbeat": iso_time(_reported_at(report))}


async def _problem(health: Callable[[], Awaitable[str]]) -> str | None:
    try:
        async with asyncio.timeout(_HEALTH_TIMEOUT):
            await health()
    except (StorageUnavailable, QueueUnavailable) as error:
        return str(error)
    except TimeoutError:
        return f"no answer within {_HEALTH_TIMEOUT:g} s"
    return None


async def _stats(context: ApiContext) -> Mapping[str, LaneStats]:
    try:
        async with asyncio.timeout(_STATS_TIMEOUT):
            return await context.queue.stats()
    except (QueueUnavailable, TimeoutError):
        return {lane.name: LaneStats(reachable=False) for lane in context.routing.lanes()}


def _are_known(stats: Mapping[str, LaneStats]) -> bool:
    return all(each.reachable for each in stats.values())


def _hosts(workers: Sequence[JsonObject], stats: Mapping[str, LaneStats]) -> Sequence[Json]:
    """What workers tell of hosts: of each the newest, with the runs that it holds; available ones first."""
    loads: Counter[str] = Counter()
    for lane in stats.values():
        loads.update(lane.places or {})
    are_known = _are_known(stats)
    newest: dict[tuple[str, str], JsonObject] = {}
    for report in sorted(workers, key=_reported_at):
        hosts = report.get("hosts")
        for host in hosts if isinstance(hosts, Sequence) and not isinstance(hosts, str) else ():
            if isinstance(host, Mapping):
                running = loads[str(host.get("place"))] if are_known else None
                newest[str(host.get("host")), str(host.get("port"))] = {**host, "running": running}
    ordered = [newest[key] for key in sorted(newest)]
    return sorted(ordered, key=_is_unavailable)


def _is_unavailable(host: JsonObject) -> bool:
    return not host.get("available")


def _reported_at(report: JsonObject) -> float:
    at = report.get("at")
    return float(at) if isinstance(at, int | float) else 0.0


async def _running(context: ApiContext) -> list[Json]:
    page = await context.storage.list_unfinished(cursor=None, limit=_LOOKED_THROUGH)
    running: list[Json] = []
    for execution in page.items:
        if execution.status is Status.RUNNING:
            host, port = host_and_port(execution.place or "")
            running.append({"host": host, "port": port, "id": container_id(execution), "executionId": execution.id})
    return running


def _queues(stats: Mapping[str, LaneStats], scheduled: Sequence[Job], scheduled_count: int) -> dict[str, Json]:
    """`scheduled` are the first of the jobs that run again and again."""
    due = [each.next_due_at for each in stats.values()] + [each.due_at for each in scheduled[:1]]
    next_due = min((at for at in due if at is not None), default=None)
    are_known = _are_known(stats)

    def total(of_lane: Callable[[LaneStats], int], others: int = 0) -> int | None:
        return sum(map(of_lane, stats.values())) + others if are_known else None

    return {
        "jobs": {"length": total(lambda lane: lane.waiting + lane.held)},
        "monitor": {"length": total(lambda lane: lane.leased)},
        "webhooks": {"length": 0},
        "notify": {"length": 0},
        "scheduled": {
            "length": total(lambda lane: lane.delayed, scheduled_count),
            "nextTimeStamp": next_due,
            "nextHumanReadableDate": iso_time(next_due),
        },
    }


def _lanes(context: ApiContext, stats: Mapping[str, LaneStats]) -> dict[str, Json]:
    capacities = {lane.name: lane.capacity for lane in context.routing.lanes()}
    lanes: dict[str, Json] = {}
    for name in sorted({*capacities, *stats}):
        lane = stats.get(name, LaneStats())
        counted: dict[str, Json] = {
            "waiting": lane.waiting,
            "delayed": lane.delayed,
            "held": lane.held,
            "leased": lane.leased,
            "places": dict(lane.places or {}),
        }
        lanes[name] = {
            "capacity": capacities.get(name, 0),
            **(counted if lane.reachable else dict.fromkeys(counted)),
            "reachable": lane.reachable,
        }
    return lanes
