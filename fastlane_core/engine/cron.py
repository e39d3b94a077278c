"""When a cron expression is due, in a time zone, through gaps and repeats of its clock. Pure.

Where the hour is named (`30 2 * * *`), each local time comes once a day: one that a gap skips, at the instant at which
the gap ends, and several of them then as one; one that the clock shows twice, the first time. Where every hour is
meant (`*/10 * * * *`), ticks follow elapsed time: both passes of a repeated hour have theirs, a gap has none. So does
Vixie cron (cron(8) of Debian, "Daylight Saving Time and other time changes").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterError, croniter

from fastlane_core.errors import InvalidInput

_MOST_CHARACTERS = 200
_NICKNAMES = frozenset({"@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually"})
#: `r` and `h` draw a number, which would be another one in each process.
_DRAWN = re.compile(r"(?i)(^|[\s,/-])[rh]($|[\s,/(-])")
_EXPECTED = "expected five fields (minute, hour, day of month, month, day of week) or a name such as @hourly"
_DAY = 86_400
_HOURS = 24


class Cron:
    """A cron expression in a time zone."""

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        """Raises InvalidInput, which names `cron`."""
        self._zone = zone
        self._of_naive = _parsed(expression)
        hours = self._of_naive.expanded[1]
        self._every_hour = "*" in hours or len(set(hours)) == _HOURS
        if self.next_after(0.0) is None:
            raise InvalidInput("cron", f"{expression!r} never comes")

    def next_after(self, moment: float) -> float | None:
        """The first tick after a moment, both in Unix time; None if there is none within fifty years."""
        local = self._local(moment)
        if not self._every_hour:
            return next((each for at in self._naive_after(local) if (each := self._once(at)) > moment), None)
        due = next((each for at in self._naive_after(local) for each in self._every(at) if each > moment), None)
        again = self._first_after_a_change(moment, moment + _DAY if due is None else min(due, moment + _DAY))
        return again if again is not None and (due is None or again < due) else due

    def ticks(self, after: float, until: float) -> Iterator[float]:
        """The ticks after a moment, up to another one and including it."""
        tick = self.next_after(after)
        while tick is not None and tick <= until:
            yield tick
            tick = self.next_after(tick)

    def _naive_after(self, local: datetime) -> Iterator[datetime]:
        """What the expression says of a clock that is never changed."""
        try:
            yield self._of_naive.get_next(datetime, start_time=local)
            while True:
                yield self._of_naive.get_next(datetime)
        except CroniterError:
            return

    def _once(self, local: datetime) -> float:
        """The first instant at which the zone's clock shows a time or, where a gap skips it, a later one."""
        shown = local.replace(tzinfo=self._zone, fold=0)
        instant = shown.timestamp()
        if self._local(instant) == local:
            return instant
        # In a gap, `fold` picks the offset before (0) and after (1) it.
        return self._change_within(local.replace(tzinfo=self._zone, fold=1).timestamp(), instant)

    def _every(self, local: datetime) -> list[float]:
        """The instants, none to two, at which the zone's clock shows a time."""
        instants = {local.replace(tzinfo=self._zone, fold=fold).timestamp() for fold in (0, 1)}
        return sorted(each for each in instants if self._local(each) == local)

    def _first_after_a_change(self, start: float, end: float) -> float | None:
        """The first tick after the clock was changed between the two moments: it may show again what it did."""
        if self._offset(start) == self._offset(end):
            return None
        change = self._change_within(start, end)
        offset = self._offset(change)
        shown = next(self._naive_after(self._local(change) - timedelta(seconds=1)), None)
        if shown is None:
            return None
        tick = (shown - offset).replace(tzinfo=UTC).timestamp()
        return tick if start < tick and self._local(tick) == shown else None

    def _change_within(self, start: float, end: float) -> float:
        """When the zone's offset changes between two moments at which it differs; a whole second."""
        before, low, high = self._offset(start), int(start), int(end)
        while high - low > 1:
            middle = (low + high) // 2
            if self._offset(middle) == before:
                low = middle
            else:
                high = middle
        return float(high)

    def _offset(self, moment: float) -> timedelta:
        return datetime.fromtimestamp(moment, self._zone).utcoffset() or timedelta()

    def _local(self, moment: float) -> datetime:
        return datetime.fromtimestamp(moment, self._zone).replace(tzinfo=None, fold=0)


@lru_cache(maxsize=4096)
def cron_of(expression: str, timezone: str) -> Cron:
    """The expression in the IANA time zone of that name. Raises InvalidInput, which names `cron` or `timezone`."""
    return Cron(expression, zone_of(timezone))


def zone_of(name: str) -> ZoneInfo:
    """The IANA time zone of that name. Raises InvalidInput, which names `timezone`."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # Names that are folders, or lead out of them, are ValueError or OSError.
        raise InvalidInput(
            "timezone", f"there is no time zone {name[:60]!r}: expected one such as UTC or Europe/Berlin"
        ) from None


def _parsed(expression: str) -> croniter:
    """Raises InvalidInput."""
    shown = expression[:60]
    if len(expression) > _MOST_CHARACTERS:
        raise InvalidInput("cron", f"is longer than {_MOST_CHARACTERS} characters")
    if expression.lower() not in _NICKNAMES and len(expression.split()) != 5:
        raise InvalidInput("cron", f"{_EXPECTED}, got {shown!r}")
    if _DRAWN.search(expression):
        raise InvalidInput("cron", f"{shown!r} asks for a random time: name the minute and hour")
    try:
        return croniter(expression, datetime(2000, 1, 1))  # noqa: DTZ001 - a clock without a zone
    except CroniterError as error:
        raise InvalidInput("cron", f"{_EXPECTED}: {error}") from None
