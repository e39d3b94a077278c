"""Stopping, replacing and running again as the API asks for them, over a deployment of the tests."""

from __future__ import annotations

from dataclasses import replace

from fastlane_core.engine.replacing import JobReplacement, Precondition
from fastlane_core.engine.retrying import Retrying
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import JobOrder, JobSubmission
from fastlane_core.models import Execution, Job, RetryPolicy, RunSpec
from tests.integration.engine_harness import Deployment, until

#: A wait that no test sits out.
LONG = RetryPolicy(min_seconds=3600.0, max_seconds=3600.0)
NOW = RetryPolicy(min_seconds=0.0)


def stopping(fastlane: Deployment) -> Stopping:
    """Stops jobs."""
    return Stopping(fastlane.storage, fastlane.queue, fastlane.clock)


def retrying(fastlane: Deployment) -> Retrying:
    """Runs jobs again."""
    return Retrying(fastlane.storage, fastlane.queue, fastlane.routing(), stopping(fastlane), fastlane.clock)


async def put(
    fastlane: Deployment, command: str, precondition: Precondition | None = None, **changes: object
) -> tuple[Job, Execution]:
    """Put the job `j`."""
    spec = RunSpec(image="image", command=command, timeout=600.0)
    order = replace(JobOrder(task_id="test", spec=spec, job_id="j"), **changes)  # type: ignore[arg-type]
    submission = JobSubmission(fastlane.storage, fastlane.queue, fastlane.routing(), fastlane.clock)
    replacement = JobReplacement(fastlane.storage, fastlane.queue, submission, stopping(fastlane))
    submitted = await replacement.put(order, precondition or Precondition())
    assert submitted.execution is not None
    return submitted.job, submitted.execution


async def attempts(fastlane: Deployment, first: Execution, count: int) -> list[Execution]:
    """All executions of the job, once there are so many that have ended."""

    async def have_ended() -> bool:
        found = await fastlane.attempts(first)
        return len(found) >= count and all(each.status.is_final and each.owes_at is None for each in found)

    await until(have_ended)
    found = await fastlane.attempts(first)
    assert len(found) == count
    return found


async def has_attempts(fastlane: Deployment, execution: Execution, count: int) -> bool:
    """Whether the job has so many executions."""
    return len(await fastlane.attempts(execution)) == count
