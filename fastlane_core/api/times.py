"""Times in answers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import overload


@overload
def iso_time(at: float) -> str: ...
@overload
def iso_time(at: None) -> None: ...
@overload
def iso_time(at: float | None) -> str | None: ...
def iso_time(at: float | None) -> str | None:
    """Unix time as clients know it: ISO 8601 in UTC with microseconds and without an offset."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
