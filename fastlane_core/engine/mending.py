"""Every mending is logged, counted and told to the observers, here."""

from __future__ import annotations

import structlog

from fastlane_core.engine.context import WorkerContext
from fastlane_core.models import Event, EventKind, Execution, Mending

log = structlog.get_logger(__name__)


def note_mending(
    context: WorkerContext, kind: Mending, message: str, *, execution_id: str | None, execution: Execution | None = None
) -> None:
    """Something was put right: `message` says what was found and what was done."""
    context.mended[kind] += 1
    log.warning("mended", kind=kind, execution=execution_id, what=message)
    context.emit(
        Event(
            kind=EventKind.EXECUTION_MENDED,
            at=context.clock(),
            task_id=execution.task_id if execution else None,
            job_id=execution.job_id if execution else None,
            execution_id=execution_id,
            lane=execution.lane if execution else None,
            place=execution.place if execution else None,
            worker=context.worker,
            status=execution.status if execution else None,
            mending=kind,
            message=message,
        )
    )
