"""Many jobs in one request: all or nothing is checked, and each gets an answer."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.api_harness import LANE, Api

JOB = {"image": "busybox", "command": "echo hi"}


async def bulk(api: Api, jobs: object, key: str | None = None, task: str = "t") -> dict[str, Any]:
    headers = {"Idempotency-Key": key} if key else {}
    answer = await api.http.post(f"/tasks/{task}/bulk", json=jobs, headers=headers)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def counts(api: Api) -> tuple[int, int]:
    """Jobs that are stored, and executions that wait."""
    stats = await api.queue.stats()
    return await api.storage.count_jobs(), sum(each.waiting + each.delayed for each in stats.values())


async def test_each_job_is_stored_queued_and_answered_in_order(api: Api) -> None:
    body = await bulk(api, {"jobs": [{**JOB, "command": f"echo {each}"} for each in range(1_234)]})

    assert (body["taskId"], body["count"], len(body["items"])) == ("t", 1_234, 1_234)
    assert await counts(api) == (1_234, 1_234)
    for index in (0, 499, 500, 1_233):
        item = body["items"][index]
        assert (item["status"], item["repeated"]) == (200, False)
        execution = (await api.http.get(item["executionUrl"])).json()["execution"]
        assert execution["command"] == f"echo {index}"
        assert (await api.http.get(item["jobUrl"])).status_code == 200


async def test_a_bare_list_will_do_and_jobs_may_differ(api: Api) -> None:
    later = {**JOB, "startIn": "1h", "priority": 3, "metadata": {"a": 1}}

    body = await bulk(api, [JOB, later], task="another")

    assert body["count"] == 2
    job = await api.storage.get_job("another", body["items"][1]["jobId"])
    assert job is not None
    assert (job.priority, job.metadata, job.start_at is None) == (3, {"a": 1}, False)
    assert (await api.queue.stats())[LANE].delayed == 1


@pytest.mark.parametrize(
    ("bad", "field", "told"),
    [
        ({"image": "busybox"}, "jobs.1.command", "missing"),
        ({**JOB, "comand": "x"}, "jobs.1.comand", "did you mean"),
        ({**JOB, "command": "'unclosed"}, "jobs.1.command", "split"),
        ({**JOB, "envs": {"A": []}}, "jobs.1.envs.A", "expected"),
        ({**JOB, "idempotencyKey": 7}, "jobs.1.idempotencyKey", "string"),
        ({**JOB, "idempotencyKey": "a b"}, "jobs.1.idempotencyKey", "characters"),
        ({**JOB, "idempotencyKey": "first"}, "jobs.1.idempotencyKey", "the job 0"),
        ("echo", "jobs.1", "a string"),
    ],
)
async def test_one_bad_job_stores_none(api: Api, bad: object, field: str, told: str) -> None:
    answer = await api.http.post("/tasks/t/bulk", json=[{**JOB, "idempotencyKey": "first"}, bad, JOB])

    body = answer.json()
    assert (answer.status_code, body["field"]) == (400, field), body
    assert told in body["error"]
    assert [each["field"] for each in body["problems"]] == [field]
    assert await counts(api) == (0, 0)


async def test_every_problem_is_told_up_to_a_hundred(api: Api) -> None:
    answer = await api.http.post("/tasks/t/bulk", json=[JOB] + [{"image": "i"}] * 300)

    problems = answer.json()["problems"]
    assert [each["field"] for each in problems] == [f"jobs.{index}.command" for index in range(1, 101)]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "jobs"),
        ([], "jobs"),
        ("x", "jobs"),
        ({"jobs": {}}, "jobs"),
        ({"jobs": [JOB], "task": "t"}, "task"),
        ([JOB] * 10_001, "jobs"),
    ],
)
async def test_what_is_no_list_of_jobs_is_refused(api: Api, body: object, field: str) -> None:
    answer = await api.http.post("/tasks/t/bulk", json=body)

    assert (answer.status_code, answer.json()["field"]) == (400, field)
    assert await counts(api) == (0, 0)


async def test_a_repeated_request_with_its_key_gives_the_first_answer(api: Api) -> None:
    jobs = [{**JOB, "command": f"echo {each}"} for each in range(700)]

    first, second = [await bulk(api, jobs, key="once") for _ in range(2)]

    assert [each["executionId"] for each in second["items"]] == [each["executionId"] for each in first["items"]]
    assert all(each["repeated"] for each in second["items"])
    assert await counts(api) == (700, 700)


@pytest.mark.parametrize("other", [[JOB, JOB, JOB], [JOB], [JOB, {**JOB, "command": "echo else"}]])
async def test_a_key_with_another_body_is_refused_and_stores_nothing(api: Api, other: object) -> None:
    await bulk(api, [JOB, JOB], key="once")

    answer = await api.http.post("/tasks/t/bulk", json=other, headers={"Idempotency-Key": "once"})

    assert answer.status_code == 409
    assert await counts(api) == (2, 2)


async def test_a_request_that_was_cut_short_is_completed_by_repeating_it(api: Api) -> None:
    jobs = [{**JOB, "command": f"echo {each}", "idempotencyKey": f"k{each}"} for each in range(6)]
    partly = await bulk(api, jobs[:4])

    whole = await bulk(api, jobs)

    assert [each["repeated"] for each in whole["items"]] == [True] * 4 + [False] * 2
    assert [each["jobId"] for each in whole["items"][:4]] == [each["jobId"] for each in partly["items"]]
    assert await counts(api) == (6, 6)


async def test_a_jobs_own_key_with_another_job_is_told_for_that_job(api: Api) -> None:
    await bulk(api, [{**JOB, "idempotencyKey": "mine"}])

    body = await bulk(api, [JOB, {**JOB, "command": "echo else", "idempotencyKey": "mine"}])

    assert [each["status"] for each in body["items"]] == [200, 409]
    assert "new key" in body["items"][1]["error"]
    assert await counts(api) == (2, 2)


async def test_a_key_of_the_request_beside_those_of_its_jobs_is_refused(api: Api) -> None:
    jobs = [JOB, {**JOB, "idempotencyKey": "own"}]

    answer = await api.http.post("/tasks/t/bulk", json=jobs, headers={"Idempotency-Key": "all"})

    assert (answer.status_code, answer.json()["field"]) == (400, "jobs.1.idempotencyKey")
    assert await counts(api) == (0, 0)


async def test_a_task_that_no_lane_takes_is_refused(api: Api) -> None:
    answer = await api.http.post("/tasks/nowhere/bulk", json=[JOB])

    assert answer.status_code == 400
    assert await counts(api) == (0, 0)
