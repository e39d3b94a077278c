"""What a schedule fires and what follows, without storage: misfire, overlap, pause, bounds, jitter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastlane_core.engine.schedules import (
    MOST_QUEUED,
    Firing,
    advanced,
    begun,
    due_ticks,
    execution_id,
    execution_of,
    is_active,
    paused,
    resumed,
    upcoming,
    with_overlap,
)
from fastlane_core.models import Job, Misfire, Overlap, RunSpec, Schedule

#: A full hour.
NOW = 1_800_000_000.0
MINUTE = 60.0


def a_job(now: float = NOW, *, expiration: float | None = None, **schedule: object) -> Job:
    wanted = Schedule(**{"cron": "* * * * *", **schedule})  # type: ignore[arg-type]
    spec = RunSpec(image="i", command="c", timeout=60.0)
    job = Job(
        id="j",
        task_id="t",
        spec=spec,
        created_at=now,
        modified_at=now,
        schedule=wanted,
        expiration=expiration,
        priority=3,
    )
    return begun(job, now=now)


def state(job: Job) -> Schedule:
    assert job.schedule is not None
    return job.schedule


def minutes(*numbers: int) -> tuple[float, ...]:
    return tuple(NOW + number * MINUTE for number in numbers)


def test_a_new_schedule_is_due_at_its_first_tick_after_now() -> None:
    job = a_job()

    assert (state(job).next_tick_at, job.due_at) == (NOW + 60, NOW + 60)
    assert begun(a_job(NOW + 0.5), now=NOW + 59.9).due_at == NOW + 60


def test_a_tick_in_time_fires_and_the_next_one_is_due() -> None:
    firing = due_ticks(a_job(), now=NOW + 60.2)

    assert firing.ticks == minutes(1)
    after = advanced(firing)
    assert after.due_at == NOW + 120
    assert (state(after).last_tick_at, state(after).skipped) == (NOW + 60, 0)
    assert due_ticks(after, now=NOW + 60.3).ticks == ()


@pytest.mark.parametrize(
    ("misfire", "fired", "skipped"),
    [
        # It is 10:30: the ticks 1 to 9 were missed, that of the tenth minute is in time.
        (Misfire.RUN_ONCE, minutes(10), 9),
        (Misfire.SKIP, minutes(10), 9),
        (Misfire.RUN_ALL, minutes(*range(1, 11)), 0),
    ],
)
def test_missed_ticks_before_one_that_is_in_time(misfire: Misfire, fired: tuple[float, ...], skipped: int) -> None:
    firing = due_ticks(a_job(misfire=misfire), now=NOW + 10 * MINUTE + 30)

    assert (firing.ticks, firing.skipped) == (fired, skipped)
    after = advanced(firing)
    assert after.due_at == NOW + 11 * MINUTE
    assert state(after).skipped == skipped


@pytest.mark.parametrize(
    ("misfire", "fired", "skipped", "last_skipped"),
    [
        (Misfire.RUN_ONCE, (NOW + 7200,), 1, NOW + 3600),
        (Misfire.SKIP, (), 2, NOW + 7200),
        (Misfire.RUN_ALL, (NOW + 3600, NOW + 7200), 0, None),
    ],
)
def test_missed_ticks_and_none_in_time(
    misfire: Misfire, fired: tuple[float, ...], skipped: int, last_skipped: float | None
) -> None:
    firing = due_ticks(a_job(cron="@hourly", misfire=misfire), now=NOW + 2.5 * 3600)

    after = state(advanced(firing))
    assert (firing.ticks, after.skipped, after.last_skipped_at) == (fired, skipped, last_skipped)
    assert after.next_tick_at == NOW + 3 * 3600


def test_of_missed_ticks_the_newest_are_made_up_for_up_to_the_cap() -> None:
    firing = due_ticks(a_job(misfire=Misfire.RUN_ALL, misfire_cap=3), now=NOW + 100 * MINUTE + 30)

    assert firing.ticks == minutes(97, 98, 99, 100)
    after = state(advanced(firing))
    assert (after.skipped, after.last_skipped_at) == (96, NOW + 96 * MINUTE)


def test_years_of_missed_ticks_are_counted_one_by_one() -> None:
    days = 3650
    firing = due_ticks(a_job(cron="*/10 * * * *"), now=NOW + days * 86_400 + 1)

    assert (len(firing.ticks), firing.skipped) == (1, days * 144 - 1)


@pytest.mark.parametrize(
    ("overlap", "fired", "skipped"),
    [(Overlap.ALLOW, 1, 0), (Overlap.SKIP, 0, 1), (Overlap.QUEUE, 1, 0), (Overlap.REPLACE, 1, 0)],
)
def test_overlap_decides_while_an_earlier_execution_goes_on(overlap: Overlap, fired: int, skipped: int) -> None:
    firing = with_overlap(due_ticks(a_job(overlap=overlap), now=NOW + 61), {"earlier"})

    assert (len(firing.ticks), firing.skipped) == (fired, skipped)
    assert advanced(firing).due_at == NOW + 120


def test_a_firing_that_is_repeated_is_not_in_its_own_way() -> None:
    job = a_job(overlap=Overlap.SKIP)
    firing = due_ticks(job, now=NOW + 61)

    assert with_overlap(firing, {execution_id(job, NOW + 60)}) == firing


def test_of_several_ticks_at_once_skip_runs_the_first_and_replace_the_last() -> None:
    for overlap, fired in (
        (Overlap.SKIP, minutes(1)),
        (Overlap.REPLACE, minutes(5)),
        (Overlap.QUEUE, minutes(1, 2, 3, 4, 5)),
    ):
        job = a_job(overlap=overlap, misfire=Misfire.RUN_ALL)
        assert with_overlap(due_ticks(job, now=NOW + 5 * MINUTE), set()).ticks == fired


def test_no_more_wait_for_each_other_than_allowed() -> None:
    job = a_job(overlap=Overlap.QUEUE)
    firing = due_ticks(job, now=NOW + 61)

    assert with_overlap(firing, {str(number) for number in range(MOST_QUEUED)}) == firing
    full = with_overlap(firing, {str(number) for number in range(MOST_QUEUED + 1)})
    assert (full.ticks, full.skipped) == ((), 1)


def test_nothing_fires_before_its_start_and_after_its_end() -> None:
    job = a_job(start_at=NOW + 120, end_at=NOW + 180)

    assert upcoming(job, count=10, now=NOW) == [NOW + 120, NOW + 180]
    after = advanced(due_ticks(advanced(due_ticks(job, now=NOW + 120)), now=NOW + 180))
    assert (after.due_at, state(after).next_tick_at, is_active(after)) == (None, None, False)


def test_an_outage_beyond_the_end_makes_up_for_what_was_before_it() -> None:
    firing = due_ticks(a_job(end_at=NOW + 180), now=NOW + 3600)

    assert firing.ticks == minutes(3)
    assert advanced(firing).due_at is None


def test_nothing_fires_after_the_jobs_expiration() -> None:
    assert upcoming(a_job(expiration=NOW + 119), count=10, now=NOW) == [NOW + 60]


def test_ticks_during_a_pause_never_fire() -> None:
    held = paused(a_job(), now=NOW + 30)

    assert (held.due_at, is_active(held)) == (None, True)
    assert paused(held, now=NOW + 40) is held
    assert due_ticks(held, now=NOW + 3600).ticks == ()
    again = resumed(held, now=NOW + 3600)
    assert (again.due_at, state(again).paused_at, state(again).skipped) == (NOW + 3660, None, 0)
    assert resumed(again, now=NOW + 3700) is again


def test_a_tick_that_is_none_any_more_leaves_the_next_one_as_the_zone_has_it_now() -> None:
    job = a_job(cron="@hourly")
    moved = replace(job, schedule=replace(state(job), next_tick_at=NOW + 10 * MINUTE))

    firing = due_ticks(moved, now=NOW + 30 * MINUTE)

    assert firing.ticks == ()
    assert advanced(firing).due_at == NOW + 60 * MINUTE


def test_a_stopped_job_fires_nothing() -> None:
    firing = due_ticks(replace(a_job(), stop_requested_at=NOW), now=NOW + 61)

    assert firing.ticks == ()
    assert advanced(firing).due_at is None


def test_a_job_that_is_looked_at_too_early_stays_as_it_is() -> None:
    job = a_job()

    assert due_ticks(job, now=NOW + 59) == Firing(job=job)
    assert advanced(Firing(job=job)) == job


def test_the_execution_of_a_tick_is_the_same_whoever_makes_it() -> None:
    job = a_job(jitter=30.0)

    made = [execution_of(job, NOW + 60, lane="l", now=NOW + 60 + late) for late in (0.0, 5.0)]

    assert made[0].id == made[1].id != execution_id(job, NOW + 120)
    assert made[0].due_at == made[1].due_at
    assert made[0].id != execution_id(replace(job, generation=1), NOW + 60)
    assert (made[0].tick, made[0].priority, made[0].generation) == (NOW + 60, 3, 0)


def test_jitter_spreads_within_its_bound() -> None:
    job = a_job(jitter=30.0)
    delays = [
        execution_of(job, NOW + 60 * number, lane="l", now=NOW).due_at - NOW - 60 * number for number in range(200)
    ]

    assert all(0 <= each <= 30 for each in delays)
    assert min(delays) < 5
    assert max(delays) > 25
    assert execution_of(a_job(), NOW + 60, lane="l", now=NOW).due_at == NOW + 60
