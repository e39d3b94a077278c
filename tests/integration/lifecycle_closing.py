"""What must hold of every accepted job once all has settled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fastlane_core.models import Execution
from fastlane_core.testing.fake_engine import FakeEngine
from tests.integration.lifecycle_ledger import FINAL, TRIED_AGAIN, JobEntry

#: Seconds between the ticks of every schedule in a simulation.
TICK_SECONDS = 60

#: Seconds by which a run may be said to have taken as long as it was allowed.
CLOCKS_DIFFER = 1.0


def check_job(entry: JobEntry, stored: Sequence[Execution], engine: FakeEngine) -> None:
    """Raise AssertionError unless the job has exactly the attempts that it is to have, and each ended as it must."""
    assert {each.id: each for each in stored} == entry.executions, "the storage has something else than it answered"
    for execution in stored:
        _check_ending(execution, engine)
    roots = [each for each in stored if each.retry_of is None]
    if entry.job.schedule is None:
        assert len(roots) == 1, f"{len(roots)} first attempts of {entry.job.id}"
    else:
        _check_ticks(entry, roots)
    for root in roots:
        _check_chain(entry, root)
    attempts = Counter(each.retry_of for each in stored if each.retry_of is not None)
    assert all(count == 1 for count in attempts.values()), f"attempts that were tried again twice: {attempts}"


def _check_ending(execution: Execution, engine: FakeEngine) -> None:
    what = f"{execution.id} is {execution.status} ({execution.reason}, {execution.exit_code})"
    assert execution.status in FINAL, f"{what}: it was lost"
    assert execution.owes_at is None, f"{what}: it owes {execution.retry_id}"
    assert engine.starts[execution.id] <= 1, f"{what}: it ran {engine.starts[execution.id]} times"
    run = engine.runs.get(execution.id)
    outcome = None if run is None else run.outcome
    if execution.started_at is not None and execution.status != "expired":
        assert outcome is not None, f"{what}: there was no run"
    if run is not None:
        assert outcome is not None, f"{what}: its run goes on"
        assert run.finished_at is not None, f"{what}: its run was not cleaned up"
    took = 0.0 if outcome is None else (outcome.finished_at or 0.0) - (outcome.started_at or 0.0)
    match execution.status:
        case "done":
            assert outcome is not None, what
            assert outcome.exit_code == execution.exit_code == 0, what
            assert took < execution.spec.timeout, f"{what} after {took} s"
        case "failed":
            assert outcome is not None, what
            assert execution.reason == "exit_code", what
            assert outcome.exit_code == execution.exit_code != 0, what
        case "timedout":
            assert took >= execution.spec.timeout - CLOCKS_DIFFER, f"{what} after {took} s"
        case "stopped":
            stopped_with_job = execution.stop_requested_at is None and outcome is None
            assert execution.stop_requested_at is not None or stopped_with_job, what
        case "expired":
            assert outcome is None, what
            assert execution.expiration is not None, what
            assert execution.finished_at is not None, what
            assert execution.finished_at > execution.expiration, what
    in_time = took < execution.spec.timeout - CLOCKS_DIFFER
    if outcome is not None and execution.stop_requested_at is None and in_time:
        assert execution.status == ("done" if outcome.exit_code == 0 else "failed"), what


def _check_chain(entry: JobEntry, root: Execution) -> None:
    """Follow the attempts from the first one on."""
    execution, used = root, 0
    while True:
        what = f"{execution.id}, attempt {execution.attempt}, ended as {execution.status} ({execution.reason})"
        assert execution.retries_used <= entry.job.retries, what
        following = next((each for each in entry.executions.values() if each.retry_of == execution.id), None)
        due = execution.reason in TRIED_AGAIN and used < entry.job.retries
        if not entry.ever_stopped and execution.stop_requested_at is None and due:
            assert following is not None, f"{what}, and was not tried again"
        if following is None:
            return
        if not due:
            assert execution.id in entry.asked_again, f"{what}, and was tried again after {used} retries"
        assert following.attempt == execution.attempt + 1, what
        if not entry.ever_stopped:
            used += due
            assert following.retries_used == used, f"{what}; its retry says that {following.retries_used} are used"
        execution = following


def _check_ticks(entry: JobEntry, roots: Sequence[Execution]) -> None:
    schedule = entry.job.schedule
    assert schedule is not None
    assert schedule.end_at is not None
    first = (int(entry.job.created_at) // TICK_SECONDS + 1) * TICK_SECONDS
    expected = {float(at) for at in range(first, int(schedule.end_at) + 1, TICK_SECONDS)}
    fired = Counter(each.tick for each in roots)
    assert all(count == 1 for count in fired.values()), f"ticks that fired twice: {fired}"
    assert set(fired) <= expected, f"ticks that are none: {set(fired) - expected}"
    certain = {at for at in expected if at <= entry.fired_until}
    assert set(fired) >= certain, f"ticks that did not fire: {certain - set(fired)}"
    if not entry.ever_stopped:
        assert set(fired) == expected, f"ticks that did not fire: {expected - set(fired)}"
