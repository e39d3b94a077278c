"""What requests may say of a schedule, and what they are told when it is wrong."""

from __future__ import annotations

import pytest

from fastlane_core.api.schedule_payload import ScheduleFields, checked_schedule
from fastlane_core.errors import InvalidInput
from fastlane_core.models import Misfire, Overlap, Schedule

NOW = 1_800_000_000.0
TEN_YEARS = 3653 * 86_400.0


def checked(**fields: object) -> tuple[float | None, Schedule | None]:
    return checked_schedule(ScheduleFields(**fields), now=NOW)  # type: ignore[arg-type]


def refused(**fields: object) -> tuple[str, str]:
    with pytest.raises(InvalidInput) as caught:
        checked(**fields)
    return caught.value.field, caught.value.message


def test_cron_alone_has_the_defaults() -> None:
    assert checked(cron="0 6 * * sun") == (None, Schedule(cron="0 6 * * sun", timezone="UTC"))


def test_every_field_of_a_schedule_is_taken() -> None:
    _, schedule = checked(
        cron="@daily",
        timezone="Europe/Berlin",
        misfire="run_all",
        misfireCap=5,
        overlap="queue",
        jitter=2.5,
        startAt=NOW + 10,
        endAt="2030-01-01T00:00:00Z",
    )

    assert schedule == Schedule(
        cron="@daily",
        timezone="Europe/Berlin",
        misfire=Misfire.RUN_ALL,
        misfire_cap=5,
        overlap=Overlap.QUEUE,
        jitter=2.5,
        start_at=NOW + 10,
        end_at=1_893_456_000.0,
    )


@pytest.mark.parametrize("nothing", [None, ""])
def test_an_empty_cron_is_none(nothing: str | None) -> None:
    assert checked(cron=nothing) == (None, None)
    assert checked(cron=nothing, startIn="10s") == (NOW + 10, None)


def test_a_start_bounds_a_cron_but_a_delay_does_not_go_with_it() -> None:
    assert refused(cron="@daily", startIn="10s")[0] == "startIn"
    assert refused(startAt=NOW + 1, startIn="10s")[0] == "startIn"


@pytest.mark.parametrize(
    "field_and_value",
    [("timezone", "UTC"), ("misfire", "skip"), ("misfireCap", 3), ("overlap", "skip"), ("jitter", 0.0), ("endAt", NOW)],
    ids=str,
)
def test_what_says_how_cron_is_meant_needs_one(field_and_value: tuple[str, object]) -> None:
    name, value = field_and_value
    assert refused(**{name: value}) == (name, "says how cron is meant, and there is no cron")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"cron": "0 0 * * * *"}, "cron"),
        ({"cron": "R 0 * * *"}, "cron"),
        ({"cron": "@daily", "timezone": "Mars/Olympus"}, "timezone"),
        ({"cron": "@daily", "startAt": NOW + TEN_YEARS + 1}, "startAt"),
        ({"cron": "@daily", "startAt": -1.0}, "startAt"),
        ({"cron": "@daily", "startAt": "soon"}, "startAt"),
        ({"cron": "@daily", "endAt": NOW + TEN_YEARS + 1}, "endAt"),
        ({"cron": "@daily", "endAt": NOW}, "endAt"),
        ({"cron": "@daily", "endAt": NOW + 10, "startAt": NOW + 20}, "endAt"),
        ({"startAt": NOW + TEN_YEARS + 1}, "startAt"),
        ({"startIn": "87673h"}, "startIn"),
        ({"startIn": "-5s"}, "startIn"),
        ({"startIn": "abc"}, "startIn"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_its_name(fields: dict[str, object], field: str) -> None:
    assert refused(**fields)[0] == field
