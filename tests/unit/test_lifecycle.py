"""The life cycle without I/O."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from fastlane_core.engine import lifecycle
from fastlane_core.engine.backoff import Backoff
from fastlane_core.engine.lifecycle import RETRIED, TRANSITIONS, Ending, IllegalTransition
from fastlane_core.models import Execution, Failure, Job, Reason, RunHandle, RunOutcome, RunSpec, Status

SPEC = RunSpec(image="busybox", command="true", timeout=10.0)
HANDLE = RunHandle(runner="fake", version=1, data={})
BACKOFF = Backoff(first=1.0, factor=2.0, cap=60.0)


def execution(status: Status = Status.ENQUEUED, **changes: object) -> Execution:
    made = Execution(
        id="e", job_id="j", task_id="t", spec=SPEC, lane="fake:all", status=status, created_at=0.0, updated_at=0.0
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def job(**changes: object) -> Job:
    made = Job(id="j", task_id="t", spec=SPEC, created_at=0.0, modified_at=0.0)
    return replace(made, **changes)  # type: ignore[arg-type]


def ending(status: Status, reason: Reason = Reason.EXIT_CODE) -> Ending:
    return Ending(status=status, reason=reason)


def test_every_status_and_reason_is_in_the_tables() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert set(RETRIED) == set(Reason)


def test_a_final_status_is_left_by_no_way_and_every_other_by_some() -> None:
    for status, targets in TRANSITIONS.items():
        assert bool(targets) is not status.is_final


@pytest.mark.parametrize(
    ("before", "after"), list(itertools.product(Status, [each for each in Status if each.is_final]))
)
def test_an_execution_ends_only_as_the_table_says(before: Status, after: Status) -> None:
    if after in TRANSITIONS[before]:
        assert lifecycle.ended(execution(before), ending(after), now=1.0).status is after
    else:
        with pytest.raises(IllegalTransition):
            lifecycle.ended(execution(before), ending(after), now=1.0)


def test_taking_over_raises_the_fence_and_names_the_new_holder() -> None:
    taken = lifecycle.taken_over(execution(fence=3, worker="old"), worker="new", lease_token="x", now=2.0)
    assert (taken.fence, taken.worker, taken.lease_token, taken.status) == (4, "new", "x", Status.ENQUEUED)


def test_an_execution_that_may_run_somewhere_never_waits_for_another_place() -> None:
    begun = lifecycle.start_asked(lifecycle.placed(execution(), place="a", now=1.0), now=2.0)
    with pytest.raises(IllegalTransition, match="may run on a"):
        lifecycle.put_back(begun, why="x", now=3.0)


def test_an_execution_put_back_says_why_and_waits_for_any_place() -> None:
    waiting = lifecycle.put_back(lifecycle.placed(execution(), place="a", now=1.0), why="a is down", now=3.0)
    assert (waiting.status, waiting.place, waiting.waiting_for) == (Status.ENQUEUED, None, "a is down")


@pytest.mark.parametrize(
    ("told", "began"),
    [
        (None, 20.0),
        (15.0, 15.0),
        # By a clock that is late, or early.
        (5.0, 10.0),
        (25.0, 20.0),
    ],
)
def test_a_run_counts_as_begun_when_its_engine_says_within_what_is_possible(told: float | None, began: float) -> None:
    asked = execution(Status.PULLING, start_asked_at=10.0)
    found = lifecycle.started(asked, handle=replace(HANDLE, started_at=told), now=20.0)
    assert (found.status, found.started_at) == (Status.RUNNING, began)


def test_stopping_ends_a_waiting_execution_at_once_and_only_marks_a_running_one() -> None:
    assert lifecycle.stop_requested(execution(), now=5.0).status is Status.STOPPED
    running = lifecycle.stop_requested(execution(Status.RUNNING), now=5.0)
    assert (running.status, running.stop_requested_at) == (Status.RUNNING, 5.0)


def test_stopping_twice_or_after_the_end_changes_nothing() -> None:
    asked = lifecycle.stop_requested(execution(Status.RUNNING), now=5.0)
    assert lifecycle.stop_requested(asked, now=9.0) is asked
    over = execution(Status.DONE)
    assert lifecycle.stop_requested(over, now=9.0) is over


def test_an_expired_or_stopped_execution_is_not_started() -> None:
    late = lifecycle.before_start(execution(expiration=10.0), now=10.5)
    assert late is not None
    assert late.status is Status.EXPIRED
    stopped = lifecycle.before_start(execution(stop_requested_at=1.0), now=0.0)
    assert stopped is not None
    assert stopped.status is Status.STOPPED
    assert lifecycle.before_start(execution(expiration=10.0), now=10.0) is None


OK = RunOutcome(exit_code=0, reason=Reason.SUCCEEDED, started_at=100.0, finished_at=101.0)


@pytest.mark.parametrize(
    ("outcome", "changes", "stopped", "timed_out", "status", "reason"),
    [
        (OK, {}, False, False, Status.DONE, Reason.SUCCEEDED),
        (replace(OK, exit_code=3, reason=Reason.EXIT_CODE), {}, False, False, Status.FAILED, Reason.EXIT_CODE),
        (replace(OK, exit_code=137, reason=Reason.SIGNAL), {}, True, False, Status.STOPPED, Reason.STOPPED),
        (replace(OK, exit_code=137, reason=Reason.SIGNAL), {}, False, True, Status.TIMEDOUT, Reason.TIMED_OUT),
        # Adopted after the first worker had stopped it, and after it had timed it out.
        (replace(OK, exit_code=143), {"stop_requested_at": 100.5}, False, False, Status.STOPPED, Reason.STOPPED),
        (replace(OK, exit_code=143, finished_at=110.5), {}, False, False, Status.TIMEDOUT, Reason.TIMED_OUT),
        # It had ended by itself before it was asked to stop.
        (OK, {"stop_requested_at": 101.5}, False, False, Status.DONE, Reason.SUCCEEDED),
        # It had ended by itself long before a worker that was held up timed it out; heeding that it ended with 0.
        (OK, {}, False, True, Status.DONE, Reason.SUCCEEDED),
        (replace(OK, finished_at=109.5), {}, False, True, Status.TIMEDOUT, Reason.TIMED_OUT),
    ],
)
def test_an_outcome_is_judged_by_what_happened(
    outcome: RunOutcome, changes: dict[str, object], stopped: bool, timed_out: bool, status: Status, reason: Reason
) -> None:
    running = execution(Status.RUNNING, handle=HANDLE, **changes)
    judged = lifecycle.judged(running, outcome, timeout=10.0, stopped=stopped, timed_out=timed_out)
    assert (judged.status, judged.reason, judged.exit_code) == (status, reason, outcome.exit_code)


def failed(reason: Reason = Reason.EXIT_CODE, **changes: object) -> Execution:
    return lifecycle.ended(execution(Status.RUNNING, **changes), ending(Status.FAILED, reason), now=50.0)


def test_a_failure_is_tried_again_as_often_as_the_job_says() -> None:
    first = lifecycle.with_retry(failed(), job(retries=1), BACKOFF, now=50.0)
    assert first.retry_id is not None
    second = lifecycle.next_attempt(first, lane="fake:all", now=51.0)
    assert (second.id, second.attempt, second.retries_used, second.retry_of) == (first.retry_id, 2, 1, "e")
    assert second.due_at == first.retry_at
    last = lifecycle.with_retry(failed(retries_used=1, attempt=2), job(retries=1), BACKOFF, now=60.0)
    assert (last.retry_id, last.owes_at) == (None, None)


def test_engine_trouble_is_tried_again_without_using_up_retries() -> None:
    lost = lifecycle.with_retry(failed(Reason.ENGINE_LOST), job(retries=0), BACKOFF, now=50.0)
    assert lifecycle.next_attempt(lost, lane="fake:all", now=51.0).retries_used == 0


def test_a_job_that_loses_engine_after_engine_is_given_up_in_the_end() -> None:
    last = failed(Reason.ENGINE_LOST)
    for number in range(1, 1 + lifecycle.MOST_ENGINES_LOST):
        lost = lifecycle.with_retry(last, job(retries=0), BACKOFF, now=50.0)
        again = lifecycle.next_attempt(lost, lane="fake:all", now=51.0)
        assert (again.attempt, again.retries_used, again.engines_lost) == (1 + number, 0, number)
        last = failed(Reason.ENGINE_LOST, attempt=again.attempt, engines_lost=again.engines_lost)
    final = lifecycle.with_retry(last, job(retries=3), BACKOFF, now=60.0)
    assert (final.retry_id, final.owes_at, final.failure) == (None, None, Failure.OPEN)
    assert "11 attempts in a row" in (final.message or "")


@pytest.mark.parametrize("reason", [Reason.EXIT_CODE, Reason.DRAINED])
def test_only_engines_lost_in_a_row_count(reason: Reason) -> None:
    ran = lifecycle.with_retry(failed(reason, engines_lost=9), job(retries=1), BACKOFF, now=50.0)
    assert lifecycle.next_attempt(ran, lane="fake:all", now=51.0).engines_lost == 0
    # Asked for by somebody: that begins anew.
    given_up = failed(Reason.ENGINE_LOST, engines_lost=10)
    assert lifecycle.asked_again(given_up, job(), lane="fake:all", now=51.0).engines_lost == 0


def test_a_stopped_job_and_a_missing_image_are_not_tried_again() -> None:
    assert lifecycle.with_retry(failed(), job(retries=5, stop_requested_at=1.0), BACKOFF, now=50.0).retry_id is None
    assert lifecycle.with_retry(failed(Reason.IMAGE_NOT_FOUND), job(retries=5), BACKOFF, now=50.0).retry_id is None


def test_the_next_attempt_has_the_same_id_whoever_makes_it() -> None:
    one = lifecycle.with_retry(failed(), job(retries=1), BACKOFF, now=50.0, chance=0.1)
    two = lifecycle.with_retry(failed(), job(retries=1), BACKOFF, now=99.0, chance=0.9)
    assert one.retry_id == two.retry_id


def test_back_off_grows_to_its_cap_and_never_beyond() -> None:
    assert [BACKOFF.ceiling(failures) for failures in (1, 2, 3, 7, 5000)] == [1.0, 2.0, 4.0, 60.0, 60.0]
    assert BACKOFF.delay(3, chance=0.5) == 2.0
    assert BACKOFF.delay(3, floor=1.0, chance=0.0) == 1.0
