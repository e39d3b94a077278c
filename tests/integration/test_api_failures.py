"""Executions that failed for good, by HTTP: listed, replayed, edited and replayed, dismissed."""

from __future__ import annotations

from typing import Any

import pytest

from fastlane_core.models import Execution, Failure, Reason, RunSpec, Status
from tests.integration.api_harness import Api


async def fail(api: Api, task: str = "t", **fields: object) -> Execution:
    execution = await api.run(await api.submit(task))
    # As if a worker had put it into place: its item is gone.
    await api.queue.cancel(execution.id)
    wanted: dict[str, object] = {"reason": Reason.EXIT_CODE, "failure": Failure.OPEN, "finished_at": 1000.0, **fields}
    return await api.change(execution, status=Status.FAILED, exit_code=3, **wanted)


async def listed(api: Api, query: str = "") -> list[str]:
    answer = await api.http.get(f"/failures/{query}")
    assert answer.status_code == 200, answer.text
    return [each["executionId"] for each in answer.json()["items"]]


async def post(api: Api, what: str, body: object) -> dict[str, Any]:
    answer = await api.http.post(f"/failures/{what}/", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def stored(api: Api, execution_id: str) -> Execution:
    execution = await api.storage.get_execution(execution_id)
    assert execution is not None
    return execution


async def test_failures_are_listed_with_what_an_operator_asks_first(api: Api) -> None:
    failed = await fail(api, "a task", message="It broke.", finished_at=0.0)
    await api.submit()

    (item,) = (await api.http.get("/failures")).json()["items"]

    assert item == {
        "executionId": failed.id,
        "executionUrl": f"{api.url}/tasks/a%20task/jobs/{failed.job_id}/executions/{failed.id}/",
        "jobId": failed.job_id,
        "jobUrl": f"{api.url}/tasks/a%20task/jobs/{failed.job_id}/",
        "taskId": "a task",
        "taskUrl": f"{api.url}/tasks/a%20task/",
        "image": "busybox",
        "command": "echo hi",
        "status": "failed",
        "reason": "exit_code",
        "message": "It broke.",
        "exitCode": 3,
        "attempt": 1,
        "failedAt": "1970-01-01T00:00:00.000000",
    }


async def test_failures_are_found_by_task_reason_time_and_text(api: Api) -> None:
    old = await fail(api, "old", finished_at=100.0, message="No such disk.")
    new = await fail(api, "new", finished_at=200.0, reason=Reason.ENGINE_LOST)

    for query, expected in (
        ("", [new, old]),
        ("?task=old", [old]),
        ("?reason=engine_lost", [new]),
        ("?reason=engine_lost&reason=exit_code", [new, old]),
        ("?since=150", [new]),
        ("?until=1970-01-01T00:02:30Z", [old]),
        ("?text=no%20such", [old]),
        ("?task=old&reason=engine_lost", []),
        ("?limit=1", [new]),
    ):
        assert await listed(api, query) == [each.id for each in expected], query
    first = (await api.http.get("/failures/?limit=1")).json()
    assert await listed(api, f"?cursor={first['cursor']}") == [old.id]


async def test_a_replay_runs_the_job_again_and_takes_it_off_the_list(api: Api) -> None:
    failed = await fail(api)

    body = await post(api, "replay", {"ids": [failed.id]})

    (item,) = body["items"]
    replay = await stored(api, item["replayExecutionId"])
    assert (body["count"], body["refused"], body["cursor"]) == (1, [], None)
    assert (replay.status, replay.retry_of, replay.spec, replay.attempt) == (
        Status.ENQUEUED,
        failed.id,
        failed.spec,
        2,
    )
    assert await api.queue.contains([replay.id]) == {replay.id}
    assert (await stored(api, failed.id)).failure is Failure.REPLAYED
    assert await listed(api) == []
    assert (await api.http.get(item["replayExecutionUrl"])).json()["execution"]["retryOf"] == failed.id


async def test_a_replay_that_is_asked_for_twice_is_made_once(api: Api) -> None:
    failed = await fail(api)

    first, second = [await post(api, "replay", {"ids": [failed.id, failed.id]}) for _ in range(2)]

    assert first == second
    assert await api.storage.count_executions(failed.job_id, task_id="t") == 2


async def test_a_retried_job_is_no_open_failure(api: Api) -> None:
    failed = await fail(api)

    answer = await api.http.post(api.job(failed) + "retry/")

    assert answer.status_code == 200, answer.text
    assert (await stored(api, failed.id)).failure is Failure.REPLAYED


async def test_an_edited_replay_differs_in_what_was_changed_only(api: Api) -> None:
    failed = await fail(api)
    changes = {"command": ["echo", "two words"], "envs": {"A": None, "B": 2}, "timeout": 5}

    body = await post(api, "replay", {"filter": {"task": "t"}, "changes": changes})

    replay = await stored(api, body["items"][0]["replayExecutionId"])
    assert replay.spec == RunSpec(
        image="busybox", command="echo 'two words'", env={"DB_PASSWORD": "hunter2", "B": "2"}, timeout=5.0
    )
    assert (await stored(api, failed.id)).spec == failed.spec


async def test_thousands_are_replayed_by_one_filter(api: Api) -> None:
    failed = [await fail(api, "many") for _ in range(450)]
    other = await fail(api, "other")

    count, cursor = 0, None
    while True:
        body = await post(api, "replay", {"filter": {"task": "many"}, "limit": 10_000, "cursor": cursor})
        count, cursor = count + body["count"], body["cursor"]
        if cursor is None:
            break

    assert count == len(failed)
    assert await listed(api) == [other.id]
    stats = await api.queue.stats()
    assert sum(each.waiting for each in stats.values()) == len(failed)


async def test_dismissed_failures_are_not_listed_but_can_be_replayed_by_their_ids(api: Api) -> None:
    first, second = await fail(api), await fail(api, "kept")

    body = await post(api, "dismiss", {"ids": [first.id]})

    assert (body["count"], await listed(api)) == (1, [second.id])
    assert (await post(api, "dismiss", {"ids": [first.id]}))["count"] == 1
    assert (await post(api, "replay", {"ids": [first.id]}))["count"] == 1
    assert (await stored(api, first.id)).failure is Failure.REPLAYED


async def test_what_cannot_be_replayed_is_told_for_each(api: Api) -> None:
    waiting = await api.submit()
    tried = await fail(api, failure=None, retry_id="another")
    done = await api.end(await api.run(await api.submit()), Status.DONE, 0)
    failed = await fail(api)
    ids = [waiting.id, tried.id, done.id, failed.id, "nowhere"]

    body = await post(api, "replay", {"ids": ids, "changes": {"command": "'unclosed"}})

    told = {each["executionId"]: each["error"] for each in body["refused"]}
    assert (body["count"], set(told)) == (0, set(ids))
    assert "enqueued" in told[waiting.id]
    assert "again by itself" in told[tried.id]
    assert "done" in told[done.id]
    assert "command" in told[failed.id]
    assert "no such execution" in told["nowhere"]
    assert (await stored(api, failed.id)).failure is Failure.OPEN


async def test_a_stopped_jobs_failure_runs_again_when_it_is_replayed(api: Api) -> None:
    failed = await fail(api)
    job = await api.storage.get_job("t", failed.job_id)
    assert job is not None
    assert (await api.http.post(api.job(failed) + "stop/")).status_code == 200

    assert (await post(api, "replay", {"ids": [failed.id]}))["count"] == 1

    job = await api.storage.get_job("t", failed.job_id)
    assert job is not None
    assert job.stop_requested_at is None


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "filter"),
        ({"ids": ["a"], "filter": {}}, "ids"),
        ({"ids": "a"}, "ids"),
        ({"ids": [1]}, "ids.0"),
        ({"filter": {"tasks": "t"}}, "filter.tasks"),
        ({"filter": {"reason": "bad luck"}}, "reason"),
        ({"filter": {"since": "yesterday"}}, "since"),
        ({"filter": {}, "limit": 0}, "limit"),
        ({"filter": {}, "limit": 10_001}, "limit"),
        ({"filter": {}, "cursor": "elsewhere"}, "cursor"),
        ({"filter": {}, "changes": {"retries": 3}}, "changes.retries"),
        ({"all": True}, "all"),
        ([], ""),
    ],
)
async def test_what_cannot_be_meant_is_refused_and_nothing_done(api: Api, body: object, field: str) -> None:
    failed = await fail(api)

    answer = await api.http.post("/failures/replay/", json=body)

    assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
    assert (await stored(api, failed.id)).failure is Failure.OPEN


@pytest.mark.parametrize(
    "query", ["?limit=0", "?limit=x", "?limit=501", "?reason=bad", "?since=x", "?cursor=zz", "?text=" + "x" * 1001]
)
async def test_a_list_that_cannot_be_meant_is_refused(api: Api, query: str) -> None:
    assert (await api.http.get(f"/failures/{query}")).status_code == 400
