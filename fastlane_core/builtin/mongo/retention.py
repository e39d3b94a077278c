"""Removing executions that ended long ago, with their logs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from fastlane_core.builtin.mongo.database import Database
from fastlane_core.builtin.mongo.documents import Document
from fastlane_core.builtin.mongo.settling import new_removal, remove_orphan, settle

#: Executions looked for, and removed, at a time.
_PAGE = 50
_AT_A_TIME = 4
#: Rounds in a row without a removal of one's own after which the rest is left to others, or to a later call.
_IDLE_ROUNDS = 40


async def remove_finished(database: Database, *, before: float, limit: int) -> int:
    """Remove up to `limit` executions that may be removed since before that time; how many."""
    removed = idle = 0
    while removed < limit and idle < _IDLE_ROUNDS:
        with database.call() as db:
            found = await (
                db.executions.quick.find({"removable_at": {"$lt": before}}, {"number": 1, "job": 1})
                .sort("removable_at", 1)
                .limit(_PAGE)
                .to_list()
            )
        if not found:
            break
        # Not all processes go for the same ones.
        random.shuffle(found)
        del found[limit - removed :]
        by_us = 0
        for first in range(0, len(found), _AT_A_TIME):
            some = found[first : first + _AT_A_TIME]
            by_us += await _remove_some(database, some)
        removed += by_us
        idle = 0 if by_us else idle + 1
        if idle:
            # Others are at the same ones.
            await asyncio.sleep(random.uniform(0, 0.05))  # noqa: S311
    return removed


async def _remove_some(database: Database, executions: Sequence[Document]) -> int:
    # All are waited for, rather than cancelled when one fails: each has its time.
    removals = await asyncio.gather(*(_remove(database, each) for each in executions), return_exceptions=True)
    for each in removals:
        if isinstance(each, BaseException):
            raise each
    return sum(each is True for each in removals)


async def _remove(database: Database, execution: Document) -> bool:
    """Remove it; whether that was done here, and not by another process."""
    with database.call() as db:
        job, token = execution["job"], str(execution["number"])
        entry = new_removal(execution)
        entered = await db.jobs.durable.update_one(
            {"_id": job, f"pending.{token}": {"$exists": False}},
            {"$set": {f"pending.{token}": entry}, "$inc": {"unsettled": 1, "executions": -1}},
        )
        if entered.matched_count:
            return await settle(db, job, token, entry)
        found = await db.jobs.quick.find_one({"_id": job}, {f"pending.{token}": 1})
        if found is None:
            return await remove_orphan(db, execution)
        # Begun by another process, which may be dead.
        begun = found["pending"].get(token)
        return begun is not None and await settle(db, job, token, begun)
