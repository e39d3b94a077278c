"""Orders of jobs in requests, and the answer that tells what became of one."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from functools import lru_cache

from quart import Response
from quart.globals import request_ctx

from fastlane_core.api.answers import json_answer
from fastlane_core.api.bodies import header, parsed_body
from fastlane_core.api.context import ApiContext
from fastlane_core.api.links import request_links
from fastlane_core.api.lookup import check_task_id
from fastlane_core.api.payload import CheckedPayload, payload_schema
from fastlane_core.contracts.storage import Submitted
from fastlane_core.engine.schedules import next_execution_id
from fastlane_core.engine.submission import JobOrder
from fastlane_core.errors import InvalidInput

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


async def requested_job(context: ApiContext, task_id: str, job_id: str | None = None) -> JobOrder:
    """The order in the current request, checked. Raises InvalidInput, RequestEntityTooLarge."""
    check_task_id(task_id)
    key = idempotency_key()
    runner = context.routing.runner_of(context.routing.lane_for(task_id).name).name
    schema = payload_schema()
    payload, body = await parsed_body(lambda body: schema.parse(body, runner, now=context.clock()))
    digest = hashlib.sha256(body).hexdigest() if key else None
    return job_order(task_id, payload, job_id=job_id, address=client_address(), key=key, digest=digest)


def job_order(
    task_id: str,
    payload: CheckedPayload,
    *,
    job_id: str | None = None,
    address: str | None,
    key: str | None,
    digest: str | None,
) -> JobOrder:
    """The order of a checked payload; `key` is its idempotency key, with the `digest` of what came with it."""
    return JobOrder(
        task_id=task_id,
        job_id=job_id,
        spec=payload.spec,
        request_ip=address,
        metadata=payload.metadata,
        retries=payload.retries,
        retry=payload.retry,
        start_at=payload.start_at,
        schedule=payload.schedule,
        expiration=payload.expiration,
        priority=payload.priority,
        task_concurrency=payload.task_concurrency,
        job_concurrency=payload.job_concurrency,
        notifications=payload.notifications,
        idempotency_key=key,
        request_digest=digest,
    )


def submitted_answer(context: ApiContext, submitted: Submitted) -> Response:
    """Where the job is, and the execution that is to start for it."""
    job, execution = submitted.job, submitted.execution
    links = request_links(context)
    return json_answer(
        {
            "taskId": job.task_id,
            "jobId": job.id,
            "executionId": execution.id if execution else None,
            "executionUrl": links.execution(job.task_id, job.id, execution.id) if execution else None,
            "queueJobId": execution.id if execution else next_execution_id(job),
            "jobUrl": links.job(job.task_id, job.id),
            "taskUrl": links.task(job.task_id),
        }
    )


def client_address() -> str | None:
    """Where the request came from, as a proxy tells it, else as seen here; for the record, nothing is decided by it."""
    asked = request_ctx.request
    named = (header(asked, b"x-real-ip") or "", (header(asked, b"x-forwarded-for") or "").partition(",")[0])
    return next(filter(None, map(_address, (*named, asked.remote_addr or ""))), None)


@lru_cache(maxsize=1024)
def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        return None


def idempotency_key() -> str | None:
    """The `Idempotency-Key` of the current request. Raises InvalidInput."""
    key = header(request_ctx.request, b"idempotency-key")
    return None if key is None else check_key("Idempotency-Key", key)


def check_key(field: str, key: str) -> str:
    """The key, if it can be one. Raises InvalidInput."""
    if _KEY.fullmatch(key) is None:
        raise InvalidInput(field, "expected 1 to 255 printable ASCII characters without spaces")
    return key
