"""Moments in requests as Unix time: above all when a job may start."""

from __future__ import annotations

import re
from datetime import datetime

from fastlane_core.durations import parse_duration
from fastlane_core.errors import InvalidInput

#: Furthest that a start, or an end that is told as a length of time, may be ahead: ten years, in seconds.
_FURTHEST = 3653 * 86_400.0
#: The end of the year 9999; a later moment is most likely one in milliseconds.
_LAST_MOMENT = 253_402_300_799.0
_EXPECTED_MOMENT = "Unix time in seconds, or ISO 8601 with an offset such as 2030-01-31T06:00:00+01:00"
_EXPECTED_LENGTH = "a length of time such as 30s, 2m30s, 4h or 1d"
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")


def start_moment(at: float | str | None, after: str | None, *, now: float) -> float | None:
    """When a job is to start; None for at once. Raises InvalidInput naming `startAt` or `startIn`.

    A moment that has passed means at once, as it always did, and so does an empty text.
    """
    at, after = at if at != "" else None, after or None
    if at is not None and after is not None:
        raise InvalidInput("startIn", "there is a startAt as well: expected one of the two at most")
    start = _moment("startAt", at, "startIn", after, now=now)
    if start is not None and start > now + _FURTHEST:
        raise InvalidInput("startIn" if at is None else "startAt", "is more than ten years ahead")
    return start if start is None or start > now else None


def moment_ahead(field: str, at: float | str | None, *, now: float) -> float | None:
    """The moment in a field like `startAt`, at most ten years ahead; None for none. Raises InvalidInput."""
    found = None if at is None or at == "" else moment(field, at)
    if found is not None and found > now + _FURTHEST:
        raise InvalidInput(field, "is more than ten years ahead")
    return found


def expiration_moment(at: float | str | None, after: str | None, *, now: float) -> float | None:
    """When a job expires; None for never. Raises InvalidInput naming `expiration` or `expiresIn`."""
    if at is not None and after is not None:
        raise InvalidInput("expiresIn", "there is an expiration as well: expected one of the two at most")
    end = _moment("expiration", at, "expiresIn", after, now=now)
    if after is not None and end is not None and end > now + _FURTHEST:
        raise InvalidInput("expiresIn", "is more than ten years ahead")
    return end


def moment(field: str, value: float | str) -> float:
    """A moment as Unix time. Raises InvalidInput naming the field."""
    if isinstance(value, str):
        if _NUMBER.fullmatch(value):
            return float(value)
        try:
            told = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidInput(field, f"expected {_EXPECTED_MOMENT}, got {value[:40]!r}") from None
        if told.tzinfo is None:
            raise InvalidInput(field, f"{value[:40]!r} does not say in which time zone: end it in Z or an offset")
        value = told.timestamp()
    if value < 0:
        raise InvalidInput(field, f"expected {_EXPECTED_MOMENT}, got one before 1970")
    if value > _LAST_MOMENT:
        raise InvalidInput(field, f"expected {_EXPECTED_MOMENT}, got {value!r}: is it in milliseconds?")
    return value


def _moment(at_field: str, at: float | str | None, after_field: str, after: str | None, *, now: float) -> float | None:
    if after is not None:
        try:
            return now + parse_duration(after)
        except ValueError:
            raise InvalidInput(after_field, f"expected {_EXPECTED_LENGTH}, got {after[:40]!r}") from None
    return None if at is None else moment(at_field, at)
