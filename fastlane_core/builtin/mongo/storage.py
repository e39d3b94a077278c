"""The storage on MongoDB."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from fastlane_core.builtin.mongo import logs, submitting, task_search
from fastlane_core.builtin.mongo.database import Collections, Database
from fastlane_core.builtin.mongo.documents import (
    Document,
    execution_update,
    job_fields,
    job_key,
    job_update,
    task_of,
)
from fastlane_core.builtin.mongo.keys import (
    decode_text_cursor,
    decode_timed_cursor,
    encode_cursor,
    escape,
    key_of,
    unescape,
)
from fastlane_core.builtin.mongo.pages import behind, newest, next_cursor
from fastlane_core.builtin.mongo.retention import remove_finished
from fastlane_core.builtin.mongo.server import MongoServer
from fastlane_core.builtin.mongo.settling import Healer, make_task
from fastlane_core.contracts.records import decode_execution, decode_job
from fastlane_core.contracts.storage import (
    FailureFilter,
    Page,
    SharedValue,
    Storage,
    Submission,
    Submitted,
    filtered_page,
)
from fastlane_core.errors import RevisionConflict
from fastlane_core.models import Execution, Job, JsonObject, LogChunk, Stream, Task
from fastlane_core.quick_dataclass import replace

#: Revisions of shared values are drawn at random, so that a value made anew never has one of the old one's.
_REVISIONS = 2**52
_WRITES_AT_A_TIME = 16
#: Documents that a search looks at in one call.
_LOOKED_AT = 500
#: Jobs that have a time at which a scheduler looks at them.
_SCHEDULED: Document = {"due_at": {"$gt": 0.0}}


class MongoStorage(Storage):
    """Tasks, jobs, executions, logs and shared state in one database of MongoDB, for any number of processes.

    Needs MongoDB 4.4 or newer, standalone or as a replica set; no transactions. Bound to the event loop that opens it.
    Adding executions of a job that is not stored, or to the log of an execution that is not, raises NotFound; a record
    of more than 6 MiB raises InvalidInput.
    """

    def __init__(
        self, server: MongoServer, *, timeout: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`timeout`: seconds that one call may take, with all that the driver tries anew within it.

        `clock` tells how long ago something was seen, in seconds.
        """
        self._database = Database(server, timeout)
        self._healer = Healer(abandoned_after=60 + 3 * timeout, clock=clock)

    async def open(self) -> None:
        await self._database.open()

    async def open_to_look(self) -> None:
        await self._database.open(only_look=True)

    async def close(self) -> None:
        await self._database.close()

    async def health(self) -> str:
        return await self._database.health()

    async def clock(self) -> float:
        return await self._database.clock()

    async def submit(self, submissions: Sequence[Submission]) -> Sequence[Submitted]:
        with self._database.call() as db:
            return await submitting.submit(db, submissions)

    # Tasks

    async def get_task(self, task_id: str) -> Task | None:
        with self._database.call() as db:
            found = await db.tasks.quick.find_one({"_id": escape(task_id)})
        return None if found is None else task_of(found)

    async def list_tasks(self, *, start: int, limit: int) -> Sequence[Task]:
        with self._database.call() as db:
            found = db.tasks.quick.find({"number": {"$gt": start}}).sort("number", 1).limit(limit)
            return [task_of(each) async for each in found]

    async def search_tasks(self, query: str, *, start: int, limit: int) -> tuple[Sequence[Task], int]:
        with self._database.call() as db:
            return await task_search.search_tasks(db, query, start=start, limit=limit)

    async def count_tasks(self) -> int:
        with self._database.call() as db:
            return await task_search.count_tasks(db)

    async def limit_task(self, task_id: str, concurrency: int | None, *, now: float) -> Task:
        key = {"_id": escape(task_id)}
        with self._database.call() as db:
            while True:
                found = await db.tasks.quick.find_one(key, {"number": 1})
                if found is None:
                    await make_task(db, Task(id=task_id, created_at=now, modified_at=now))
                    continue
                # The list of those that have one goes by `limited`.
                update: Document = {"$set": {"concurrency": concurrency, "limited": found["number"]}}
                if concurrency is None:
                    update = {"$unset": {"concurrency": "", "limited": ""}}
                limited = await db.tasks.durable.find_one_and_update(key, update, return_document=ReturnDocument.AFTER)
                if limited is not None:
                    return task_of(limited)

    async def list_limited_tasks(self, *, cursor: str | None, limit: int) -> Page[Task]:
        last = 0.0 if cursor is None else decode_timed_cursor(cursor)[0]
        with self._database.call() as db:
            found = await db.tasks.quick.find({"limited": {"$gt": last}}).sort("limited", 1).limit(limit + 1).to_list()
        following = None
        if len(found) > limit:
            following = encode_cursor(float(found[limit - 1]["limited"]), found[limit - 1]["_id"])
        return Page(items=[task_of(each) for each in found[:limit]], cursor=following)

    # Jobs

    async def get_job(self, task_id: str, job_id: str) -> Job | None:
        with self._database.call() as db:
            found = await db.jobs.quick.find_one({"_id": job_key(task_id, job_id)}, {"record": 1})
        return None if found is None else decode_job(found["record"])

    async def put_job(self, job: Job) -> Job:
        stored = replace(job, revision=job.revision + 1)
        with self._database.call() as db:
            done = await db.jobs.durable.update_one(
                {"_id": job_key(job.task_id, job.id), "revision": job.revision}, job_update(job_fields(stored))
            )
        if not done.matched_count:
            raise RevisionConflict(
                f"the job {job.id} of the task {job.task_id} is not stored with revision {job.revision}"
            )
        return stored

    async def put_jobs(self, jobs: Sequence[Job]) -> Sequence[Job | None]:
        # One by one, several at a time: one bulk write of all would not tell which were replaced.
        places = asyncio.Semaphore(_WRITES_AT_A_TIME)

        async def replaced(job: Job) -> Job | None:
            async with places:
                try:
                    return await self.put_job(job)
                except RevisionConflict:
                    return None

        return await asyncio.gather(*map(replaced, jobs))

    async def list_due_jobs(self, *, until: float, limit: int) -> Sequence[Job]:
        with self._database.call() as db:
            found = db.jobs.quick.find({"due_at": {"$lte": until}}, {"record": 1})
            return [decode_job(each["record"]) async for each in found.sort([("due_at", 1), ("_id", 1)]).limit(limit)]

    async def next_due_job(self) -> float | None:
        with self._database.call() as db:
            found = await db.jobs.quick.find_one(_SCHEDULED, {"due_at": 1}, sort=[("due_at", 1), ("_id", 1)])
        return None if found is None else float(found["due_at"])

    async def list_scheduled_jobs(self, *, cursor: str | None, limit: int) -> Page[Job]:
        wanted: Document = _SCHEDULED
        if cursor is not None:
            at, key = decode_timed_cursor(cursor)
            wanted = {"due_at": {"$gte": at}, "$or": [{"due_at": {"$gt": at}}, {"_id": {"$gt": key}}]}
        with self._database.call() as db:
            found = await (
                db.jobs.quick.find(wanted, {"record": 1, "due_at": 1})
                .sort([("due_at", 1), ("_id", 1)])
                .limit(limit + 1)
                .to_list()
            )
        return Page(
            items=[decode_job(each["record"]) for each in found[:limit]],
            cursor=next_cursor(found, "due_at", limit),
        )

    async def count_scheduled_jobs(self) -> int:
        with self._database.call() as db:
            return int(await db.jobs.quick.count_documents(_SCHEDULED, limit=10_000))

    async def list_jobs(self, task_id: str, *, cursor: str | None, limit: int) -> Page[Job]:
        wanted = {"task": escape(task_id), **behind("modified_at", cursor)}
        with self._database.call() as db:
            found = await newest(db.jobs.quick.find(wanted, {"record": 1, "modified_at": 1}), "modified_at", limit)
        return Page(
            items=[decode_job(each["record"]) for each in found[:limit]],
            cursor=next_cursor(found, "modified_at", limit),
        )

    async def count_jobs(self) -> int:
        with self._database.call() as db:
            return int(await db.jobs.quick.estimated_document_count())

    # Executions

    async def get_execution(self, execution_id: str) -> Execution | None:
        with self._database.call() as db:
            return await submitting.find_execution(db, execution_id)

    async def add_executions(self, executions: Sequence[Execution]) -> None:
        with self._database.call() as db:
            await submitting.add_executions(db, executions)

    async def put_execution(self, execution: Execution) -> Execution:
        stored = replace(execution, revision=execution.revision + 1)
        with self._database.call() as db:
            done = await db.executions.durable.update_one(
                {"_id": escape(execution.id), "revision": execution.revision}, execution_update(stored)
            )
        if not done.matched_count:
            raise RevisionConflict(f"the execution {execution.id} is not stored with revision {execution.revision}")
        return stored

    async def list_executions(self, job_id: str, *, task_id: str, cursor: str | None, limit: int) -> Page[Execution]:
        wanted = {"job": job_key(task_id, job_id), **behind("created_at", cursor)}
        with self._database.call() as db:
            found = await newest(db.executions.quick.find(wanted, {"record": 1, "created_at": 1}), "created_at", limit)
        return Page(
            items=[decode_execution(each["record"]) for each in found[:limit]],
            cursor=next_cursor(found, "created_at", limit),
        )

    async def count_executions(self, job_id: str, *, task_id: str) -> int:
        with self._database.call() as db:
            found = await db.jobs.quick.find_one({"_id": job_key(task_id, job_id)}, {"executions": 1})
        return 0 if found is None else int(found["executions"])

    async def list_unfinished(self, *, cursor: str | None, limit: int) -> Page[Execution]:
        with self._database.call() as db:
            if cursor is None and not self._database.only_looks:
                await self._healer.heal(db)
            return await _unfinished(db, {}, cursor, limit)

    async def list_unfinished_of_job(
        self, job_id: str, *, task_id: str, cursor: str | None, limit: int
    ) -> Page[Execution]:
        with self._database.call() as db:
            return await _unfinished(db, {"job": job_key(task_id, job_id)}, cursor, limit)

    async def list_failures(self, wanted: FailureFilter, *, cursor: str | None, limit: int) -> Page[Execution]:
        stretch = max(limit, _LOOKED_AT)
        filters: list[Document] = [{"failed_at": {"$gte": 0.0 if wanted.since is None else wanted.since}}]
        if wanted.until is not None:
            filters.append({"failed_at": {"$lt": wanted.until}})
        if wanted.task_id is not None:
            filters.append({"failed_task": escape(wanted.task_id)})
        if cursor is not None:
            filters.append(behind("failed_at", cursor))
        with self._database.call() as db:
            found = await newest(
                db.executions.quick.find({"$and": filters}, {"record": 1, "failed_at": 1}), "failed_at", stretch
            )
        rows = found[:stretch]
        return filtered_page(
            ((encode_cursor(float(each["failed_at"]), each["_id"]), decode_execution(each["record"])) for each in rows),
            wanted.has,
            limit=limit,
            ends=len(found) <= stretch,
        )

    async def list_owing(self, *, until: float, limit: int) -> Sequence[Execution]:
        with self._database.call() as db:
            found = (
                db.executions.quick.find({"owes_at": {"$lte": until}}, {"record": 1}).sort("owes_at", 1).limit(limit)
            )
            return [decode_execution(each["record"]) async for each in found]

    # Logs

    async def append_log(self, execution_id: str, chunks: Sequence[LogChunk]) -> None:
        with self._database.call() as db:
            await logs.append_log(db, execution_id, chunks)

    async def read_log(
        self, execution_id: str, *, after: int, stream: Stream | None, max_bytes: int
    ) -> Sequence[LogChunk]:
        with self._database.call() as db:
            return await logs.read_log(db, execution_id, after, stream, max_bytes)

    async def last_log(self, execution_id: str) -> Mapping[Stream, LogChunk]:
        with self._database.call() as db:
            return await logs.last_log(db, execution_id)

    # Retention

    async def remove_finished(self, *, before: float, limit: int) -> int:
        return await remove_finished(self._database, before=before, limit=limit)

    # Shared state

    async def get_state(self, scope: str, key: str) -> SharedValue | None:
        with self._database.call() as db:
            found = await db.state.quick.find_one({"_id": key_of(scope, key)})
        return None if found is None else _value(found)

    async def put_state(self, scope: str, key: str, value: JsonObject, *, revision: int | None) -> int:
        new_revision = secrets.randbelow(_REVISIONS) + 1
        fields = {"scope": escape(scope), "key": escape(key), "value": json.dumps(value), "revision": new_revision}
        with self._database.call() as db:
            if not await _put_state(db, key_of(scope, key), fields, revision):
                raise RevisionConflict(f"the value {key} of {scope} is not stored with revision {revision}")
        return new_revision

    async def list_state(self, scope: str) -> Mapping[str, SharedValue]:
        with self._database.call() as db:
            found = db.state.quick.find({"scope": escape(scope)}).sort("_id", 1)
            return {unescape(each["key"]): _value(each) async for each in found}

    async def delete_state(self, scope: str, key: str) -> None:
        with self._database.call() as db:
            await db.state.durable.delete_one({"_id": key_of(scope, key)})


async def _unfinished(db: Collections, wanted: Document, cursor: str | None, limit: int) -> Page[Execution]:
    after = "" if cursor is None else decode_text_cursor(cursor)
    found = await (
        db.executions.quick.find({**wanted, "unfinished": {"$gt": after}}, {"record": 1, "unfinished": 1})
        .sort("unfinished", 1)
        .limit(limit + 1)
        .to_list()
    )
    return Page(
        items=[decode_execution(each["record"]) for each in found[:limit]],
        cursor=encode_cursor(found[limit - 1]["unfinished"]) if len(found) > limit else None,
    )


async def _put_state(db: Collections, key: str, fields: Document, revision: int | None) -> bool:
    """Whether it was stored; without a revision it always is."""
    while True:
        if revision != 0:
            wanted = {"_id": key} if revision is None else {"_id": key, "revision": revision}
            if (await db.state.durable.update_one(wanted, {"$set": fields})).matched_count:
                return True
            if revision is not None:
                return False
        try:
            await db.state.durable.insert_one({"_id": key, **fields})
        except DuplicateKeyError:
            if revision == 0:
                return False
        else:
            return True


def _value(document: Document) -> SharedValue:
    return SharedValue(value=json.loads(document["value"]), revision=document["revision"])
