"""Names of the wake-ups that go through the queue's pub/sub. Losing one only costs waiting."""

from __future__ import annotations


def execution_topic(execution_id: str) -> str:
    """Published when the execution's record or log has changed."""
    return f"execution:{execution_id}"


def worker_topic(worker: str) -> str:
    """Published when the worker should look at its leases now: one of them was asked to stop."""
    return f"worker:{worker}"
