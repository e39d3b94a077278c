"""Tasks: submitting jobs to them, listing and searching."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quart import Blueprint, Response, request

from fastlane_core.api.answers import json_answer
from fastlane_core.api.bodies import parsed_body
from fastlane_core.api.concurrency import parse_task
from fastlane_core.api.context import current_context
from fastlane_core.api.links import request_links
from fastlane_core.api.lookup import check_task_id, find_task, page_number
from fastlane_core.api.orders import requested_job, submitted_answer
from fastlane_core.api.shapes import task_item, task_page
from fastlane_core.api.times import iso_time
from fastlane_core.errors import Conflict, InvalidInput, NotFound
from fastlane_core.models import Task

blueprint = Blueprint("tasks", __name__)

#: Jobs given with a task; more by its `nextUrl`.
_JOBS = 200
_MAX_QUERY = 255
#: What storages search by: runs of letters and digits.
_WORD = re.compile(r"[^\W_]")


@blueprint.post("/tasks/<task_id>/")
async def enqueue_job(task_id: str) -> Response:
    """Accept a job. It is stored when the answer leaves, and soon in the queue."""
    context = current_context()
    order = await requested_job(context, task_id)
    submitted = await context.submission.submit(order)
    if submitted.repeated and submitted.job.request_digest != order.request_digest:
        raise Conflict(f"the Idempotency-Key {order.idempotency_key} came with another body before")
    return submitted_answer(context, submitted)


@blueprint.get("/tasks/")
async def get_tasks() -> Response:
    """A page of the tasks, in the order they were made."""
    context = current_context()
    page = page_number(request.args.get("page"))
    per_page = context.api.pagination_per_page
    total = await context.storage.count_tasks()
    _check_page(page, total, per_page)
    tasks = await context.storage.list_tasks(start=(page - 1) * per_page, limit=per_page)
    links = request_links(context)
    urls = [links.tasks(page - 1), links.tasks(page + 1)]
    return json_answer(task_page(tasks, links, total=total, page=page, per_page=per_page, urls=urls))


@blueprint.get("/search/")
async def search_tasks() -> Response:
    """A page of the tasks with a word that begins with each word of `query`."""
    context = current_context()
    query = _query()
    page = page_number(request.args.get("page"))
    per_page = context.api.pagination_per_page
    tasks: Sequence[Task] = ()
    total = 0
    if _WORD.search(query):
        # Without a word in it, every task would do.
        tasks, total = await context.storage.search_tasks(query, start=(page - 1) * per_page, limit=per_page)
    _check_page(page, total, per_page)
    links = request_links(context)
    urls = [links.search(query, page - 1), links.search(query, page + 1)]
    return json_answer(task_page(tasks, links, total=total, page=page, per_page=per_page, urls=urls))


@blueprint.get("/tasks/<task_id>/")
async def get_task(task_id: str) -> Response:
    """A task with its jobs, most recently modified first."""
    context = current_context()
    task = await find_task(context, task_id)
    page = await context.storage.list_jobs(task_id, cursor=request.args.get("cursor") or None, limit=_JOBS)
    links = request_links(context)
    jobs = [
        {"id": job.id, "createdAt": iso_time(job.created_at), "url": links.job(task_id, job.id)} for job in page.items
    ]
    next_url = links.task(task_id, page.cursor) if page.cursor else None
    return json_answer({"taskId": task_id, "jobs": jobs, "nextUrl": next_url, "concurrency": task.concurrency})


@blueprint.put("/tasks/<task_id>/")
async def put_task(task_id: str) -> Response:
    """Set how many executions of a task may run at a time, whether it has jobs already or not."""
    context = current_context()
    check_task_id(task_id)
    wanted, _ = await parsed_body(parse_task)
    task = await context.task_limits.set(task_id, wanted.concurrency)
    return json_answer({**task_item(task, request_links(context)), "concurrency": task.concurrency})


def _check_page(page: int, total: int, per_page: int) -> None:
    last = max(1, -(-total // per_page))
    if page > last:
        raise NotFound(f"there is no page {page}: the last one is {last}")


def _query() -> str:
    query = request.args.get("query", "").strip()
    if not query:
        raise InvalidInput("query", "is missing: expected words that the task's id has")
    if len(query) > _MAX_QUERY or not query.isprintable():
        raise InvalidInput("query", f"expected at most {_MAX_QUERY} printable characters")
    return query
