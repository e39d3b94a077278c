"""Submissions: a job is accepted by one write, that of its document, which says what else belongs to it.

Order of the writes, and what a crash behind each leaves:

1. The idempotency key, if any, with the ids of job and execution. A repeat takes over these ids, so that both may go on
   and one of the two stores the job.
2. The task counts the job. What does not follow is taken off again.
3. The job, with its first execution within. From here on the submission is accepted, and only here it waits for a
   majority of the servers, which then have what was written before as well.
4. The execution, the mark that the key is in use, and the job without the execution: settled by whoever comes next.

Several submissions are accepted some at a time, as each takes that many round trips; those with one key in order. A
failure half-way leaves some of them stored, each of them whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pymongo.errors import DuplicateKeyError

from fastlane_core.builtin.mongo.database import Collections
from fastlane_core.builtin.mongo.documents import Document, execution_document, job_fields, job_key, job_update
from fastlane_core.builtin.mongo.keys import escape, key_of, unescape
from fastlane_core.builtin.mongo.settling import (
    confirm_job,
    count_job,
    discount_job,
    make_task,
    new_entry,
    new_token,
    settle,
    take_out,
)
from fastlane_core.contracts.records import decode_execution, decode_job
from fastlane_core.contracts.storage import Submission, Submitted
from fastlane_core.errors import NotFound, RevisionConflict
from fastlane_core.models import Execution, Job, Task
from fastlane_core.quick_dataclass import replace

#: Executions added by one write, and the bytes that their records may have together.
_ADDED_AT_ONCE = 50
_ADDED_BYTES = 4 * 1024 * 1024
#: Submissions that are looked after at a time.
_AT_A_TIME = 16

T = TypeVar("T")


async def submit(db: Collections, submissions: Sequence[Submission]) -> Sequence[Submitted]:
    """Store all submissions. Raises RevisionConflict, InvalidInput."""
    if len(submissions) > 1:
        await _refuse_conflicts(db, submissions)
        await _make_tasks(db, submissions)
    accepted: dict[int, _Accepted] = {}
    answers: dict[int, Submitted] = {}

    async def accept(numbers: Sequence[int]) -> None:
        for number in numbers:
            accepted[number] = await _accept(db, submissions[number].job, submissions[number].execution)

    async def settle_one(number: int) -> None:
        answers[number] = await accepted[number].settle(db)

    try:
        await _some_at_a_time(accept, _in_turn(submissions))
    except RevisionConflict:
        for number in sorted(accepted, reverse=True):
            await accepted[number].take_back(db)
        raise
    await _some_at_a_time(settle_one, range(len(submissions)))
    return [answers[number] for number in range(len(submissions))]


async def add_executions(db: Collections, executions: Sequence[Execution]) -> None:
    """Store those that are not stored. Raises NotFound where the job is not."""
    by_job: dict[str, list[Document]] = {}
    for execution in executions:
        document = execution_document(replace(execution, revision=1))
        by_job.setdefault(document["job"], []).append(document)
    for job, documents in by_job.items():
        for some in _batches(documents):
            stored = db.executions.quick.find({"_id": {"$in": [each["_id"] for each in some]}}, {"_id": 1})
            known = {each["_id"] async for each in stored}
            fresh = list({each["_id"]: each for each in reversed(some) if each["_id"] not in known}.values())[::-1]
            token, entry = new_token(), new_entry(executions=fresh)
            entered = {
                "$set": {f"pending.{token}": entry},
                "$inc": {"unsettled": 1, "executions": len(fresh)},
            }
            if (await db.jobs.durable.update_one({"_id": job}, entered)).matched_count == 0:
                raise NotFound(f"the job {job} is not stored, so it gets no executions")
            await settle(db, job, token, entry)


async def find_execution(db: Collections, execution_id: str) -> Execution | None:
    """The execution, or None."""
    found = await db.executions.quick.find_one({"_id": escape(execution_id)}, {"record": 1})
    return None if found is None else decode_execution(found["record"])


@dataclass(kw_only=True, slots=True)
class _Accepted:
    """A submission that is stored, up to what is left to settle."""

    submitted: Submitted
    #: The job's key.
    job: str = ""
    #: The entry, and its token; "" where nothing is to be settled.
    token: str = ""
    entry: Document | None = None
    #: Token by which the task counts the job; "" for a job that was there before.
    counted: str = ""
    #: Fields that the job had before.
    before: Document | None = None

    async def settle(self, db: Collections) -> Submitted:
        job, execution = self.submitted.job, self.submitted.execution
        if self.entry is not None:
            await settle(db, self.job, self.token, self.entry)
        if self.submitted.repeated:
            return self.submitted
        if self.counted:
            await confirm_job(db, escape(job.task_id), self.counted)
        else:
            await db.tasks.quick.update_one({"_id": escape(job.task_id)}, {"$max": {"modified_at": job.modified_at}})
        if execution is None or await _is_ours(db, self.entry):
            return self.submitted
        return replace(self.submitted, execution=await find_execution(db, execution.id))

    async def take_back(self, db: Collections) -> None:
        """Undo it, unless somebody has built upon it since."""
        if self.submitted.repeated:
            return
        as_left = {"_id": self.job, "revision": self.submitted.job.revision}
        if self.entry is not None:
            as_left[f"pending.{self.token}"] = {"$exists": True}
        if self.counted:
            done = (await db.jobs.durable.delete_one({**as_left, "counted": self.counted})).deleted_count == 1
            if done:
                await discount_job(db, escape(self.submitted.job.task_id), self.counted)
        else:
            done = (await db.jobs.durable.update_one(as_left, job_update(self.before or {}))).matched_count == 1
            if done and self.entry is not None:
                await take_out(db, self.job, self.token, executions=-len(self.entry["executions"]))
        if done and self.entry is not None and self.entry["key"] is not None:
            await db.keys.quick.delete_one({"_id": self.entry["key"], "token": self.token})


async def _refuse_conflicts(db: Collections, submissions: Sequence[Submission]) -> None:
    """Find what will not be stored before anything is: the way to make all or none of them, but for races."""

    async def refuse_conflict(submission: Submission) -> None:
        job = submission.job
        if job.idempotency_key is not None and not job.revision:
            key = key_of(job.task_id, job.idempotency_key)
            if await db.keys.quick.find_one({"_id": key}, {"_id": 1}) is not None:
                return
        found = await db.jobs.quick.find_one({"_id": job_key(job.task_id, job.id)}, {"revision": 1})
        if job.revision != (0 if found is None else found["revision"]):
            raise _conflict(job)

    await _some_at_a_time(refuse_conflict, submissions)


async def _make_tasks(db: Collections, submissions: Sequence[Submission]) -> None:
    """Make the tasks that are not there in the order of the submissions, which may store their jobs in another."""
    tasks: dict[str, Task] = {}
    for each in submissions:
        job = each.job
        task = Task(id=job.task_id, created_at=job.created_at, modified_at=job.modified_at)
        tasks.setdefault(escape(job.task_id), task)
    if len(tasks) == 1:
        return
    stored = db.tasks.quick.find({"_id": {"$in": list(tasks)}}, {"_id": 1})
    known = {each["_id"] async for each in stored}
    for key, task in tasks.items():
        if key not in known:
            await make_task(db, task)


def _in_turn(submissions: Sequence[Submission]) -> Sequence[Sequence[int]]:
    """Numbers of the submissions; those that name the same job or key are together, for the first one wins."""
    turns: dict[tuple[str, ...], list[int]] = {}
    for number, submission in enumerate(submissions):
        job = submission.job
        name = ("job", job.id) if job.idempotency_key is None else ("key", job.idempotency_key)
        turns.setdefault((job.task_id, *name), []).append(number)
    return list(turns.values())


async def _some_at_a_time(do: Callable[[T], Awaitable[None]], items: Sequence[T]) -> None:
    """Do it with each of the items, beginning in their order.

    When one fails none begins any more, and its error is raised once those under way have ended: a conflict, if one of
    them is.
    """
    if len(items) == 1:
        await do(items[0])
        return
    failures: list[Exception] = []
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            try:
                await do(item)
            except Exception as error:
                failures.append(error)
            if failures:
                return

    await asyncio.gather(*(work() for _ in range(min(_AT_A_TIME, len(items)))))
    if failures:
        raise next((each for each in failures if isinstance(each, RevisionConflict)), failures[0])


async def _accept(db: Collections, job: Job, execution: Execution | None) -> _Accepted:
    token = new_token()
    key: str | None = None
    asked: tuple[Job, Execution | None] | None = None
    if job.idempotency_key is not None and not job.revision:
        key = key_of(job.task_id, job.idempotency_key)
        claim = await _claim(db, key, job, execution, token)
        if claim["token"] != token:
            earlier = await _earlier(db, claim)
            if earlier is not None:
                return _Accepted(submitted=earlier)
            asked = job, execution
            token, job, execution = _taken_over(claim, job, execution)
    stored = replace(job, revision=job.revision + 1)
    first = None if execution is None else execution_document(replace(execution, revision=1))
    entry = None
    if first is not None or key is not None:
        entry = new_entry(executions=() if first is None else (first,), idempotency_key=key)
    accepted = _Accepted(
        submitted=Submitted(job=stored, execution=None if execution is None else replace(execution, revision=1)),
        job=job_key(job.task_id, job.id),
        token=token,
        entry=entry,
    )
    if await (_replace(db, job, accepted) if job.revision else _insert(db, job, accepted)):
        return accepted
    if key is not None:
        kept = await db.keys.quick.find_one({"_id": key, "token": token})
        if kept is None and asked is not None:
            # Given up by the one who had made it.
            return await _accept(db, *asked)
        earlier = None if kept is None else await _earlier(db, kept)
        if earlier is not None:
            return _Accepted(submitted=earlier)
        await db.keys.quick.delete_one({"_id": key, "token": token})
    raise _conflict(job)


async def _insert(db: Collections, job: Job, accepted: _Accepted) -> bool:
    accepted.counted = new_token()
    document = {
        "_id": accepted.job,
        "task": escape(job.task_id),
        **job_fields(accepted.submitted.job),
        "counted": accepted.counted,
        "executions": 0 if accepted.entry is None else len(accepted.entry["executions"]),
        "unsettled": 0 if accepted.entry is None else 1,
        "pending": {} if accepted.entry is None else {accepted.token: accepted.entry},
    }
    await count_job(db, job, accepted.job, accepted.counted)
    try:
        await db.jobs.durable.insert_one(document)
    except DuplicateKeyError:
        await discount_job(db, escape(job.task_id), accepted.counted)
        return False
    return True


async def _replace(db: Collections, job: Job, accepted: _Accepted) -> bool:
    fields = job_fields(accepted.submitted.job)
    update = job_update(fields)
    if accepted.entry is not None:
        update = {
            **update,
            "$set": {**fields, f"pending.{accepted.token}": accepted.entry},
            "$inc": {"unsettled": 1, "executions": len(accepted.entry["executions"])},
        }
    before = await db.jobs.durable.find_one_and_update({"_id": accepted.job, "revision": job.revision}, update)
    if before is None:
        return False
    accepted.before = {name: before[name] for name in (*fields, "due_at") if name in before}
    return True


async def _claim(db: Collections, key: str, job: Job, execution: Execution | None, token: str) -> Document:
    """The claim on an idempotency key: ours, or the one that was there before."""
    claim: Document = {
        "_id": key,
        "token": token,
        "task": escape(job.task_id),
        "job": escape(job.id),
        "execution": None if execution is None else escape(execution.id),
        "done": False,
    }
    while True:
        try:
            await db.keys.quick.insert_one(claim)
        except DuplicateKeyError:
            found: Document | None = await db.keys.quick.find_one({"_id": key})
            if found is not None:
                return found
        else:
            return claim


async def _earlier(db: Collections, claim: Document) -> Submitted | None:
    """What was submitted with a claimed key; None where that has not been accepted yet."""
    key = job_key(unescape(claim["task"]), unescape(claim["job"]))
    job = await db.jobs.quick.find_one({"_id": key})
    entry = None if job is None else job["pending"].get(claim["token"])
    if entry is not None:
        await settle(db, key, claim["token"], entry)
    elif not claim["done"]:
        # Settled between the two reads, or not accepted.
        if await db.keys.quick.find_one({"_id": claim["_id"], "token": claim["token"], "done": True}) is None:
            return None
        job = await db.jobs.quick.find_one({"_id": key})
    # Changes nothing as a rule, but returns only when what was read is on a majority of the servers.
    await db.keys.durable.update_one({"_id": claim["_id"]}, {"$set": {"done": True}})
    if job is None:
        return None
    execution = claim["execution"]
    return Submitted(
        job=decode_job(job["record"]),
        execution=None if execution is None else await find_execution(db, unescape(execution)),
        repeated=True,
    )


def _taken_over(claim: Document, job: Job, execution: Execution | None) -> tuple[str, Job, Execution | None]:
    """The submission under the ids of an earlier one with its key, which may yet be accepted, or whose process died."""
    job = replace(job, id=unescape(claim["job"]))
    if claim["execution"] is None or execution is None:
        return claim["token"], job, None
    return claim["token"], job, replace(execution, id=unescape(claim["execution"]), job_id=job.id)


async def _is_ours(db: Collections, entry: Document | None) -> bool:
    """Whether the entry's execution is the stored one, rather than another by its id."""
    assert entry is not None
    (wanted,) = entry["executions"]
    return (
        await db.executions.quick.find_one({"_id": wanted["_id"], "number": wanted["number"]}, {"_id": 1}) is not None
    )


def _batches(documents: Sequence[Document]) -> Sequence[Sequence[Document]]:
    batches: list[list[Document]] = []
    size = 0
    for document in documents:
        size += len(document["record"])
        if not batches or len(batches[-1]) == _ADDED_AT_ONCE or size > _ADDED_BYTES:
            batches.append([])
            size = len(document["record"])
        batches[-1].append(document)
    return batches


def _conflict(job: Job) -> RevisionConflict:
    if job.revision:
        return RevisionConflict(
            f"the job {job.id} of the task {job.task_id} is not stored with revision {job.revision}"
        )
    return RevisionConflict(f"the job {job.id} of the task {job.task_id} is stored already")
