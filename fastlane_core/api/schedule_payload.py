"""The part of a job's payload that says when it runs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from fastlane_core.api.moments import moment_ahead, start_moment
from fastlane_core.engine.cron import cron_of
from fastlane_core.errors import InvalidInput
from fastlane_core.models import Misfire, Overlap, Schedule

_MAX_CAP = 1000
_MAX_JITTER = 3600

#: What is expected of each field, for refusals.
SCHEDULE_EXPECTED = {
    "startAt": "Unix time in seconds, or ISO 8601 with an offset",
    "startIn": "a length of time such as 2m30s",
    "endAt": "Unix time in seconds, or ISO 8601 with an offset",
    "cron": "a text of five fields, or a name such as @hourly",
    "timezone": "the IANA name of a time zone, such as Europe/Berlin",
    "misfire": "run_once, skip or run_all",
    "misfireCap": f"a whole number from 1 to {_MAX_CAP}",
    "overlap": "allow, skip, queue or replace",
    "jitter": f"a number of seconds from 0 to {_MAX_JITTER}",
}
#: Fields that only mean something together with `cron`.
_OF_CRON = ("timezone", "misfire", "misfireCap", "overlap", "jitter", "endAt")


class ScheduleFields(BaseModel):
    """When a job runs: at once unless one of them says otherwise."""

    startAt: float | str | None = Field(  # noqa: N815 - as clients know it
        default=None,
        description="When to start: Unix time in seconds, or ISO 8601 with an offset. With cron, no tick before it.",
    )
    startIn: str | None = Field(  # noqa: N815
        default=None, description="How long from now to start, such as 10s, 2m30s, 4h or 1d."
    )
    cron: str | None = Field(
        default=None,
        description="Runs again and again: minute, hour, day of month, month and day of week, with names, lists, "
        "ranges, steps, L (last) and # (nth); or @hourly, @daily, @weekly, @monthly, @yearly.",
    )
    timezone: str | None = Field(default=None, description="IANA name of the time zone of cron; UTC by default.")
    misfire: Literal["run_once", "skip", "run_all"] | None = Field(
        default=None,
        description="What becomes of ticks that were missed by more than a minute: one run makes up for all (the "
        "default), none does, or each does, up to misfireCap.",
    )
    misfireCap: int | None = Field(  # noqa: N815
        default=None, ge=1, le=_MAX_CAP, description="Missed ticks made up for with run_all, the newest ones; 100."
    )
    overlap: Literal["allow", "skip", "queue", "replace"] | None = Field(
        default=None,
        description="What becomes of a tick while an earlier execution has not ended: it runs beside it (the default), "
        "is skipped, waits, or the earlier one is stopped.",
    )
    jitter: float | None = Field(
        default=None, ge=0, le=_MAX_JITTER, description="Seconds that each run is put off at most, drawn for each."
    )
    endAt: float | str | None = Field(  # noqa: N815
        default=None, description="Moment after which cron has no more ticks, in either form of startAt."
    )


def checked_schedule(fields: ScheduleFields, *, now: float) -> tuple[float | None, Schedule | None]:
    """When the job starts, None for at once; or its schedule. Raises InvalidInput, which names the field."""
    # An empty text means nothing, as it always did.
    if not fields.cron:
        for name in _OF_CRON:
            if getattr(fields, name) is not None:
                raise InvalidInput(name, "says how cron is meant, and there is no cron")
        return start_moment(fields.startAt, fields.startIn, now=now), None
    if fields.startIn:
        raise InvalidInput("startIn", "there is a cron as well: expected one of the two at most")
    start_at = moment_ahead("startAt", fields.startAt, now=now)
    end_at = moment_ahead("endAt", fields.endAt, now=now)
    if end_at is not None and end_at <= max(now, start_at or now):
        raise InvalidInput("endAt", "is not after now" if end_at <= now else "is not after startAt")
    timezone = fields.timezone or "UTC"
    cron_of(fields.cron, timezone)
    schedule = Schedule(
        cron=fields.cron,
        timezone=timezone,
        misfire=Misfire(fields.misfire or Misfire.RUN_ONCE),
        misfire_cap=fields.misfireCap or 100,
        overlap=Overlap(fields.overlap or Overlap.ALLOW),
        jitter=fields.jitter or 0.0,
        start_at=start_at,
        end_at=end_at,
    )
    return None, schedule
