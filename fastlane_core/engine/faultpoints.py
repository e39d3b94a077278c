"""The instants of a life cycle between which a worker may die. Tests end the process at each of them in turn."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class FaultPoint(StrEnum):
    """Reached by a worker right after what the name says."""

    CLAIMED = "claimed"
    TAKEN_OVER = "taken_over"
    PLACED = "placed"
    PREPARED = "prepared"
    START_ASKED = "start_asked"
    STARTED = "started"
    RECORDED_RUNNING = "recorded_running"
    LOG_STORED = "log_stored"
    RUN_ENDED = "run_ended"
    LOG_COMPLETE = "log_complete"
    RECORDED_ENDED = "recorded_ended"
    RETRY_ADDED = "retry_added"
    FINISHED = "finished"
    ACKNOWLEDGED = "acknowledged"
    TICKS_ADDED = "ticks_added"
    TICKS_QUEUED = "ticks_queued"
    TICKS_ADVANCED = "ticks_advanced"


#: Called at each fault point.
Reach = Callable[[FaultPoint], None]


def pass_by(point: FaultPoint) -> None:
    """What every worker outside tests does at a fault point: nothing."""
