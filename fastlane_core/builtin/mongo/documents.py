"""Records as documents: the record as JSON text, next to the fields that queries and indexes need.

As text, because a record's own keys may hold dots and dollars, which have a meaning in updates, and since every
Fastlane reads records of its neighbours' versions through the one codec.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

from bson import ObjectId

from fastlane_core.builtin.mongo.keys import escape, key_of, unescape
from fastlane_core.contracts.records import encode_execution, encode_job
from fastlane_core.contracts.storage import ended_at
from fastlane_core.errors import InvalidInput
from fastlane_core.models import Execution, Failure, Job, Task

#: A document as the driver gives it.
Document: TypeAlias = dict[str, Any]

#: A job's document also holds what is to be stored with it, and a document ends at 16 MiB.
MAX_RECORD_BYTES = 6 * 1024 * 1024

_word = re.compile(r"[^\W_]+")
_INDEXED = ("unfinished", "owes_at", "removable_at", "failed_at", "failed_task")


def words(text: str) -> frozenset[str]:
    """Runs of letters and digits, without case."""
    return frozenset(_word.findall(text.casefold()))


def task_document(task: Task, number: int) -> Document:
    """A new task that has no job yet."""
    return {
        "_id": escape(task.id),
        "number": number,
        "created_at": task.created_at,
        "modified_at": task.modified_at,
        "words": sorted(words(task.id)),
        "jobs": 0,
        "unsettled": 0,
        "pending": {},
    }


def task_of(document: Document) -> Task:
    """The task of a document."""
    return Task(
        id=unescape(document["_id"]),
        created_at=document["created_at"],
        modified_at=document["modified_at"],
        jobs_count=document["jobs"],
        concurrency=document.get("concurrency"),
    )


def job_key(task_id: str, job_id: str) -> str:
    """The key of a job."""
    return key_of(task_id, job_id)


def job_fields(job: Job) -> Document:
    """What a job's document holds of the job itself. Raises InvalidInput for one that is too big."""
    fields: Document = {"modified_at": job.modified_at, "revision": job.revision, "record": _text(encode_job(job))}
    return fields if job.due_at is None else {**fields, "due_at": job.due_at}


def job_update(fields: Document) -> Document:
    """What makes a job's document hold these fields of `job_fields`, and no others of them."""
    update: Document = {"$set": fields}
    return update if "due_at" in fields else {**update, "$unset": {"due_at": ""}}


def execution_document(execution: Execution) -> Document:
    """A new execution. Its number is never that of another, be it of the same id. Raises InvalidInput."""
    return {
        "_id": escape(execution.id),
        "number": ObjectId(),
        "job": job_key(execution.task_id, execution.job_id),
        "created_at": execution.created_at,
        "revision": execution.revision,
        "record": _text(encode_execution(execution)),
        **_indexed(execution),
    }


def execution_update(execution: Execution) -> Document:
    """What makes a document that of the execution. Raises InvalidInput."""
    indexed = _indexed(execution)
    return {
        "$set": {"revision": execution.revision, "record": _text(encode_execution(execution)), **indexed},
        "$unset": {name: "" for name in _INDEXED if name not in indexed},
    }


def _indexed(execution: Execution) -> Document:
    """Fields that are there only for as long as they are to be found by."""
    if not execution.status.is_final:
        # Sorts by time.
        found: Document = {"unfinished": f"{execution.created_at:018.6f} {escape(execution.id)}"}
        return found if execution.owes_at is None else {**found, "owes_at": execution.owes_at}
    failed: Document = {}
    if execution.failure is Failure.OPEN:
        failed = {"failed_at": ended_at(execution), "failed_task": escape(execution.task_id)}
    if execution.owes_at is not None:
        return {"owes_at": execution.owes_at, **failed}
    return {"removable_at": ended_at(execution), **failed}


def _text(record: bytes) -> str:
    if len(record) > MAX_RECORD_BYTES:
        raise InvalidInput(
            "", f"expected at most {MAX_RECORD_BYTES} bytes, since MongoDB is the storage; got {len(record)}"
        )
    return record.decode()
