"""Jobs: their details, the output of their newest execution, replacing and stopping them."""

from __future__ import annotations

import re

from quart import Blueprint, Response, request

from fastlane_core.api.answers import json_answer
from fastlane_core.api.context import current_context
from fastlane_core.api.executions import output_answer
from fastlane_core.api.links import request_links
from fastlane_core.api.lookup import canonical_uuid, find_job, last_execution
from fastlane_core.api.orders import requested_job, submitted_answer
from fastlane_core.api.shapes import execution_shape, job_shape, task_link
from fastlane_core.api.waiting import WaitingReasons
from fastlane_core.engine.replacing import Precondition
from fastlane_core.errors import InvalidInput
from fastlane_core.models import Json

blueprint = Blueprint("jobs", __name__, url_prefix="/tasks/<task_id>/jobs/<job_id>")

#: Executions given with a job, newest first.
_EXECUTIONS = 20
#: Seconds after which the answer to a stop waits for no more executions.
_STOP_SECONDS = 0.1
_GENERATION = re.compile(r'"([0-9]{1,9})"')


@blueprint.get("/")
async def job_details(task_id: str, job_id: str) -> Response:
    """A job with its newest executions."""
    context = current_context()
    job = await find_job(context, task_id, job_id)
    page = await context.storage.list_executions(job_id, task_id=task_id, cursor=None, limit=_EXECUTIONS)
    count = await context.storage.count_executions(job_id, task_id=task_id)
    links = request_links(context)
    waiting = WaitingReasons(context)
    executions: list[Json] = []
    for execution in page.items:
        shape = await execution_shape(context, execution, waiting, log_bytes=context.limits.listed_log_bytes)
        executions.append({**shape, "url": links.execution(task_id, job_id, execution.id)})
    last = page.items[0] if page.items else None
    answer = json_answer(
        {
            "task": task_link(task_id, links),
            "job": job_shape(context, job, last=last, count=count, executions=executions),
        }
    )
    answer.set_etag(str(job.generation))
    return answer


@blueprint.put("/")
async def put_job(task_id: str, job_id: str) -> Response:
    """Make a job with an id of the caller's, or put a new request and schedule in the place of the stored ones."""
    context = current_context()
    precondition = _precondition()
    if canonical_uuid(job_id) is None:
        raise InvalidInput("jobId", "expected a UUID, like 0e2f4d1c-7a3b-4c5d-8e9f-001122334455")
    order = await requested_job(context, task_id, job_id)
    submitted = await context.replacement.put(order, precondition)
    answer = submitted_answer(context, submitted)
    answer.set_etag(str(submitted.job.generation))
    return answer


@blueprint.post("/stop/")
async def stop_job(task_id: str, job_id: str) -> Response:
    """End what the job runs or waits for, its retries and its schedule."""
    context = current_context()
    await find_job(context, task_id, job_id)
    await context.stopping.stop_job(task_id, job_id, within=_STOP_SECONDS)
    links = request_links(context)
    return json_answer(
        {
            "taskId": task_id,
            "jobId": job_id,
            "jobUrl": links.job(task_id, job_id),
            "taskUrl": links.task(task_id),
        }
    )


@blueprint.get("/<any(stdout, stderr, logs):output>/")
async def job_output(task_id: str, job_id: str, output: str) -> Response:
    """What the job's newest execution has written so far."""
    context = current_context()
    job = await find_job(context, task_id, job_id)
    execution = await last_execution(context, job)
    if execution is None:
        raise InvalidInput("", f"job {job_id} of task {task_id} has no execution yet")
    return output_answer(context, execution, output)


def _precondition() -> Precondition:
    """What `If-Match` and `If-None-Match` ask for (RFC 9110, section 13.1); the ETag is the job's generation."""
    match, none_match = request.headers.get("If-Match"), request.headers.get("If-None-Match")
    if none_match is not None and none_match.strip() != "*":
        raise InvalidInput("If-None-Match", "expected *: put the job only if there is none yet")
    if match is None:
        return Precondition(absent=none_match is not None)
    found = _GENERATION.fullmatch(match.strip())
    if found is None:
        raise InvalidInput("If-Match", 'expected the ETag of an earlier answer, like "3"')
    return Precondition(generation=int(found[1]), absent=none_match is not None)
