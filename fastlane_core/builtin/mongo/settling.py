"""What takes several writes: the first one says what the others will be, so that anybody can finish it.

No transactions: not every server has them. A document that others depend on (a job for its executions, a task for its
jobs) holds *entries* of what is under way in `pending`, by token; one update adds an entry and counts what it will
add. Settling it makes the other documents and takes the entry out. That may be done twice, by several processes at once
and after a crash at any point: whoever comes second finds it done. `unsettled` is how many entries there are, for an
index. `Healer` settles what crashed processes left.

So counts are exact after crashes, as soon as what was left is settled. Only what a task has counted for a job that is
not there is undone by time: its process must be dead, since it would have run out of time long before.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from bson import ObjectId
from pymongo.errors import BulkWriteError, DuplicateKeyError

from fastlane_core.builtin.mongo.database import Collections
from fastlane_core.builtin.mongo.documents import Document, task_document
from fastlane_core.builtin.mongo.keys import escape
from fastlane_core.models import Job, Task

_DUPLICATE = 11000
#: A revision that no record has.
_BEING_REMOVED = -1
#: Seconds for which an entry must have been seen before another process settles it: its owner is likely at it.
_LEFT = 5.0
#: Documents looked at in one go.
_TASKS = 100
_JOBS = 20


def new_token() -> str:
    """A token that no other entry has."""
    return str(ObjectId())


def new_entry(*, executions: Sequence[Document] = (), idempotency_key: str | None = None) -> Document:
    """An entry of a job: the documents of executions to add, and the key that they were submitted with."""
    return {"executions": list(executions), "key": idempotency_key}


def new_removal(execution: Document) -> Document:
    """An entry of a job that removes an execution; its token is the execution's number, so that there is one."""
    return {"removes": execution["_id"], "number": execution["number"], "mark": new_token(), "certain": False}


async def settle(db: Collections, job: str, token: str, entry: Document) -> bool:
    """Do what an entry of the job says, as far as that is not done, and take it out; whether that removed something."""
    if "removes" in entry:
        return await _remove_execution(db, job, token, entry)
    refused = await _add_executions(db, entry["executions"])
    if entry["key"] is not None:
        await db.keys.quick.update_one({"_id": entry["key"], "token": token}, {"$set": {"done": True}})
    await take_out(db, job, token, executions=-refused)
    return False


async def take_out(db: Collections, job: str, token: str, *, executions: int = 0) -> None:
    """Take an entry out of the job, if it is still there, and correct the count in the same write."""
    await db.jobs.quick.update_one(
        {"_id": job, f"pending.{token}": {"$exists": True}},
        {"$unset": {f"pending.{token}": ""}, "$inc": {"unsettled": -1, "executions": executions}},
    )


async def count_job(db: Collections, job: Job, key: str, token: str) -> None:
    """Count a job that is about to be stored under `key` in its task, which is made if there is none."""
    task = escape(job.task_id)
    entered = {
        "$inc": {"jobs": 1, "unsettled": 1},
        "$max": {"modified_at": job.modified_at},
        "$set": {f"pending.{token}": key},
    }
    while (await db.tasks.quick.update_one({"_id": task}, entered)).matched_count == 0:
        await make_task(db, Task(id=job.task_id, created_at=job.created_at, modified_at=job.modified_at))


async def make_task(db: Collections, task: Task) -> None:
    """Try to store a task that is not there, without jobs."""
    async with db.making_tasks:
        last = await db.tasks.quick.find_one({}, {"number": 1}, sort=[("number", -1)])
        try:
            await db.tasks.quick.insert_one(task_document(task, last["number"] + 1 if last else 1))
        except DuplicateKeyError:
            # The same task or the same number, made by another process: numbers have no gaps.
            await asyncio.sleep(random.uniform(0, 0.02))  # noqa: S311


async def confirm_job(db: Collections, task: str, token: str) -> None:
    """The counted job is stored."""
    await _leave_task(db, task, token, jobs=0)


async def discount_job(db: Collections, task: str, token: str) -> None:
    """The counted job was not stored."""
    await _leave_task(db, task, token, jobs=-1)


async def remove_orphan(db: Collections, execution: Document) -> bool:
    """Remove an execution whose job is not stored, so that no count holds it; whether that was done here."""
    wanted = {"_id": execution["_id"], "number": execution["number"]}
    return await _mark_removed(db, wanted) and await _remove_with_log(db, wanted)


class Healer:
    """Settles what processes that ended half-way have left."""

    def __init__(self, abandoned_after: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`abandoned_after`: seconds after which a call that has not ended never goes on."""
        self._abandoned_after = abandoned_after
        self._clock = clock
        #: When each entry was first seen.
        self._seen: dict[str, float] = {}

    async def heal(self, db: Collections) -> int:
        """Settle entries that were there for a while; how many."""
        now, seen, healed = self._clock(), self._seen, 0
        self._seen = {}

        def is_due(token: str, age: float) -> bool:
            self._seen[token] = seen.get(token, now)
            return now - self._seen[token] >= age

        async for task in db.tasks.quick.find({"unsettled": {"$gt": 0}}, {"pending": 1}).limit(_TASKS):
            for token, job in task["pending"].items():
                if is_due(token, self._abandoned_after):
                    stored = await db.jobs.quick.find_one({"_id": job, "counted": token}, {"_id": 1})
                    healed += await _leave_task(db, task["_id"], token, jobs=0 if stored else -1)
        async for job in db.jobs.quick.find({"unsettled": {"$gt": 0}}, {"pending": 1}).limit(_JOBS):
            for token, entry in job["pending"].items():
                if is_due(token, _LEFT):
                    await settle(db, job["_id"], token, entry)
                    healed += 1
        return healed


async def _leave_task(db: Collections, task: str, token: str, *, jobs: int) -> bool:
    done = await db.tasks.quick.update_one(
        {"_id": task, f"pending.{token}": {"$exists": True}},
        {"$unset": {f"pending.{token}": ""}, "$inc": {"unsettled": -1, "jobs": jobs}},
    )
    return bool(done.matched_count)


async def _add_executions(db: Collections, executions: Sequence[Document]) -> int:
    """Add those that are not there; how many were there already, made by others."""
    if not executions:
        return 0
    try:
        await db.executions.quick.insert_many(executions, ordered=False)
    except BulkWriteError as error:
        if any(each["code"] != _DUPLICATE for each in error.details["writeErrors"]):
            raise
    else:
        return 0
    numbers = {each["_id"]: each["number"] for each in executions}
    stored = db.executions.quick.find({"_id": {"$in": list(numbers)}}, {"number": 1})
    return sum([each["number"] != numbers[each["_id"]] async for each in stored])


async def _remove_execution(db: Collections, job: str, token: str, entry: Document) -> bool:
    """Remove an execution with its log, or give back its count if it is gone already or must stay."""
    execution = {"_id": entry["removes"], "number": entry["number"]}
    # The same token may have come back with another entry.
    here = {"_id": job, f"pending.{token}.mark": entry["mark"]}
    leave: Document = {"$unset": {f"pending.{token}": ""}, "$inc": {"unsettled": -1}}
    if not entry["certain"]:
        # It is passed over if it was given a debt meanwhile.
        if not await _mark_removed(db, execution):
            leave["$inc"]["executions"] = 1
            await db.jobs.quick.update_one({**here, f"pending.{token}.certain": False}, leave)
            return False
        # The entry keeps all others from removing it, so it is there for this one: from now on its absence means that
        # this removal has come so far.
        await db.jobs.quick.update_one(here, {"$set": {f"pending.{token}.certain": True}})
    removed = await _remove_with_log(db, execution)
    await db.jobs.quick.update_one(here, leave)
    return removed


async def _mark_removed(db: Collections, execution: Document) -> bool:
    """Let no write of its record match any more; False if it must stay, or is gone."""
    removable = {**execution, "removable_at": {"$exists": True}}
    marked = await db.executions.quick.update_one(removable, {"$set": {"revision": _BEING_REMOVED}})
    return bool(marked.matched_count)


async def _remove_with_log(db: Collections, execution: Document) -> bool:
    for collection in (db.logs, db.log_parts):
        await collection.quick.delete_many({"execution": execution["number"]})
    return bool((await db.executions.durable.delete_one(execution)).deleted_count)
