"""Cron expressions, and the instants at which they fire in a time zone. Pure.

croniter reads the expression and tells the days; what the clock of a time zone does to a day is decided here, by the
rule of Vixie cron (cron(8) of Debian, "Daylight Saving Time and other time changes"), since croniter fires a daily job
twice in a repeated hour:

- Where every hour is allowed, ticks follow elapsed time: both passes of a repeated hour, nothing in a gap.
- Otherwise each local time that the expression names fires exactly once a day: one in a gap at the instant at which
  the gap ends (several of them together), one in a repeated hour at its first pass.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import takewhile
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from croniter import CroniterError, croniter

from fastlane_core.errors import InvalidInput

_DAY = timedelta(days=1)
#: How far ahead ticks are looked for.
_HORIZON = timedelta(days=50 * 366)
_LONGEST = 200
_EXPECTED = "expected five fields (minute, hour, day of month, month, day of week) or a name such as @hourly"
_NAMES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
#: croniter's random (R) and hashed (H) parts.
_DRAWN = re.compile(r"[hr](\(.*\))?(/.*)?")
#: Files among those of the zones that are none, or another one on each machine.
_NO_ZONES = frozenset({"Factory", "localtime"})


class Cron:
    """A cron expression in a time zone."""

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        """Five fields (minute, hour, day of month, month, day of week), or a name such as `@hourly`.

        Fields take lists, ranges, steps, names of months and days, `L` (last day; `L5`: last Friday), `#` (`1#2`:
        second Monday) and `W` (`15W`: the weekday nearest to the 15th). A day matches by either field where both are
        restricted. Raises InvalidInput, which names `cron`, for anything else and for what never fires.
        """
        self._zone = zone
        fields = _fields(expression)
        days = " ".join(fields[2:])
        try:
            (minutes, hours, *days_allowed), _ = croniter.expand(" ".join(fields), strict=True)
            if _next_matching(days, date(2000, 1, 1)) is None:
                raise InvalidInput("cron", f"{expression!r} never fires: no such day comes in the next 50 years")
        except CroniterError as error:
            raise InvalidInput("cron", f"{_EXPECTED}: {error}") from None
        except (ValueError, TypeError, KeyError, IndexError, ArithmeticError) as error:
            raise InvalidInput("cron", f"{_EXPECTED}; {expression!r} cannot be read: {error}") from None
        self._every_hour = hours == ["*"]
        wanted_hours = range(24) if self._every_hour else sorted(map(int, hours))
        wanted_minutes = range(60) if minutes == ["*"] else sorted(map(int, minutes))
        #: Minutes of the day that it names, in order.
        self._minutes = [60 * hour + minute for hour in wanted_hours for minute in wanted_minutes]
        #: The fields of the day, as croniter takes them; "" for every day.
        self._days = "" if days_allowed == [["*"]] * 3 else days

    def next_after(self, moment: float) -> float | None:
        """The first tick after a moment, both in Unix time; None if there is none within fifty years."""
        return next(self.all_after(moment), None)

    def ticks(self, after: float, until: float) -> Iterator[float]:
        """The ticks after a moment, up to another one and including it."""
        return takewhile(lambda tick: tick <= until, self.all_after(after))

    def all_after(self, moment: float) -> Iterator[float]:
        """The ticks in the fifty years after a moment, in order."""
        zone = self._zone
        before = datetime.fromtimestamp(moment, zone).date() - _DAY
        day, last = self._next_day(before), before + _HORIZON
        # Ticks of a day on which the clock is moved may come after some of the next day's.
        held: list[float] = []
        while day is not None and day <= last:
            midnight, next_day = datetime.combine(day, time(), zone), day + _DAY
            if not held and _is_plain(midnight, datetime.combine(next_day, time(), zone)):
                start = midnight.timestamp()
                for minute in self._minutes[bisect_right(self._minutes, (moment - start) / 60) :]:
                    yield start + 60.0 * minute
            else:
                held = sorted({*held, *(at for at in self._moved_day(day) if at > moment)})
                bound = _fires_at(datetime.combine(next_day, time()), zone)
                ready = [at for at in held if at < bound]
                held = held[len(ready) :]
                yield from ready
            day = self._next_day(next_day)
        yield from held

    def _next_day(self, day: date) -> date | None:
        """The first day from that one on at which it may fire."""
        return _next_matching(self._days, day) if self._days else day

    def _moved_day(self, day: date) -> Iterator[float]:
        """The ticks of a local day on which the clock is moved, in no order."""
        for minute in self._minutes:
            local = datetime.combine(day, time(minute // 60, minute % 60))
            if self._every_hour:
                yield from _passes(local, self._zone)
            else:
                yield _fires_at(local, self._zone)


@lru_cache(maxsize=4096)
def cron_of(expression: str, timezone: str) -> Cron:
    """The expression in the IANA time zone of that name. Raises InvalidInput, which names `cron` or `timezone`."""
    return Cron(expression, zone_of(timezone))


def zone_of(name: str) -> ZoneInfo:
    """The IANA time zone of that name. Raises InvalidInput, which names `timezone`."""
    try:
        if name in _zone_names():
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, OSError):
        # Named by an index, but not there.
        pass
    wanted = name[:100].strip().lower()
    meant = next((f"; did you mean {each!r}?" for each in sorted(_zone_names()) if each.lower() == wanted), "")
    raise InvalidInput(
        "timezone", f"there is no time zone {name[:60]!r}: expected one such as UTC or Europe/Berlin{meant}"
    )


def _fields(expression: str) -> list[str]:
    text, shown = expression.strip(" \t").lower(), expression[:60]
    if len(text) > _LONGEST:
        raise InvalidInput("cron", f"is longer than {_LONGEST} characters")
    fields = re.split(r"[ \t]+", _NAMES.get(text, text))
    if len(fields) != 5 or not text.isascii():
        raise InvalidInput("cron", f"{_EXPECTED}, got {shown!r}")
    if any(_DRAWN.fullmatch(part) for field in fields for part in field.split(",")):
        # They would be drawn anew in each process.
        raise InvalidInput("cron", f"{shown!r} asks for a random time: name the minute and hour")
    return fields


@lru_cache(maxsize=1)
def _zone_names() -> frozenset[str]:
    return frozenset(available_timezones()) - _NO_ZONES


@lru_cache(maxsize=65_536)
def _next_matching(days: str, day: date) -> date | None:
    """The first day from that one on that croniter's fields of the day allow."""
    before = datetime.combine(day, time()) - timedelta(minutes=1)
    found = next(croniter(f"0 0 {days}", before).all_next(datetime), None)
    return None if found is None else found.date()


def _is_plain(midnight: datetime, next_midnight: datetime) -> bool:
    """Whether the clock is not moved between the two, nor right behind them."""
    return midnight.utcoffset() == next_midnight.utcoffset() == next_midnight.replace(fold=1).utcoffset()


def _passes(local: datetime, zone: ZoneInfo) -> set[float]:
    """The instants at which clocks show that time: one, two where it is repeated, none in a gap."""
    found = {local.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1)}
    return {at for at in found if datetime.fromtimestamp(at, zone).replace(tzinfo=None, fold=0) == local}


def _fires_at(local: datetime, zone: ZoneInfo) -> float:
    """The first instant at which clocks show that time, or at which they have skipped it."""
    passes = _passes(local, zone)
    if passes:
        return min(passes)
    # In a gap: read by the offset before it, the time is behind the gap; read by the one after it, before the gap.
    before, behind = (int(local.replace(tzinfo=zone, fold=fold).timestamp()) for fold in (1, 0))
    offset = _offset(before, zone)
    while behind - before > 1:
        middle = (before + behind) // 2
        if _offset(middle, zone) == offset:
            before = middle
        else:
            behind = middle
    return float(behind)


def _offset(at: int, zone: ZoneInfo) -> timedelta | None:
    return datetime.fromtimestamp(at, UTC).astimezone(zone).utcoffset()
