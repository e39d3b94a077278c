"""The life of an execution, without I/O: every status, how it is reached, and what follows an ending.

Each step takes the record as it was read and returns the one to write; storages refuse the write if the record has
changed meanwhile. Times are passed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fastlane_core.engine.backoff import Backoff
from fastlane_core.engine.identifiers import retry_id
from fastlane_core.errors import FastlaneError
from fastlane_core.models import Execution, Failure, Job, Reason, RetryPolicy, RunHandle, RunOutcome, Status
from fastlane_core.quick_dataclass import replace

#: The only ways from one status to another.
TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.ENQUEUED: frozenset({Status.PULLING, Status.FAILED, Status.STOPPED, Status.EXPIRED}),
    Status.PULLING: frozenset(
        {Status.ENQUEUED, Status.RUNNING, Status.FAILED, Status.TIMEDOUT, Status.STOPPED, Status.EXPIRED}
    ),
    Status.RUNNING: frozenset({Status.DONE, Status.FAILED, Status.TIMEDOUT, Status.STOPPED}),
    Status.DONE: frozenset(),
    Status.FAILED: frozenset(),
    Status.TIMEDOUT: frozenset(),
    Status.STOPPED: frozenset(),
    Status.EXPIRED: frozenset(),
}


class IllegalTransition(FastlaneError):
    """A step that the table does not have; always a defect."""


class Retried(StrEnum):
    """Whether an ending is tried again."""

    NEVER = "never"
    #: As long as the job has retries left.
    COUNTED = "counted"
    #: The job was not at fault. Always, but for one that loses `MOST_ENGINES_LOST` engines and yet another in a row.
    FREE = "free"


#: Free attempts after engines that were lost, in a row: a job that harms engines must not go through all of them.
MOST_ENGINES_LOST = 10

#: Endings that somebody may want to look at, unless another attempt follows.
_FAILING = (Status.FAILED, Status.TIMEDOUT, Status.EXPIRED)

#: Endings that a run does not come to by itself.
_NOT_ITS_OWN = (Reason.ENGINE_LOST, Reason.DRAINED, Reason.RUN_LOST)

#: What follows each ending, unless the job says for itself which reasons are tried again.
RETRIED: Mapping[Reason, Retried] = {
    Reason.SUCCEEDED: Retried.NEVER,
    Reason.EXIT_CODE: Retried.COUNTED,
    Reason.SIGNAL: Retried.COUNTED,
    Reason.OUT_OF_MEMORY: Retried.COUNTED,
    Reason.COMMAND_NOT_FOUND: Retried.COUNTED,
    Reason.COMMAND_NOT_EXECUTABLE: Retried.COUNTED,
    Reason.RUN_LOST: Retried.COUNTED,
    Reason.IMAGE_NOT_FOUND: Retried.NEVER,
    Reason.PULL_FAILED: Retried.COUNTED,
    Reason.START_REJECTED: Retried.NEVER,
    Reason.ENGINE_LOST: Retried.FREE,
    Reason.DRAINED: Retried.FREE,
    Reason.TIMED_OUT: Retried.NEVER,
    Reason.PULL_TIMED_OUT: Retried.COUNTED,
    Reason.STOPPED: Retried.NEVER,
    Reason.EXPIRED: Retried.NEVER,
    Reason.INTERNAL_ERROR: Retried.NEVER,
}

#: Seconds that a run's time by the clock of its engine may be short of what it was by a worker's.
_CLOCKS_DIFFER = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an execution ends."""

    status: Status
    reason: Reason
    message: str | None = None
    exit_code: int | None = None
    started_at: float | None = None
    finished_at: float | None = None


def taken_over(execution: Execution, *, worker: str, lease_token: str, now: float) -> Execution:
    """A worker got the lease: once that is stored, every write of another holder fails."""
    return replace(execution, worker=worker, lease_token=lease_token, fence=execution.fence + 1, updated_at=now)


def placed(execution: Execution, *, place: str, now: float) -> Execution:
    """It is decided where it runs; preparing begins."""
    moved = _moved(execution, Status.PULLING, now)
    return replace(moved, place=place, placed_at=now, waiting_for=None)


def start_asked(execution: Execution, *, now: float) -> Execution:
    """A runner is about to be asked to start it: from now on a run may exist on its place."""
    if execution.start_asked_at is not None:
        return execution
    return replace(execution, start_asked_at=now, updated_at=now)


def put_back(execution: Execution, *, why: str, now: float) -> Execution:
    """Nothing was started and its place is out of reach: it waits again, for any place.

    The time that it waited before counts as well.
    """
    if execution.start_asked_at is not None:
        raise IllegalTransition(f"execution {execution.id} may run on {execution.place} and cannot wait again")
    moved = execution if execution.status is Status.ENQUEUED else _moved(execution, Status.ENQUEUED, now)
    return replace(moved, place=None, placed_at=None, worker=None, waiting_for=why, updated_at=now)


def started(execution: Execution, *, handle: RunHandle, now: float) -> Execution:
    """The runner answered with a handle. The run may have begun earlier, where an answer, or a worker, was lost."""
    moved = _moved(execution, Status.RUNNING, now)
    began = now if handle.started_at is None else min(now, handle.started_at)
    if execution.start_asked_at is not None:
        # The engine's clock may be late, and the run's time is not over before it could begin.
        began = max(began, min(now, execution.start_asked_at))
    return replace(moved, handle=handle, started_at=began, waiting_for=None)


def stop_requested(execution: Execution, *, now: float) -> Execution:
    """Somebody wants it to end. One that nobody works on ends at once; else its worker hears of it."""
    if execution.status.is_final or execution.stop_requested_at is not None:
        return execution
    asked = replace(execution, stop_requested_at=now, updated_at=now)
    if execution.status is Status.ENQUEUED:
        return ended(asked, STOPPED_BEFORE_START, now=now)
    return asked


def superseded(execution: Execution, *, now: float) -> Execution:
    """Its job was replaced: one that nobody works on ends; one that has begun goes on."""
    if execution.status is not Status.ENQUEUED or execution.place is not None:
        return execution
    return ended(execution, REPLACED_BEFORE_START, now=now)


def brought_forward(execution: Execution, *, now: float) -> Execution:
    """One that waits for its time is due now."""
    if execution.status is not Status.ENQUEUED or execution.due_at <= now:
        return execution
    return replace(execution, due_at=now, updated_at=now)


STOPPED_BEFORE_START = Ending(
    status=Status.STOPPED, reason=Reason.STOPPED, message="Stopped on request before it was started."
)
REPLACED_BEFORE_START = Ending(
    status=Status.STOPPED,
    reason=Reason.STOPPED,
    message="Stopped before it was started: a newer request has replaced its job.",
)


def ended(execution: Execution, ending: Ending, *, now: float) -> Execution:
    """The execution's one final status."""
    moved = _moved(execution, ending.status, now)
    return replace(
        moved,
        reason=ending.reason,
        message=ending.message,
        exit_code=ending.exit_code,
        started_at=ending.started_at or execution.started_at,
        finished_at=ending.finished_at or now,
        waiting_for=None,
        failure=Failure.OPEN if ending.status in _FAILING else None,
    )


def cut_short(execution: Execution, ending: Ending) -> Ending:
    """What an ending is called that came before the run was there, or in the place of its own: one that was asked to
    stop is stopped by it, whatever it was."""
    if execution.stop_requested_at is None or ending.status is Status.STOPPED:
        return ending
    message = f"Stopped on request. {ending.message or ''}".strip()
    return replace(ending, status=Status.STOPPED, reason=Reason.STOPPED, message=message)


def before_start(execution: Execution, *, now: float) -> Ending | None:
    """Why it must not be started any more, if so."""
    if execution.stop_requested_at is not None:
        return STOPPED_BEFORE_START
    if execution.expiration is not None and now > execution.expiration:
        late = now - execution.expiration
        return Ending(
            status=Status.EXPIRED,
            reason=Reason.EXPIRED,
            message=f"Its expiration had passed {late:.1f} s before it could start.",
        )
    return None


def waited_too_long(execution: Execution, *, now: float) -> Ending | None:
    """The ending of one that has been in the queue for longer than it may, and whose preparation has not begun."""
    limit = execution.spec.queue_timeout
    if limit is None or execution.place is not None:
        return None
    waited = now - max(execution.created_at, execution.due_at)
    if waited <= limit:
        return None
    return Ending(
        status=Status.EXPIRED,
        reason=Reason.EXPIRED,
        message=f"It had waited in the queue for {waited:.1f} s, and its queue time-out is {limit:g} s.",
    )


def pull_deadline(execution: Execution) -> float | None:
    """When its preparation must be done; None for no such time."""
    limit = execution.spec.pull_timeout
    return None if limit is None or execution.placed_at is None else execution.placed_at + limit


def pull_timed_out(execution: Execution) -> Ending:
    """Its preparation took longer than it may."""
    return Ending(
        status=Status.TIMEDOUT,
        reason=Reason.PULL_TIMED_OUT,
        message=f"Its preparation took longer than its pull time-out of {execution.spec.pull_timeout:g} s.",
    )


def follows_request(execution: Execution) -> bool:
    """Whether its job may have been stopped or replaced between the decision to make it and its start."""
    return execution.retry_of is not None or execution.tick is not None or execution.due_at > execution.created_at


def outdated(execution: Execution, job: Job) -> Ending | None:
    """Why it must not be started any more by what has become of its job, if so."""
    if job.stop_requested_at is not None:
        return STOPPED_BEFORE_START
    return REPLACED_BEFORE_START if execution.generation != job.generation else None


def judged(execution: Execution, outcome: RunOutcome, *, timeout: float, stopped: bool, timed_out: bool) -> Ending:
    """The ending of a run with this outcome that might take `timeout` seconds.

    `stopped` and `timed_out` tell that this worker ended it for that. A worker that adopted the run after another had
    done so tells by the times: the run did not end before it was asked to, or took as long as it was allowed. They
    also tell that a worker came too late to time out a run that had long ended by itself. One that was asked to stop
    and came to no end of its own was stopped in any case.
    """
    finished_at = outcome.finished_at
    if not stopped and execution.stop_requested_at is not None:
        stopped = outcome.reason in _NOT_ITS_OWN
        if not stopped and finished_at is not None:
            stopped = finished_at >= execution.stop_requested_at
    if outcome.started_at is not None and finished_at is not None:
        took = finished_at - outcome.started_at
        if took >= timeout:
            timed_out = True
        elif outcome.reason is not Reason.SIGNAL and took < timeout - _CLOCKS_DIFFER:
            timed_out = False
    if stopped:
        status, reason, message = Status.STOPPED, Reason.STOPPED, "Stopped on request."
    elif timed_out:
        status, reason = Status.TIMEDOUT, Reason.TIMED_OUT
        message = f"Stopped after its time-out of {timeout:g} s."
    elif outcome.exit_code == 0 and outcome.reason is Reason.SUCCEEDED:
        status, reason, message = Status.DONE, outcome.reason, outcome.message
    else:
        status, reason, message = Status.FAILED, outcome.reason, outcome.message
    return Ending(
        status=status,
        reason=reason,
        message=message or None,
        exit_code=outcome.exit_code,
        started_at=outcome.started_at,
        finished_at=finished_at,
    )


def retried(reason: Reason, policy: RetryPolicy | None) -> Retried:
    """What follows an ending of a job with that policy."""
    usual = RETRIED[reason]
    if usual is Retried.FREE or policy is None or policy.on is None:
        return usual
    return Retried.COUNTED if reason in policy.on else Retried.NEVER


def retry_backoff(policy: RetryPolicy | None, usual: Backoff) -> Backoff:
    """The back-off of a job with that policy, where the settings have `usual`."""
    if policy is None:
        return usual
    cap = usual.cap if policy.max_seconds is None else policy.max_seconds
    first = min(usual.first, cap) if policy.min_seconds is None else policy.min_seconds
    return Backoff(
        first=first,
        factor=usual.factor if policy.factor is None else policy.factor,
        cap=max(cap, first) if policy.max_seconds is None else cap,
        jitter=usual.jitter if policy.jitter is None else policy.jitter,
    )


def given_up(execution: Execution) -> bool:
    """Whether a run of it that turns up somewhere has lost: its engine was given up, or it goes on elsewhere."""
    return execution.reason is Reason.ENGINE_LOST or not execution.status.is_final


def with_retry(
    execution: Execution, job: Job | None, usual: Backoff, *, now: float, chance: float | None = None
) -> Execution:
    """The ended execution, with the attempt that follows it decided in the same record."""
    if execution.reason is None or job is None or outdated(execution, job) is not None:
        return execution
    if execution.stop_requested_at is not None:
        # Also where it had ended by itself before: who stops an execution wants no other one for it.
        return execution
    rule = retried(execution.reason, job.retry)
    if rule is Retried.NEVER or (rule is Retried.COUNTED and execution.retries_used >= job.retries):
        return execution
    if execution.reason is Reason.ENGINE_LOST and execution.engines_lost >= MOST_ENGINES_LOST:
        told = f"It is not tried again: {execution.engines_lost + 1} attempts in a row have lost their engine."
        return replace(execution, message=f"{execution.message or ''} {told}".strip())
    backoff = retry_backoff(job.retry, usual)
    delay = backoff.delay(execution.attempt, floor=backoff.first, chance=chance)
    return replace(execution, retry_id=retry_id(execution.id), retry_at=now + delay, owes_at=now, failure=None)


def looked_at(execution: Execution, failure: Failure, *, now: float) -> Execution:
    """Somebody has dismissed one that failed for good, or has had it run again, which counts in the end."""
    if execution.failure in (None, failure, Failure.REPLAYED):
        return execution
    return replace(execution, failure=failure, updated_at=now)


def next_attempt(execution: Execution, *, lane: str, now: float) -> Execution:
    """The execution that tries an ended one again, as `with_retry` decided."""
    if execution.retry_id is None or execution.retry_at is None or execution.reason is None:
        raise IllegalTransition(f"execution {execution.id} has no retry")
    return Execution(
        id=execution.retry_id,
        job_id=execution.job_id,
        task_id=execution.task_id,
        spec=execution.spec,
        lane=lane,
        status=Status.ENQUEUED,
        created_at=now,
        updated_at=now,
        priority=execution.priority,
        job_concurrency=execution.job_concurrency,
        attempt=execution.attempt + 1,
        retries_used=_used_by_retry(execution),
        engines_lost=execution.engines_lost + 1 if execution.reason is Reason.ENGINE_LOST else 0,
        retry_of=execution.id,
        generation=execution.generation,
        due_at=execution.retry_at,
        expiration=execution.expiration,
    )


def asked_again(last: Execution, job: Job, *, lane: str, takes_over: bool = False, now: float) -> Execution:
    """The execution that a caller wants after `last`, the job's newest.

    The same as the retry that may follow it by itself, so that there is one of the two. With `takes_over`, it starts
    when what was asked to stop for it has ended.
    """
    return Execution(
        id=retry_id(last.id),
        job_id=job.id,
        task_id=job.task_id,
        spec=job.spec,
        lane=lane,
        status=Status.ENQUEUED,
        # Behind the last one also where this clock is late.
        created_at=max(now, last.created_at + 1e-6),
        updated_at=now,
        priority=job.priority,
        job_concurrency=job.most_running,
        attempt=last.attempt + 1,
        retries_used=last.retries_used if last.retry_id is None else _used_by_retry(last),
        retry_of=last.id,
        takes_over=takes_over,
        generation=job.generation,
        expiration=job.expiration,
    )


def _used_by_retry(execution: Execution) -> int:
    """The retries that are used up once the one that was decided is made."""
    is_free = execution.reason is not None and RETRIED[execution.reason] is Retried.FREE
    return execution.retries_used + (0 if is_free else 1)


def _moved(execution: Execution, status: Status, now: float) -> Execution:
    if status is execution.status and not status.is_final:
        return replace(execution, updated_at=now)
    if status not in TRANSITIONS[execution.status]:
        raise IllegalTransition(f"execution {execution.id} cannot go from {execution.status} to {status}")
    return replace(execution, status=status, updated_at=now)
