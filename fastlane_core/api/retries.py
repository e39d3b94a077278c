"""Running jobs again: one, or those of a task whose newest execution ended in some way."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from quart import Blueprint, Response, request

from fastlane_core.api.answers import json_answer
from fastlane_core.api.bodies import parse_json_object, parsed_body
from fastlane_core.api.context import current_context
from fastlane_core.api.links import Links, request_links
from fastlane_core.api.lookup import find_job, find_task
from fastlane_core.api.moments import moment
from fastlane_core.engine.retrying import Selection
from fastlane_core.errors import InvalidInput
from fastlane_core.models import Execution, Json, Reason, Status

blueprint = Blueprint("retries", __name__, url_prefix="/tasks/<task_id>")

#: Seconds that one request looks for jobs to retry; more by its `cursor`.
_SECONDS = 0.1
_MOST = 1000

Ended = Literal["done", "failed", "timedout", "stopped", "expired"]
Word = TypeVar("Word", bound=str)


class RetryRequest(BaseModel):
    """Which jobs of a task are to run again. What is not given does not matter."""

    model_config = ConfigDict(extra="forbid", strict=True)

    status: Ended | list[Ended] = Field(
        default=["failed", "timedout", "expired"], description="How the job's newest execution ended: one, or a list."
    )
    reason: str | list[str] | None = Field(default=None, description="Reason codes of that ending: one, or a list.")
    since: float | str | None = Field(
        default=None, description="It ended then or later: Unix time in seconds, or ISO 8601 with an offset."
    )
    until: float | str | None = Field(default=None, description="It ended before that, in either form.")
    limit: int = Field(default=100, ge=1, le=_MOST, description="Jobs to run again at most.")
    cursor: str | None = Field(default=None, description="The `cursor` of the answer before: goes on from there.")


@blueprint.post("/jobs/<job_id>/retry/")
async def retry_job(task_id: str, job_id: str) -> Response:
    """Run a job again, now."""
    context = current_context()
    await find_job(context, task_id, job_id)
    execution = await context.retrying.retry_job(task_id, job_id, force=_flag("force"))
    links = request_links(context)
    return json_answer({"taskId": task_id, "taskUrl": links.task(task_id), **_retried(execution, links)})


@blueprint.post("/retry/")
async def retry_jobs(task_id: str) -> Response:
    """Run the jobs of a task again that failed, timed out or expired, or those that the body selects."""
    context = current_context()
    for name in request.args:
        # Passed over, it would have other jobs run again than its caller meant.
        raise InvalidInput(name[:100], "is in the address: the body says which jobs are run again")
    await find_task(context, task_id)
    wanted, _ = await parsed_body(_parsed)
    done = await context.retrying.retry_many(
        task_id, _selection(wanted), cursor=wanted.cursor, limit=wanted.limit, seconds=_SECONDS
    )
    links = request_links(context)
    return json_answer(
        {
            "taskId": task_id,
            "taskUrl": links.task(task_id),
            "retried": [_retried(each, links) for each in done.retried],
            "refused": [{"jobId": job_id, "error": why} for job_id, why in done.refused],
            "lookedAt": done.looked_at,
            "cursor": done.cursor,
        }
    )


def _retried(execution: Execution, links: Links) -> dict[str, Json]:
    task_id, job_id = execution.task_id, execution.job_id
    return {
        "jobId": job_id,
        "jobUrl": links.job(task_id, job_id),
        "executionId": execution.id,
        "executionUrl": links.execution(task_id, job_id, execution.id),
    }


def _parsed(body: bytes) -> RetryRequest:
    document = parse_json_object(body) if body.strip() else {}
    try:
        return RetryRequest.model_validate({name: value for name, value in document.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = str(first["loc"][0])[:100]
        known = RetryRequest.model_fields.get(field)
        if known is None:
            raise InvalidInput(
                field, f"there is no such field; known are {', '.join(RetryRequest.model_fields)}"
            ) from None
        raise InvalidInput(field, f"cannot be used: {first['msg'].lower()}. {known.description}") from None


def _selection(wanted: RetryRequest) -> Selection:
    reasons: frozenset[Reason] | None = None
    if wanted.reason is not None:
        try:
            reasons = frozenset(Reason(each) for each in _listed(wanted.reason))
        except ValueError:
            raise InvalidInput("reason", f"expected one of {', '.join(Reason)}, or a list of them") from None
    return Selection(
        statuses=frozenset(Status(each) for each in _listed(wanted.status)),
        reasons=reasons,
        since=None if wanted.since is None else moment("since", wanted.since),
        until=None if wanted.until is None else moment("until", wanted.until),
    )


def _listed(value: Word | list[Word]) -> list[Word]:
    return value if isinstance(value, list) else [value]


def _flag(name: str) -> bool:
    text = request.args.get(name, "false").lower()
    if text not in ("true", "1", "false", "0", ""):
        raise InvalidInput(name, "expected true or false")
    return text in ("true", "1")
