"""When cron expressions are due, against tables made with `zoneinfo` alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from fastlane_core.engine.cron import Cron, cron_of
from fastlane_core.errors import InvalidInput

#: Clocks changed by an hour in spring and autumn, by half an hour, at midnight, twice around Ramadan, and never.
ZONES = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
    "Africa/Casablanca",
    "Asia/Kolkata",
)
BEGIN = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
END = datetime(2030, 1, 1, tzinfo=UTC).timestamp()
#: All changes of these clocks are at a multiple of it.
QUARTER = 900.0


def _shown(zone: str) -> list[tuple[float, datetime]]:
    """What the clock shows at each quarter of an hour."""
    info = ZoneInfo(zone)
    quarters = range(int(BEGIN - 86_400), int(END), int(QUARTER))
    return [(float(at), datetime.fromtimestamp(at, info)) for at in quarters]


def _once_a_day(shown: list[tuple[float, datetime]], hour: int, minute: int) -> list[float]:
    """The first instant of each date at which the clock shows the time or a later one."""
    first: dict[object, float] = {}
    for at, local in shown:
        if (local.hour, local.minute) >= (hour, minute):
            first.setdefault(local.date(), at)
    return sorted(at for at in first.values() if at > BEGIN)


def _whenever(shown: list[tuple[float, datetime]], matches: Callable[[datetime], bool]) -> list[float]:
    return [at for at, local in shown if at > BEGIN and matches(local)]


@pytest.mark.parametrize("zone", ZONES)
def test_ten_years_have_each_tick_once(zone: str) -> None:
    shown = _shown(zone)
    tables = {
        f"{minute} {hour} * * *": _once_a_day(shown, hour, minute)
        for hour, minute in ((2, 30), (0, 15), (3, 0), (0, 0), (23, 45))
    }
    tables["30 * * * *"] = _whenever(shown, lambda local: local.minute == 30)
    tables["*/15 * 29 2 *"] = _whenever(shown, lambda local: (local.month, local.day) == (2, 29))
    for expression, table in tables.items():
        assert list(Cron(expression, ZoneInfo(zone)).ticks(BEGIN, table[-1])) == table, expression


def _ticks(expression: str, zone: str, after: str, count: int) -> list[str]:
    cron, info, moment = cron_of(expression, zone), ZoneInfo(zone), datetime.fromisoformat(after).timestamp()
    found = []
    for _ in range(count):
        tick = cron.next_after(moment)
        assert tick is not None
        found.append(datetime.fromtimestamp(tick, info).isoformat())
        moment = tick
    return found


def test_times_that_a_gap_skips_come_as_one_when_it_ends() -> None:
    assert _ticks("*/20 2 * * *", "Europe/Berlin", "2026-03-28T02:40+01:00", 2) == [
        "2026-03-29T03:00:00+02:00",
        "2026-03-30T02:00:00+02:00",
    ]


def test_a_named_hour_that_the_clock_shows_twice_counts_the_first_time() -> None:
    assert _ticks("30 2 * * *", "Europe/Berlin", "2026-10-25T00:00+02:00", 2) == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-26T02:30:00+01:00",
    ]


def test_every_hour_means_both_passes_of_a_repeated_one() -> None:
    assert _ticks("30 * * * *", "Europe/Berlin", "2026-10-25T01:45+02:00", 3) == [
        "2026-10-25T02:30:00+02:00",
        "2026-10-25T02:30:00+01:00",
        "2026-10-25T03:30:00+01:00",
    ]


def test_a_repeated_hour_at_the_end_of_the_last_day_that_matches_is_not_lost() -> None:
    # On the 4th of April 2026 Santiago's clock goes from 24:00 back to 23:00.
    assert _ticks("0 * 4 4 *", "America/Santiago", "2026-04-04T22:30-03:00", 2) == [
        "2026-04-04T23:00:00-03:00",
        "2026-04-04T23:00:00-04:00",
    ]


@pytest.mark.parametrize(
    ("expression", "first"),
    [
        ("@monthly", "2026-02-01T00:00:00+00:00"),
        ("0 6 * * sun", "2026-01-04T06:00:00+00:00"),
        ("0 6 * * 7", "2026-01-04T06:00:00+00:00"),
        ("0 0 L * *", "2026-01-31T00:00:00+00:00"),
        ("0 0 * * 5#3", "2026-01-16T00:00:00+00:00"),
        ("0 0 29 feb *", "2028-02-29T00:00:00+00:00"),
    ],
)
def test_names_last_days_and_nth_weekdays(expression: str, first: str) -> None:
    assert _ticks(expression, "UTC", "2026-01-01T00:00+00:00", 1) == [first]


NO_CRON = ["", "* * * *", "0 0 1 1 * *", "* * * * * * *", "60 * * * *", "0 0 31 2 *", "mon * * * *", "*/0 * * * *"]
NO_CRON += ["@reboot", "@every 5m", "R * * * *", "0 h(0-3) * * *", "0 " * 300]


@pytest.mark.parametrize("expression", NO_CRON)
def test_what_is_no_cron_expression_is_refused(expression: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        cron_of(expression, "UTC")
    assert refused.value.field == "cron"


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "../../etc/passwd", "Europe", "x" * 10_000, "UTC\0"])
def test_what_is_no_time_zone_is_refused(zone: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        cron_of("0 0 * * *", zone)
    assert refused.value.field == "timezone"
