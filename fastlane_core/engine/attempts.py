"""Making the attempt that follows an ended execution."""

from __future__ import annotations

from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.lifecycle import next_attempt, outdated
from fastlane_core.engine.records import change_execution
from fastlane_core.engine.submission import enqueue
from fastlane_core.errors import InvalidInput
from fastlane_core.models import Execution
from fastlane_core.quick_dataclass import replace


async def add_next_attempt(context: WorkerContext, execution: Execution) -> None:
    """Make the attempt that an ended execution owes, once however often it is called. Raises StorageUnavailable."""
    now = context.clock()
    job = await context.storage.get_job(execution.task_id, execution.job_id)
    if execution.retry_id is not None and job is not None and outdated(execution, job) is None:
        try:
            lane = context.routing.lane_for(execution.task_id).name
        except InvalidInput:
            lane = execution.lane
        attempt = next_attempt(execution, lane=lane, now=now)
        await context.storage.add_executions([attempt])
        await enqueue(context.queue, context.routing, attempt)
    await change_execution(
        context.storage, execution, lambda current: replace(current, owes_at=None, updated_at=now), fenced=False
    )
