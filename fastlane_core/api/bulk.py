"""Many jobs in one request: all of them checked before the first is stored, and one answer for each."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from typing import cast

from quart import Blueprint, Response

from fastlane_core.api.answers import json_answer
from fastlane_core.api.bodies import kind_of, parse_json, parsed_body
from fastlane_core.api.context import ApiContext, current_context
from fastlane_core.api.links import Links, request_links
from fastlane_core.api.lookup import check_task_id
from fastlane_core.api.orders import check_key, client_address, idempotency_key, job_order
from fastlane_core.api.payload import PayloadSchema, payload_schema
from fastlane_core.contracts.storage import Submission, Submitted
from fastlane_core.engine.identifiers import new_ids
from fastlane_core.errors import Conflict, InvalidInput
from fastlane_core.models import Json

blueprint = Blueprint("bulk", __name__)

_MOST = 10_000
#: What is wrong is told of so many jobs.
_TOLD = 100
_KEY = "idempotencyKey"
#: Jobs that are stored together: a storage does nothing else meanwhile.
_TOGETHER = 1_000


@blueprint.post("/tasks/<task_id>/bulk/")
async def enqueue_jobs(task_id: str) -> Response:
    """Accept many jobs. They are stored when the answer leaves."""
    context = current_context()
    check_task_id(task_id)
    batch = _Batch(context, payload_schema(), task_id, client_address(), idempotency_key())
    submissions, _ = await parsed_body(batch.parse)
    submitted: list[Submitted] = []
    limit = batch.task_concurrency
    # The first by itself, so that nothing is stored where the key came with other jobs before.
    together = _TOGETHER if batch.key is None else 1
    while len(submitted) < len(submissions):
        stored = await context.submission.store_many(submissions[len(submitted) : len(submitted) + together])
        if batch.key is not None and not submitted and _conflicts(submissions[0], stored[0]):
            raise Conflict(f"the Idempotency-Key {batch.key} came with another body before: new jobs need a new key")
        if limit is not None and not all(each.repeated for each in stored):
            # Only by jobs that are new, and before one of them may run.
            await context.task_limits.ensure(task_id, limit)
            limit = None
        await context.submission.enqueue_new(stored)
        submitted += stored
        together = _TOGETHER
    links = request_links(context)

    def answer() -> Response:
        items = [_answer(wanted, found, links) for wanted, found in zip(submissions, submitted, strict=True)]
        return json_answer({"taskId": task_id, "taskUrl": links.task(task_id), "count": len(items), "items": items})

    return await asyncio.to_thread(answer)


class _Batch:
    """What all jobs of a request have in common."""

    def __init__(
        self, context: ApiContext, schema: PayloadSchema, task_id: str, address: str | None, key: str | None
    ) -> None:
        """Raises InvalidInput for a task that no lane takes."""
        self.key = key
        #: The limit of the task that the last of the jobs which say one says.
        self.task_concurrency: int | None = None
        self._context = context
        self._schema = schema
        self._task_id = task_id
        self._address = address
        self._runner = context.routing.runner_of(context.routing.lane_for(task_id).name).name
        self._now = context.clock()
        self._ids = new_ids(0)

    def parse(self, body: bytes) -> Sequence[Submission]:
        """The jobs in a body, ready to be stored. Raises InvalidInput."""
        documents = _listed(parse_json(body))
        digest = hashlib.sha256(body).hexdigest()
        submissions: list[Submission] = []
        problems: list[tuple[str, str]] = []
        seen: dict[str, int] = {}
        self._ids = new_ids(2 * len(documents))
        for index, document in enumerate(documents):
            try:
                submissions.append(self._submission(index, document, digest, seen))
            except InvalidInput as error:
                problems.append((f"jobs.{index}.{error.field}".rstrip("."), error.message))
                if len(problems) == _TOLD:
                    break
        if problems:
            field, message = problems[0]
            raise InvalidInput(field, f"{message} (nothing is stored; see problems)", problems=problems)
        return submissions

    def _submission(self, index: int, document: Json, digest: str, seen: dict[str, int]) -> Submission:
        if not isinstance(document, dict):
            raise InvalidInput("", f"is {kind_of(document)}: expected an object with the fields of a job")
        fields = dict(document)
        own_key = fields.pop(_KEY, None)
        key = None if self.key is None else f"{self.key}#{index}"
        if own_key is not None:
            if self.key is not None:
                raise InvalidInput(_KEY, "the request has an Idempotency-Key as well: expected one of the two at most")
            if not isinstance(own_key, str):
                raise InvalidInput(_KEY, f"expected a string, got {kind_of(own_key)}")
            key = check_key(_KEY, own_key)
            digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
            if key in seen:
                raise InvalidInput(_KEY, f"is that of the job {seen[key]} of this request")
            seen[key] = index
        payload = self._schema.check(fields, self._runner, now=self._now)
        self.task_concurrency = payload.task_concurrency or self.task_concurrency
        order = job_order(self._task_id, payload, address=self._address, key=key, digest=digest if key else None)
        return self._context.submission.prepared(order, self._ids)


def _listed(document: Json) -> Sequence[Json]:
    if isinstance(document, dict):
        others = [name for name in document if name != "jobs"]
        if others:
            raise InvalidInput(others[0][:100], 'there is no such field; expected {"jobs": [...]}')
        document = document.get("jobs")
    if not isinstance(document, list):
        raise InvalidInput("jobs", f'expected {{"jobs": [...]}}, or a list of jobs, got {kind_of(document)}')
    if not 1 <= len(document) <= _MOST:
        raise InvalidInput("jobs", f"expected 1 to {_MOST} jobs, got {len(document)}")
    return cast("Sequence[Json]", document)


def _conflicts(wanted: Submission, submitted: Submitted) -> bool:
    return submitted.repeated and submitted.job.request_digest != wanted.job.request_digest


def _answer(wanted: Submission, submitted: Submitted, links: Links) -> dict[str, Json]:
    job, execution = submitted.job, submitted.execution
    if _conflicts(wanted, submitted):
        return {"status": 409, "error": f"its {_KEY} came with another job before: a new job needs a new key"}
    return {
        "status": 200,
        "jobId": job.id,
        "jobUrl": links.job(job.task_id, job.id),
        "executionId": execution.id if execution else None,
        "executionUrl": links.execution(job.task_id, job.id, execution.id) if execution else None,
        "repeated": submitted.repeated,
    }
