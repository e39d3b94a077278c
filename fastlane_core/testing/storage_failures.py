"""Tests of the list of executions that failed for good."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastlane_core.contracts.storage import FailureFilter, Storage
from fastlane_core.errors import InvalidInput
from fastlane_core.models import Execution, Failure, Reason, Status
from fastlane_core.testing.examples import CREATED_AT, ODD_TEXTS, a_job, an_execution
from fastlane_core.testing.storage_fixtures import StorageFixtures, all_pages, store_job

EVERYTHING = FailureFilter()


class StorageFailureTests(StorageFixtures):
    """Executions with an open `failure`: latest end first, by task, reason, time and text."""

    async def test_open_failures_are_listed_latest_end_first(self, storage: Storage) -> None:
        failed = [await _failed(storage, at=at) for at in (30.0, 10.0, 20.0)]

        assert await _listed(storage, EVERYTHING) == [failed[0].id, failed[2].id, failed[1].id]

    async def test_what_did_not_fail_or_was_looked_at_is_not_listed(self, storage: Storage) -> None:
        job = await store_job(storage, a_job())
        await storage.add_executions([an_execution(job), an_execution(job, status=Status.DONE, finished_at=CREATED_AT)])
        replayed, dismissed, owing = [await _failed(storage, at=at) for at in (1.0, 2.0, 3.0)]

        await storage.put_execution(replace(replayed, failure=Failure.REPLAYED))
        await storage.put_execution(replace(dismissed, failure=Failure.DISMISSED))
        await storage.put_execution(replace(owing, owes_at=CREATED_AT))

        assert await _listed(storage, EVERYTHING) == [owing.id]

    async def test_an_execution_is_listed_from_the_write_that_fails_it(self, storage: Storage) -> None:
        job = await store_job(storage, a_job())
        await storage.add_executions([an_execution(job, "one")])
        execution = await storage.get_execution("one")
        assert execution is not None

        await storage.put_execution(
            replace(execution, status=Status.FAILED, finished_at=CREATED_AT, failure=Failure.OPEN)
        )

        assert await _listed(storage, EVERYTHING) == ["one"]

    async def test_failures_of_a_task(self, storage: Storage) -> None:
        ours = [await _failed(storage, "ours", at=at) for at in (1.0, 2.0)]
        await _failed(storage, "others", at=1.5)

        assert await _listed(storage, FailureFilter(task_id="ours")) == [ours[1].id, ours[0].id]
        assert await _listed(storage, FailureFilter(task_id="our")) == []

    @pytest.mark.parametrize("text", ODD_TEXTS)
    async def test_a_task_and_a_message_may_be_any_text(self, storage: Storage, text: str) -> None:
        odd = await _failed(storage, text, message=f"before {text} behind")
        await _failed(storage, f"{text}.", message="something else")

        assert await _listed(storage, FailureFilter(task_id=text)) == [odd.id]
        assert await _listed(storage, FailureFilter(task_id=text, text=text)) == [odd.id]

    async def test_failures_by_reason_text_and_time(self, storage: Storage) -> None:
        lost = await _failed(storage, at=10.0, reason=Reason.ENGINE_LOST, message="Its engine was out of reach.")
        late = await _failed(storage, at=20.0, reason=Reason.TIMED_OUT, message="Stopped after its time-out.")

        for wanted, expected in (
            (FailureFilter(reasons=frozenset({Reason.TIMED_OUT})), [late.id]),
            (FailureFilter(reasons=frozenset({Reason.TIMED_OUT, Reason.ENGINE_LOST})), [late.id, lost.id]),
            (FailureFilter(text="OUT OF REACH"), [lost.id]),
            (FailureFilter(text="out"), [late.id, lost.id]),
            (FailureFilter(since=CREATED_AT + 20.0), [late.id]),
            (FailureFilter(until=CREATED_AT + 20.0), [lost.id]),
            (FailureFilter(since=CREATED_AT + 10.0, until=CREATED_AT + 20.0, task_id="task"), [lost.id]),
        ):
            assert await _listed(storage, wanted) == expected, wanted

    async def test_pages_meet_each_failure_once(self, storage: Storage) -> None:
        # All at one time, so that only their keys tell them apart.
        ids = {(await _failed(storage, at=5.0)).id for _ in range(7)}

        listed = await all_pages(lambda cursor: storage.list_failures(EVERYTHING, cursor=cursor, limit=3))

        assert len(listed) == 7
        assert {each.id for each in listed} == ids

    async def test_a_search_goes_on_behind_what_it_has_looked_at(self, storage: Storage) -> None:
        job = await store_job(storage, a_job())
        many = [_failure(an_execution(job), at=float(at), message="many") for at in range(1, 1_201)]
        one = _failure(an_execution(job), at=0.5, message="the needle")
        await storage.add_executions([*many, one])

        found = await all_pages(
            lambda cursor: storage.list_failures(FailureFilter(text="needle"), cursor=cursor, limit=10)
        )

        assert [each.id for each in found] == [one.id]

    async def test_a_foreign_cursor_is_refused(self, storage: Storage) -> None:
        with pytest.raises(InvalidInput):
            await storage.list_failures(EVERYTHING, cursor="elsewhere", limit=10)


def _failure(
    execution: Execution, *, at: float, reason: Reason = Reason.EXIT_CODE, message: str | None = None
) -> Execution:
    return replace(
        execution,
        status=Status.FAILED,
        finished_at=CREATED_AT + at,
        reason=reason,
        message=message,
        failure=Failure.OPEN,
    )


async def _failed(
    storage: Storage,
    task_id: str = "task",
    *,
    at: float = 1.0,
    reason: Reason = Reason.EXIT_CODE,
    message: str | None = None,
) -> Execution:
    execution = _failure(an_execution(await store_job(storage, a_job(task_id))), at=at, reason=reason, message=message)
    await storage.add_executions([execution])
    stored = await storage.get_execution(execution.id)
    assert stored is not None
    return stored


async def _listed(storage: Storage, wanted: FailureFilter) -> list[str]:
    return [each.id for each in await all_pages(lambda cursor: storage.list_failures(wanted, cursor=cursor, limit=50))]
