"""Live output for programs: one JSON object a line (NDJSON), resumable.

    {"executionId": "…", "status": "running"}        whenever status or waitingFor change
    {"seq": 1, "stream": "stdout", "data": "hello"}  output; "base64" instead of "data" where it is not UTF-8
    {"heartbeat": true}                              nothing new for a while
    {"executionId": "…", "status": "done", "exitCode": 0, "reason": "succeeded", …}   the last line

A client that was cut off asks again with `?after=` and the last `seq` that it saw.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing

import structlog
from quart import Blueprint, Response, request

from fastlane_core.api.context import ApiContext, current_context
from fastlane_core.api.live import Followers, Happening, Heartbeat, follow_execution, followers
from fastlane_core.api.lookup import find_execution, find_job, last_execution
from fastlane_core.api.times import iso_time
from fastlane_core.errors import InvalidInput, StorageUnavailable
from fastlane_core.models import Execution, Json, LogChunk

log = structlog.get_logger(__name__)

blueprint = Blueprint("follow", __name__, url_prefix="/tasks/<task_id>/jobs/<job_id>")

_SEQUENCE = re.compile(r"[0-9]{1,18}")


@blueprint.get("/follow/")
async def follow_job(task_id: str, job_id: str) -> Response:
    """Follow the job's newest execution."""
    context = current_context()
    execution = await last_execution(context, await find_job(context, task_id, job_id))
    if execution is None:
        raise InvalidInput("", f"job {job_id} of task {task_id} has no execution yet")
    return _answer(context, execution)


@blueprint.get("/executions/<execution_id>/follow/")
async def follow_job_execution(task_id: str, job_id: str, execution_id: str) -> Response:
    """Follow an execution."""
    context = current_context()
    return _answer(context, await find_execution(context, task_id, job_id, execution_id))


def _answer(context: ApiContext, execution: Execution) -> Response:
    after = request.args.get("after", "0")
    if _SEQUENCE.fullmatch(after) is None:
        raise InvalidInput("after", "expected the seq of a line that came before, or 0")
    places = followers()
    with places.one_more():
        # Refused here if there are too many: once the answer has begun it cannot be refused any more.
        lines = _lines(context, places, execution.id, int(after))
    answer = Response(lines, content_type="application/x-ndjson")
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["X-Accel-Buffering"] = "no"
    answer.timeout = None
    return answer


async def _lines(context: ApiContext, places: Followers, execution_id: str, after: int) -> AsyncIterator[bytes]:
    with places.one_more():
        async with aclosing(follow_execution(context, execution_id, after=after, reasons=places.reasons)) as happenings:
            try:
                async for happening in happenings:
                    yield json.dumps(_line(happening), sort_keys=True, separators=(",", ":")).encode() + b"\n"
            except StorageUnavailable as error:
                # The answer has begun: ending it makes the client ask again.
                log.warning("following ends", execution=execution_id, error=str(error))


def _line(happening: Happening) -> dict[str, Json]:
    if isinstance(happening, Heartbeat):
        return {"heartbeat": True}
    if isinstance(happening, LogChunk):
        line: dict[str, Json] = {"seq": happening.sequence, "stream": happening.stream.value}
        try:
            line["data"] = happening.data.decode()
        except UnicodeDecodeError:
            line["base64"] = base64.b64encode(happening.data).decode()
        return line
    line = {"executionId": happening.id, "status": happening.status.value}
    if not happening.status.is_final:
        return line | {"waitingFor": happening.waiting_for}
    return line | {
        "exitCode": happening.exit_code,
        "reason": happening.reason.value if happening.reason else None,
        "message": happening.message,
        "outputLimitReached": happening.log_truncated,
        "retryId": happening.retry_id,
        "retryAt": iso_time(happening.retry_at),
    }
