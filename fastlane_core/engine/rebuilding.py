"""Putting everything back into a queue that has lost its data, from the storage."""

from __future__ import annotations

from collections.abc import Sequence

from fastlane_core.contracts.queue import Lease
from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.mending import note_mending
from fastlane_core.engine.misfits import PAGE
from fastlane_core.engine.routing import Routing
from fastlane_core.engine.submission import queue_item
from fastlane_core.engine.task_limits import TaskLimits
from fastlane_core.models import Execution, Mending


async def rebuild_queue(context: WorkerContext, held: Sequence[Lease]) -> None:
    """Put back leases first, those `held` and those of whatever may run, then what waits; then let the queue grant.

    Raises StorageUnavailable, QueueUnavailable; called again, it begins anew.
    """
    queue, lease_seconds = context.queue, context.options.lease_seconds
    counts = {"leases": 0, "waiting": 0}
    await queue.restore_leases(held, lease_seconds)
    for wanted in ("leases", "waiting"):
        cursor: str | None = None
        while True:
            page = await context.storage.list_unfinished(cursor=cursor, limit=PAGE)
            begun = [each for each in page.items if each.place is not None]
            fresh = [each for each in page.items if each.place is None]
            if wanted == "leases":
                await queue.restore_leases([lease_of(each, context.routing) for each in begun], lease_seconds)
                counts[wanted] += len(begun)
            else:
                await queue.put([queue_item(each, context.routing) for each in fresh])
                counts[wanted] += len(fresh)
            cursor = page.cursor
            if cursor is None:
                break
    await TaskLimits(context.storage, queue, context.clock).restore()
    await queue.rebuilt()
    if any(counts.values()):
        message = f"the queue was empty; put back {counts['leases']} leases and {counts['waiting']} that wait"
        note_mending(context, Mending.QUEUE_REBUILT, message, execution_id=None)


def lease_of(execution: Execution, routing: Routing) -> Lease:
    """The lease that the queue must have held for an execution that has begun."""
    return Lease(
        item=queue_item(execution, routing),
        worker=execution.worker or "",
        token=execution.lease_token or "",
        adopted=False,
        place=execution.place,
    )
