"""Limits over HTTP: set with a job, in bulk, by PUT of a task; shown; and named to those who wait for them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from fastlane_core.contracts.queue import Limit, job_key, task_key
from fastlane_core.engine.presence import WORKERS_SCOPE
from tests.integration.api_harness import Api

JOB = {"image": "ubuntu", "command": "true"}


async def submit(api: Api, task: str = "busy", **fields: object) -> dict[str, Any]:
    answer = await api.http.post(f"/tasks/{task}/", json={**JOB, **fields})
    assert answer.status_code == 200, answer.text
    await api.context.submission.settled()
    return dict(answer.json())


async def concurrency(api: Api, task: str = "busy") -> object:
    answer = await api.http.get(f"/tasks/{task}/")
    assert answer.status_code == 200, answer.text
    return answer.json()["concurrency"]


async def test_a_task_has_no_limit_until_one_is_set(api: Api) -> None:
    await submit(api)

    assert await concurrency(api) is None
    assert await api.queue.limits() == {}


async def test_a_number_with_a_job_limits_its_task_and_the_latest_counts(api: Api) -> None:
    await submit(api, concurrency=3)
    await submit(api)
    assert await concurrency(api) == 3

    await submit(api, concurrency={"task": 2, "job": 1})

    assert await concurrency(api) == 2
    assert await api.queue.limits() == {task_key("busy"): 2}


async def test_a_request_that_is_repeated_or_refused_for_its_key_leaves_the_limit_as_it_is(api: Api) -> None:
    headers = {"Idempotency-Key": "once"}
    job, jobs = {**JOB, "concurrency": 5}, [{**JOB, "concurrency": 5}, JOB]
    for path, body in (("/tasks/busy/", job), ("/tasks/bulk/bulk/", jobs)):
        task = path.split("/")[2]
        assert (await api.http.post(path, json=body, headers=headers)).status_code == 200
        assert await concurrency(api, task) == 5
        await api.http.put(f"/tasks/{task}/", json={"concurrency": 1})

        assert (await api.http.post(path, json=body, headers=headers)).status_code == 200
        assert await concurrency(api, task) == 1
        other = {**JOB, "concurrency": 7} if task == "busy" else [{**JOB, "concurrency": 7}]
        assert (await api.http.post(path, json=other, headers=headers)).status_code == 409
        assert await concurrency(api, task) == 1


async def test_a_limit_of_the_job_alone_leaves_the_task_as_it_is(api: Api) -> None:
    answer = await submit(api, concurrency={"job": 2})

    assert await concurrency(api) is None
    (item,) = await api.queue.peek("docker:main", 10)
    assert item.limits == (Limit(key=job_key("busy", answer["jobId"]), capacity=2),)


async def test_jobs_in_bulk_and_jobs_that_are_put_limit_their_task_too(api: Api) -> None:
    jobs = [{**JOB, "concurrency": 4}, JOB, {**JOB, "concurrency": {"task": 5, "job": 1}}, JOB]
    assert (await api.http.post("/tasks/busy/bulk/", json={"jobs": jobs})).status_code == 200
    assert await concurrency(api) == 5

    put = await api.http.put("/tasks/put/jobs/0e2f4d1c-7a3b-4c5d-8e9f-001122334455/", json={**JOB, "concurrency": 6})

    assert put.status_code == 200
    assert await concurrency(api, "put") == 6


async def test_a_limit_is_put_and_lifted_before_and_after_there_are_jobs(api: Api) -> None:
    made = await api.http.put("/tasks/busy/", json={"concurrency": 2})

    assert made.status_code == 200, made.text
    assert (made.json()["taskId"], made.json()["concurrency"], made.json()["jobsCount"]) == ("busy", 2, 0)
    await submit(api)
    assert await concurrency(api) == 2
    lifted = await api.http.put("/tasks/busy", json={"concurrency": None})
    assert (lifted.json()["concurrency"], lifted.json()["jobsCount"]) == (None, 1)
    assert await concurrency(api) is None
    assert await api.queue.limits() == {}


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2", [], 10**7, {"task": 0}, {"job": "2"}, {"lane": 1}])
async def test_what_is_no_limit_is_refused_and_nothing_is_stored(api: Api, wrong: object) -> None:
    refused = [
        await api.http.post("/tasks/busy/", json={**JOB, "concurrency": wrong}),
        await api.http.put("/tasks/busy/", json={"concurrency": wrong}),
    ]

    for answer in refused:
        assert answer.status_code == 400, answer.text
        assert answer.json()["field"].startswith("concurrency")
        assert "1000000" in answer.json()["error"] or "field" in answer.json()["error"]
    assert await api.storage.get_task("busy") is None


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"concurrency": 1, "other": 2}', '{"limit": 1}', "{"])
async def test_a_body_that_sets_nothing_known_is_refused(api: Api, body: str) -> None:
    answer = await api.http.put("/tasks/busy/", content=body)

    assert answer.status_code == 400, answer.text
    assert await api.storage.get_task("busy") is None


async def test_who_waits_is_told_of_the_limit(api: Api) -> None:
    report = {"lanes": {"docker:main": {"capacity": 5, "places": {"host": 5}, "reason": ""}}, "at": time.time()}
    await api.storage.put_state(WORKERS_SCOPE, "worker", report, revision=None)
    await submit(api, concurrency=1)
    waiting = await submit(api, concurrency={"job": 1})
    await api.queue.claim("docker:main", worker="worker", capacity=5, limit=1, lease_seconds=60.0)

    shown = (await api.http.get(waiting["executionUrl"])).json()["execution"]

    assert shown["waitingFor"] == "task busy is at its limit of 1"
    status = (await api.http.get("/status/")).json()
    assert status["queues"]["jobs"]["length"] == 1
    assert status["lanes"]["docker:main"]["waiting"] + status["lanes"]["docker:main"]["held"] == 1
