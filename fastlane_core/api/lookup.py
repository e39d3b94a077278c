"""Finding what an address names."""

from __future__ import annotations

import re
import unicodedata
import uuid
from urllib.parse import unquote_to_bytes

from quart import has_request_context
from quart.globals import request_ctx, websocket_ctx
from quart.wrappers.base import BaseRequestWebsocket

from fastlane_core.api.context import ApiContext
from fastlane_core.errors import InvalidInput, NotFound
from fastlane_core.models import Execution, Job, Task

MAX_TASK_ID = 255
_MAX_ID = 255
#: What the parts of an address name: /tasks/<task>/jobs/<job>/executions/<execution>.
_PARTS = ("", "", "taskId", "", "jobId", "", "executionId")
_UUID = re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_PAGE_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


async def read_address() -> None:
    """Refuse an address with bytes that are no text, and read the ids in it as `canonical_uuid`, however written.

    Servers replace such bytes, so different ones would name the same. Raises InvalidInput.
    """
    asked: BaseRequestWebsocket = request_ctx.request if has_request_context() else websocket_ctx.websocket
    if "\ufffd" in asked.path:
        _check_path(asked.scope["raw_path"])
    values = asked.view_args or {}
    for name in values.keys() & {"job_id", "execution_id"}:
        values[name] = canonical_uuid(values[name]) or values[name]


def _check_path(raw: bytes) -> None:
    for name, part in zip(_PARTS, raw.partition(b"?")[0].split(b"/"), strict=False):
        try:
            unquote_to_bytes(part).decode()
        except UnicodeDecodeError:
            raise InvalidInput(str(name), "is not UTF-8: percent-encode the bytes of UTF-8 text") from None


def canonical_uuid(text: str) -> str | None:
    """The UUID as ids of jobs and executions are written: in lower case, with dashes. None for what is none."""
    return str(uuid.UUID(text)) if _UUID.fullmatch(text) else None


def check_task_id(task_id: str) -> str:
    """The task id, if a task may be called that. Raises InvalidInput."""
    if len(task_id) > MAX_TASK_ID:
        raise InvalidInput("taskId", f"has {len(task_id)} characters, which is more than the {MAX_TASK_ID} allowed")
    if task_id.strip() in ("", ".", ".."):
        raise InvalidInput("taskId", 'must not be empty, "." or ".."')
    if not _is_plain(task_id):
        raise InvalidInput("taskId", "must not contain control characters")
    return task_id


def page_number(text: str | None) -> int:
    """The number of a page, from 1; 1 where none is asked for. Raises InvalidInput."""
    if text is None:
        return 1
    if _PAGE_NUMBER.fullmatch(text) is None:
        raise InvalidInput("page", "expected a whole number greater than 0")
    return int(text)


async def find_task(context: ApiContext, task_id: str) -> Task:
    """The task. Raises NotFound, StorageUnavailable."""
    task = await context.storage.get_task(task_id) if _may_exist(task_id) else None
    if task is None:
        raise NotFound(f"there is no task {_shown(task_id)}")
    return task


async def find_job(context: ApiContext, task_id: str, job_id: str) -> Job:
    """The job. Raises NotFound, StorageUnavailable."""
    job = await context.storage.get_job(task_id, job_id) if _may_exist(task_id) and _may_exist(job_id) else None
    if job is None:
        raise NotFound(f"task {_shown(task_id)} has no job {_shown(job_id)}")
    return job


async def find_execution(context: ApiContext, task_id: str, job_id: str, execution_id: str) -> Execution:
    """The execution of that job. Raises NotFound, StorageUnavailable."""
    if _may_exist(execution_id):
        execution = await context.storage.get_execution(execution_id)
        if execution is not None and (execution.task_id, execution.job_id) == (task_id, job_id):
            return execution
    # Tells which of the two is missing.
    await find_job(context, task_id, job_id)
    raise NotFound(f"job {_shown(job_id)} of task {_shown(task_id)} has no execution {_shown(execution_id)}")


async def last_execution(context: ApiContext, job: Job) -> Execution | None:
    """The job's newest execution, or None where it has none (any more). Raises StorageUnavailable."""
    page = await context.storage.list_executions(job.id, task_id=job.task_id, cursor=None, limit=1)
    return page.items[0] if page.items else None


def _may_exist(name: str) -> bool:
    return 0 < len(name) <= _MAX_ID and _is_plain(name)


def _is_plain(text: str) -> bool:
    return text.isprintable() or not any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def _shown(name: str) -> str:
    return name if len(name) <= _MAX_ID and name.isprintable() else f"{name[:40]!a}…"
