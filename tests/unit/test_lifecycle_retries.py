"""What a job may say about its retries and its waiting, without I/O."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastlane_core.engine import lifecycle
from fastlane_core.engine.backoff import Backoff
from fastlane_core.engine.lifecycle import Ending, IllegalTransition
from fastlane_core.models import Execution, Job, Reason, RetryPolicy, RunSpec, Status

SPEC = RunSpec(image="busybox", command="true", timeout=10.0)
USUAL = Backoff(first=1.0, factor=2.0, cap=60.0)


def execution(status: Status = Status.ENQUEUED, **changes: object) -> Execution:
    made = Execution(
        id="e", job_id="j", task_id="t", spec=SPEC, lane="fake:all", status=status, created_at=0.0, updated_at=0.0
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def job(**changes: object) -> Job:
    made = Job(id="j", task_id="t", spec=SPEC, created_at=0.0, modified_at=0.0, retries=3)
    return replace(made, **changes)  # type: ignore[arg-type]


def failed(reason: Reason, **changes: object) -> Execution:
    ending = Ending(status=Status.FAILED, reason=reason)
    return lifecycle.ended(execution(Status.RUNNING, **changes), ending, now=50.0)


@pytest.mark.parametrize(
    ("reason", "on", "is_retried"),
    [
        (Reason.EXIT_CODE, None, True),
        (Reason.TIMED_OUT, None, False),
        (Reason.PULL_TIMED_OUT, None, True),
        (Reason.IMAGE_NOT_FOUND, None, False),
        (Reason.TIMED_OUT, (Reason.TIMED_OUT,), True),
        (Reason.EXIT_CODE, (Reason.TIMED_OUT,), False),
        (Reason.EXIT_CODE, (), False),
        (Reason.IMAGE_NOT_FOUND, (Reason.IMAGE_NOT_FOUND, Reason.EXIT_CODE), True),
        # An engine's trouble is never the job's fault.
        (Reason.ENGINE_LOST, (), True),
        (Reason.DRAINED, (Reason.EXIT_CODE,), True),
    ],
)
def test_the_reasons_that_a_job_names_are_tried_again(
    reason: Reason, on: tuple[Reason, ...] | None, is_retried: bool
) -> None:
    after = lifecycle.with_retry(failed(reason), job(retry=RetryPolicy(on=on)), USUAL, now=50.0)
    assert (after.retry_id is not None) is is_retried
    if is_retried:
        used = lifecycle.next_attempt(after, lane="fake:all", now=51.0).retries_used
        assert used == (0 if lifecycle.RETRIED[reason] is lifecycle.Retried.FREE else 1)


def test_naming_a_reason_gives_no_more_retries_than_the_job_has() -> None:
    policy = RetryPolicy(on=(Reason.TIMED_OUT,))
    assert (
        lifecycle.with_retry(failed(Reason.TIMED_OUT), job(retries=0, retry=policy), USUAL, now=50.0).retry_id is None
    )


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        (None, [1.0, 2.0, 4.0]),
        (RetryPolicy(), [1.0, 2.0, 4.0]),
        (RetryPolicy(min_seconds=3.0, factor=10.0), [3.0, 30.0, 60.0]),
        (RetryPolicy(min_seconds=90.0), [90.0, 90.0, 90.0]),
        (RetryPolicy(max_seconds=1.5), [1.0, 1.5, 1.5]),
        (RetryPolicy(max_seconds=0.5), [0.5, 0.5, 0.5]),
        (RetryPolicy(min_seconds=0.0), [0.0, 0.0, 0.0]),
        (RetryPolicy(factor=1.0), [1.0, 1.0, 1.0]),
    ],
)
def test_the_longest_wait_is_the_job_s_where_it_says_and_the_settings_elsewhere(
    policy: RetryPolicy | None, waits: list[float]
) -> None:
    for attempt, wait in enumerate(waits, start=1):
        ended = failed(Reason.EXIT_CODE, attempt=attempt)
        after = lifecycle.with_retry(ended, job(retry=policy), USUAL, now=50.0, chance=0.999_999_999)
        assert after.retry_at == pytest.approx(50.0 + wait)


@pytest.mark.parametrize(
    ("jitter", "shortest"),
    [(0.0, 8.0), (0.25, 6.0), (0.5, 4.0), (1.0, 1.0), (None, 1.0)],
)
def test_jitter_is_the_share_of_the_wait_that_is_drawn_and_never_goes_below_the_minimum(
    jitter: float | None, shortest: float
) -> None:
    policy = RetryPolicy(jitter=jitter)
    after = lifecycle.with_retry(failed(Reason.EXIT_CODE, attempt=4), job(retry=policy), USUAL, now=50.0, chance=0.0)
    assert after.retry_at == 50.0 + shortest


def test_a_replaced_job_has_no_retries_of_what_ran_before() -> None:
    assert lifecycle.with_retry(failed(Reason.EXIT_CODE), job(generation=1), USUAL, now=50.0).retry_id is None
    after = lifecycle.with_retry(failed(Reason.EXIT_CODE, generation=1), job(generation=1), USUAL, now=50.0)
    assert lifecycle.next_attempt(after, lane="fake:all", now=51.0).generation == 1


def test_what_waits_for_a_replaced_or_stopped_job_is_not_started() -> None:
    assert lifecycle.outdated(execution(), job()) is None
    replaced = lifecycle.outdated(execution(), job(generation=1))
    assert replaced is not None
    assert (replaced.status, "newer request" in (replaced.message or "")) == (Status.STOPPED, True)
    stopped = lifecycle.outdated(execution(), job(stop_requested_at=1.0))
    assert stopped is not None
    assert stopped.status is Status.STOPPED


def test_a_replacement_ends_what_nobody_works_on_and_leaves_the_rest() -> None:
    assert lifecycle.superseded(execution(), now=1.0).status is Status.STOPPED
    for begun in (lifecycle.placed(execution(), place="a", now=1.0), execution(Status.RUNNING), execution(Status.DONE)):
        assert lifecycle.superseded(begun, now=2.0) is begun


def test_only_what_waits_for_its_time_is_brought_forward() -> None:
    assert lifecycle.brought_forward(execution(due_at=100.0), now=5.0).due_at == 5.0
    for other in (execution(due_at=4.0), execution(Status.RUNNING, due_at=100.0)):
        assert lifecycle.brought_forward(other, now=5.0) is other


def test_asking_again_makes_the_same_execution_as_the_retry_by_itself() -> None:
    decided = lifecycle.with_retry(failed(Reason.EXIT_CODE), job(), USUAL, now=50.0)
    asked = lifecycle.asked_again(decided, job(spec=replace(SPEC, command="new")), lane="fake:all", now=0.0)
    assert asked.id == decided.retry_id
    assert (asked.attempt, asked.retries_used, asked.retry_of, asked.spec.command) == (2, 1, "e", "new")
    assert asked.created_at > decided.created_at
    # One that nothing would follow by itself is no retry that the job has.
    asked = lifecycle.asked_again(failed(Reason.EXIT_CODE), job(), lane="fake:all", now=0.0)
    assert (asked.attempt, asked.retries_used) == (2, 0)


# Waiting and preparing


def test_waiting_in_the_queue_is_counted_from_when_it_is_due_and_ends_with_its_preparation() -> None:
    waiting = execution(spec=replace(SPEC, queue_timeout=10.0), created_at=100.0)
    assert lifecycle.waited_too_long(waiting, now=110.0) is None
    late = lifecycle.waited_too_long(waiting, now=110.5)
    assert late is not None
    assert (late.status, late.reason) == (Status.EXPIRED, Reason.EXPIRED)
    assert lifecycle.waited_too_long(replace(waiting, due_at=200.0), now=205.0) is None
    placed = lifecycle.placed(waiting, place="a", now=105.0)
    assert lifecycle.waited_too_long(placed, now=500.0) is None
    back = lifecycle.put_back(placed, why="a is down", now=106.0)
    assert lifecycle.waited_too_long(back, now=110.5) is not None
    assert lifecycle.waited_too_long(execution(), now=1e9) is None


def test_preparing_is_counted_from_its_place_and_anew_for_another() -> None:
    pulling = lifecycle.placed(execution(spec=replace(SPEC, pull_timeout=30.0)), place="a", now=100.0)
    assert lifecycle.pull_deadline(pulling) == 130.0
    assert lifecycle.pull_deadline(lifecycle.taken_over(pulling, worker="w", lease_token="t", now=120.0)) == 130.0
    back = lifecycle.put_back(pulling, why="a is down", now=110.0)
    assert lifecycle.pull_deadline(lifecycle.placed(back, place="b", now=120.0)) == 150.0
    assert lifecycle.pull_deadline(lifecycle.placed(execution(), place="a", now=1.0)) is None
    ended = lifecycle.ended(pulling, lifecycle.pull_timed_out(pulling), now=131.0)
    assert (ended.status, ended.reason) == (Status.TIMEDOUT, Reason.PULL_TIMED_OUT)


def test_an_attempt_that_was_not_decided_is_not_made() -> None:
    with pytest.raises(IllegalTransition):
        lifecycle.next_attempt(failed(Reason.EXIT_CODE), lane="fake:all", now=1.0)
