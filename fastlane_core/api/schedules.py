"""Schedules: when a job runs next, what a schedule would do, and pausing one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import cast

from pydantic import ConfigDict, ValidationError
from quart import Blueprint, Response, request

from fastlane_core.api.answers import json_answer
from fastlane_core.api.bodies import kind_of, parse_json_object, parsed_body
from fastlane_core.api.context import ApiContext, current_context
from fastlane_core.api.links import request_links
from fastlane_core.api.lookup import find_job
from fastlane_core.api.schedule_payload import SCHEDULE_EXPECTED, ScheduleFields, checked_schedule
from fastlane_core.api.shapes import job_link, schedule_shape, task_link
from fastlane_core.api.times import iso_time
from fastlane_core.engine.cron import zone_of
from fastlane_core.engine.schedules import begun, paused, resumed, upcoming
from fastlane_core.errors import Conflict, InvalidInput, NotFound, RevisionConflict
from fastlane_core.models import Job, Json, RunSpec

blueprint = Blueprint("schedules", __name__)

_JOB = "/tasks/<task_id>/jobs/<job_id>"
_MAX_NEXT = 1000
#: Writers of one job are its callers and its schedule; more conflicts in a row than this are a defect.
_TRIES = 50


class SchedulePreview(ScheduleFields):
    """When a job would run; the other fields of a job may be there as well, and are not looked at."""

    model_config = ConfigDict(extra="ignore", strict=True)


@blueprint.get(_JOB + "/schedule/")
async def get_schedule(task_id: str, job_id: str) -> Response:
    """A job's schedule, and its next ticks."""
    context = current_context()
    job = await find_job(context, task_id, job_id)
    if job.schedule is None:
        raise NotFound(f"job {job_id} of task {task_id} has no schedule")
    return await _schedule_answer(context, job, _wanted())


@blueprint.post(_JOB + "/pause/")
async def pause_job(task_id: str, job_id: str) -> Response:
    """Let a schedule fire nothing until it is resumed. Idempotent."""
    return await _changed(task_id, job_id, paused)


@blueprint.post(_JOB + "/resume/")
async def resume_job(task_id: str, job_id: str) -> Response:
    """Let a paused schedule fire again, from its next tick on. Idempotent."""
    return await _changed(task_id, job_id, resumed)


@blueprint.post("/schedule/preview/")
async def preview_schedule() -> Response:
    """When a job with this schedule would run. Nothing is stored."""
    context = current_context()
    count, now = _wanted(), context.clock()
    fields, _ = await parsed_body(lambda body: _preview(parse_json_object(body)))
    start_at, schedule = checked_schedule(fields, now=now)
    if schedule is None:
        return json_answer({"schedule": None, "next": [_tick(now if start_at is None else start_at, "UTC")]})
    spec = RunSpec(image="", command="", timeout=0.0)
    job = begun(Job(id="", task_id="", spec=spec, created_at=now, modified_at=now, schedule=schedule), now=now)
    return json_answer({"schedule": schedule_shape(job), "next": await _next(job, count, now=now)})


async def _changed(task_id: str, job_id: str, step: Callable[..., Job]) -> Response:
    context = current_context()
    for _ in range(_TRIES):
        job = await find_job(context, task_id, job_id)
        if job.schedule is None:
            raise Conflict(f"job {job_id} of task {task_id} has no schedule: there is nothing to pause or resume")
        if job.stop_requested_at is not None:
            raise Conflict(f"job {job_id} of task {task_id} was stopped")
        now = context.clock()
        changed = step(job, now=now)
        if changed is job:
            return await _schedule_answer(context, job, 1)
        try:
            return await _schedule_answer(context, await context.storage.put_job(changed), 1)
        except RevisionConflict:
            continue
    raise RevisionConflict(f"job {job_id} kept changing: gave up after {_TRIES} tries")


async def _schedule_answer(context: ApiContext, job: Job, count: int) -> Response:
    links = request_links(context)
    return json_answer(
        {
            "task": task_link(job.task_id, links),
            "job": job_link(job.task_id, job.id, links),
            "schedule": schedule_shape(job),
            "next": await _next(job, count, now=context.clock()),
        }
    )


async def _next(job: Job, count: int, *, now: float) -> Sequence[Json]:
    timezone = job.schedule.timezone if job.schedule else "UTC"
    # Ticks that come rarely take a while to find.
    found = await asyncio.to_thread(upcoming, job, count=count, now=now)
    return [_tick(at, timezone) for at in found]


def _tick(at: float, timezone: str) -> dict[str, Json]:
    local = datetime.fromtimestamp(at, UTC).astimezone(zone_of(timezone))
    return {"at": iso_time(at), "timestamp": at, "local": local.isoformat()}


def _wanted() -> int:
    """How many ticks are asked for."""
    text = request.args.get("next", "10")
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _MAX_NEXT):
        raise InvalidInput("next", f"expected a whole number from 1 to {_MAX_NEXT}")
    return int(text)


def _preview(document: Mapping[str, Json]) -> SchedulePreview:
    try:
        return SchedulePreview.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0])
        raise InvalidInput(
            name, f"expected {SCHEDULE_EXPECTED[name]}, got {kind_of(cast('object', first['input']))}"
        ) from None
