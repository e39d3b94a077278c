"""What a schedule has to fire, and what follows. Pure: times are passed in, nothing is stored.

A tick that is no more than `MISSED_AFTER` late fires as if it were in time. Later ones were missed, and the schedule's
`misfire` says what becomes of them.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from fastlane_core.engine.cron import cron_of
from fastlane_core.engine.identifiers import tick_id
from fastlane_core.models import Execution, Job, Misfire, Overlap, Schedule, Status
from fastlane_core.quick_dataclass import replace

#: Seconds that a tick may be late.
MISSED_AFTER = 60.0
#: Executions of a job that wait for each other at most, with `Overlap.QUEUE`.
MOST_QUEUED = 100
#: Seconds that whoever stops a job has for telling its executions, before a scheduler goes on with it.
STOP_SECONDS = 30.0

_MISSED = "no worker was there in time"


@dataclass(frozen=True, kw_only=True, slots=True)
class Firing:
    """What a look at a due job has decided."""

    job: Job
    #: Ticks that get an execution, oldest first.
    ticks: tuple[float, ...] = ()
    #: The newest tick that this decides about; None for none.
    last: float | None = None
    skipped: int = 0
    last_skipped_at: float | None = None
    last_skipped_why: str | None = None


def begun(job: Job, *, now: float) -> Job:
    """The new job, or one that is resumed, with the first tick that it is to fire."""
    schedule = job.schedule
    if schedule is None:
        return replace(job, due_at=None)
    at = _next(job, schedule, now if schedule.start_at is None else max(now, schedule.start_at - 0.001))
    return _due(replace(job, schedule=replace(schedule, next_tick_at=at)))


def paused(job: Job, *, now: float) -> Job:
    """The job, firing nothing until `resumed`; one that is paused already, or has ended, is given back."""
    schedule = job.schedule
    if schedule is None or schedule.paused_at is not None or schedule.next_tick_at is None:
        return job
    return _due(replace(job, schedule=replace(schedule, paused_at=now, next_tick_at=None)))


def resumed(job: Job, *, now: float) -> Job:
    """The job, firing again; ticks that came while it was paused never do."""
    schedule = job.schedule
    if schedule is None or schedule.paused_at is None:
        return job
    return begun(replace(job, schedule=replace(schedule, paused_at=None)), now=now)


def stopped_for_good(job: Job, *, now: float) -> Job:
    """The job as asked to stop, and `is_stopping`. Its schedule has ended, also should the job be run again."""
    schedule = job.schedule
    if schedule is not None:
        schedule = replace(schedule, next_tick_at=None, paused_at=None)
    return replace(job, stop_requested_at=now, schedule=schedule, due_at=now + STOP_SECONDS)


def is_stopping(job: Job) -> bool:
    """Whether executions of it may still have to be told of its stop: by whoever stopped it, later by a scheduler."""
    return job.stop_requested_at is not None and job.due_at is not None


def is_active(job: Job) -> bool:
    """Whether its schedule fires, or will when it is resumed."""
    schedule = job.schedule
    if schedule is None or job.stop_requested_at is not None:
        return False
    return schedule.next_tick_at is not None or schedule.paused_at is not None


def upcoming(job: Job, *, count: int, now: float) -> Sequence[float]:
    """The next ticks of a job that is neither paused nor stopped."""
    schedule = job.schedule
    if schedule is None or schedule.next_tick_at is None or job.stop_requested_at is not None:
        return []
    return list(islice(_until(job, schedule, _ticks(schedule, max(now, schedule.next_tick_at - 0.001))), count))


def due_ticks(job: Job, *, now: float) -> Firing:
    """What a due job fires, if no earlier execution is in the way."""
    schedule = job.schedule
    first = schedule.next_tick_at if schedule else None
    if schedule is None or first is None or first > now or job.stop_requested_at is not None:
        return Firing(job=job)
    if first >= now - MISSED_AFTER:
        # The usual case, and the quick one: what else is due is seen by the next look.
        return Firing(job=job, ticks=(first,), last=first)
    cap = schedule.misfire_cap if schedule.misfire is Misfire.RUN_ALL else 1
    missed, newest = 0, deque[float](maxlen=cap + 1)
    in_time: list[float] = []
    for at in _until(job, schedule, _ticks(schedule, first - 0.001)):
        if at > now:
            break
        if at >= now - MISSED_AFTER:
            in_time.append(at)
        else:
            missed += 1
            newest.append(at)
    if schedule.misfire is Misfire.SKIP or (schedule.misfire is Misfire.RUN_ONCE and in_time):
        cap = 0
    made_up = list(newest)[len(newest) - min(cap, missed) :]
    skipped = missed - len(made_up)
    return Firing(
        job=job,
        ticks=(*made_up, *in_time),
        # None is left where the rules of the zone have changed: then the next one is reckoned from what was stored.
        last=max([*newest, *in_time], default=first),
        skipped=skipped,
        last_skipped_at=newest[-1 - len(made_up)] if skipped else None,
        last_skipped_why=_MISSED if skipped else None,
    )


def with_overlap(firing: Firing, unfinished: Collection[str]) -> Firing:
    """What is left of the firing when these executions of the job have not ended."""
    schedule = firing.job.schedule
    if schedule is None or not firing.ticks or schedule.overlap is Overlap.ALLOW:
        return firing
    # Made by an earlier, broken-off try of this very firing.
    own = {execution_id(firing.job, tick) for tick in firing.ticks}
    others = len(set(unfinished) - own)
    if schedule.overlap is Overlap.REPLACE:
        return _without(firing, firing.ticks[-1:], "a newer tick replaced it")
    room = MOST_QUEUED + 1 if schedule.overlap is Overlap.QUEUE else 1
    why = "an earlier execution had not ended" if room == 1 else f"{MOST_QUEUED} executions waited already"
    return _without(firing, firing.ticks[: max(0, room - others)], why)


def refused(firing: Firing, why: str) -> Firing:
    """The firing, with none of its ticks getting an execution."""
    return _without(firing, (), why)


def advanced(firing: Firing) -> Job:
    """The job after the firing, with its next tick."""
    job, schedule = firing.job, firing.job.schedule
    if schedule is None or job.stop_requested_at is not None or schedule.paused_at is not None:
        return replace(job, due_at=None)
    if firing.last is None:
        return _due(job)
    return _due(
        replace(
            job,
            schedule=replace(
                schedule,
                next_tick_at=_next(job, schedule, firing.last),
                last_tick_at=firing.ticks[-1] if firing.ticks else schedule.last_tick_at,
                skipped=schedule.skipped + firing.skipped,
                last_skipped_at=firing.last_skipped_at or schedule.last_skipped_at,
                last_skipped_why=firing.last_skipped_why or schedule.last_skipped_why,
            ),
        )
    )


def execution_id(job: Job, tick: float) -> str:
    """The id of the execution that the job's schedule makes for a tick."""
    return tick_id(job.task_id, job.id, job.generation, tick)


def next_execution_id(job: Job) -> str | None:
    """The id that the execution of the job's next tick will have; None if none comes."""
    tick = job.schedule.next_tick_at if job.schedule else None
    return None if tick is None else execution_id(job, tick)


def execution_of(job: Job, tick: float, *, lane: str, now: float) -> Execution:
    """The execution of a tick, to be started at once, or after its share of the jitter."""
    schedule = job.schedule
    jitter = schedule.jitter if schedule else 0.0
    made_id = execution_id(job, tick)
    return Execution(
        id=made_id,
        job_id=job.id,
        task_id=job.task_id,
        spec=job.spec,
        lane=lane,
        status=Status.ENQUEUED,
        created_at=now,
        updated_at=now,
        priority=job.priority,
        job_concurrency=job.most_running,
        generation=job.generation,
        tick=tick,
        # Drawn from the id: whoever makes it draws the same.
        due_at=tick + jitter * (uuid.UUID(made_id).int % 1_000_003) / 1_000_003,
        expiration=job.expiration,
    )


def _without(firing: Firing, kept: tuple[float, ...], why: str) -> Firing:
    dropped = [tick for tick in firing.ticks if tick not in kept]
    if not dropped:
        return firing
    return replace(
        firing,
        ticks=kept,
        skipped=firing.skipped + len(dropped),
        last_skipped_at=dropped[-1],
        last_skipped_why=why,
    )


def _due(job: Job) -> Job:
    return replace(job, due_at=job.schedule.next_tick_at if job.schedule else None)


def _ticks(schedule: Schedule, after: float) -> Iterator[float]:
    return cron_of(schedule.cron, schedule.timezone).all_after(after)


def _next(job: Job, schedule: Schedule, after: float) -> float | None:
    at = next(_ticks(schedule, after), None)
    return at if at is not None and at <= _end(job, schedule) else None


def _until(job: Job, schedule: Schedule, ticks: Iterator[float]) -> Iterator[float]:
    end = _end(job, schedule)
    for at in ticks:
        if at > end:
            return
        yield at


def _end(job: Job, schedule: Schedule) -> float:
    """The last moment at which it may fire: after its expiration nothing of it may start."""
    ends = [at for at in (schedule.end_at, job.expiration) if at is not None]
    return min(ends, default=float("inf"))
