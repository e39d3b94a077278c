"""Putting, stopping and retrying jobs over HTTP."""

from __future__ import annotations

import time
import uuid
from typing import get_args

import httpx
import pytest

from fastlane_core.api.retry_payload import RetriedReason
from fastlane_core.engine.lifecycle import RETRIED
from fastlane_core.models import Execution, Reason, Status
from tests.integration.api_harness import Api

JOB = {"image": "busybox", "command": "true"}


async def put(api: Api, job_id: str, *, headers: dict[str, str] | None = None, **fields: object) -> httpx.Response:
    return await api.http.put(f"/tasks/t/jobs/{job_id}/", json={**JOB, **fields}, headers=headers)


async def stored(api: Api, execution_id: object) -> Execution:
    found = await api.storage.get_execution(str(execution_id))
    assert found is not None
    return found


# The payload


def test_every_reason_that_can_be_tried_again_may_be_named() -> None:
    never = {Reason.SUCCEEDED, Reason.STOPPED, Reason.EXPIRED}
    assert set(get_args(RetriedReason)) == {each.value for each in set(RETRIED) - never}


async def test_retries_and_limits_of_time_are_stored_as_they_were_asked_for_and_shown(api: Api) -> None:
    retry = {"minSeconds": 2, "factor": 3.5, "maxSeconds": 60, "jitter": 0, "on": ["timed_out", "exit_code"]}
    asked = {**JOB, "retries": 4, "retry": retry, "queueTimeout": 30, "pullTimeout": 2.5}
    answer = (await api.http.post("/tasks/t/", json=asked)).json()
    job = await api.storage.get_job("t", answer["jobId"])
    assert job is not None
    assert job.retry is not None
    assert (job.retry.min_seconds, job.retry.jitter, job.retry.on) == (2, 0, (Reason.TIMED_OUT, Reason.EXIT_CODE))
    assert (job.spec.queue_timeout, job.spec.pull_timeout) == (30, 2.5)
    assert (await stored(api, answer["executionId"])).spec == job.spec
    metadata = (await api.http.get(answer["jobUrl"])).json()["job"]["metadata"]
    assert {name: metadata[name] for name in ("retry", "queueTimeout", "pullTimeout")} == {
        "retry": retry,
        "queueTimeout": 30,
        "pullTimeout": 2.5,
    }


@pytest.mark.parametrize(
    ("fields", "field", "part"),
    [
        ({"retry": 5}, "retry", "an object with minSeconds"),
        ({"retry": {"minSeconds": -1}}, "retry.minSeconds", "greater than or equal to 0"),
        ({"retry": {"minSecond": 1}}, "retry.minSecond", "did you mean 'minSeconds'"),
        ({"retry": {"factor": 0.5}}, "retry.factor", "greater than or equal to 1"),
        ({"retry": {"jitter": 1.5}}, "retry.jitter", "less than or equal to 1"),
        ({"retry": {"minSeconds": 5, "maxSeconds": 4}}, "retry.maxSeconds", "less than minSeconds"),
        ({"retry": {"maxSeconds": 1e9}}, "retry.maxSeconds", "less than or equal to"),
        ({"retry": {"on": "exit_code"}}, "retry.on", "list"),
        ({"retry": {"on": ["exit_code", "stopped"]}}, "retry.on.1", "'exit_code'"),
        ({"queueTimeout": 0}, "queueTimeout", "greater than 0"),
        ({"pullTimeout": "5m"}, "pullTimeout", "a number of seconds"),
    ],
)
async def test_what_cannot_be_done_is_refused_with_the_field(
    api: Api, fields: dict[str, object], field: str, part: str
) -> None:
    for answer in (await api.http.post("/tasks/t/", json=JOB | fields), await put(api, str(uuid.uuid4()), **fields)):
        assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
        assert part in answer.json()["error"]
    assert await api.storage.count_jobs() == 0


async def test_fields_of_retry_that_are_null_are_as_the_operator_has_them(api: Api) -> None:
    answer = await api.http.post("/tasks/t/", json={**JOB, "retry": {"minSeconds": None, "on": None}})
    assert answer.status_code == 200


# PUT


async def test_a_put_answers_as_a_submission_does_and_makes_a_job_of_that_id(api: Api) -> None:
    job_id = str(uuid.uuid4())
    answer = await put(api, job_id, command="first")
    body = answer.json()
    assert answer.status_code == 200
    keys = ["executionId", "executionUrl", "jobId", "jobUrl", "queueJobId", "taskId", "taskUrl"]
    assert sorted(body) == keys
    assert body["jobId"] == job_id
    assert answer.headers["ETag"] == '"0"'
    assert (await api.http.get(answer.json()["jobUrl"])).headers["ETag"] == '"0"'
    # Undashed, in upper case and without a slash, it is the same job.
    answer = await api.http.put(f"/tasks/t/jobs/{uuid.UUID(job_id).hex.upper()}", json={**JOB, "command": "second"})
    assert (answer.json()["jobId"], answer.headers["ETag"]) == (job_id, '"1"')
    job = (await api.http.get(body["jobUrl"])).json()["job"]
    assert (job["command"], job["executionCount"], job["generation"]) == ("second", 2, 1)
    assert [each["status"] for each in job["executions"]] == ["enqueued", "stopped"]
    assert await api.storage.count_jobs() == 1


async def test_an_id_that_is_no_uuid_is_refused_and_nothing_stored(api: Api) -> None:
    for job_id in ("x", "1", "{0e2f4d1c-7a3b-4c5d-8e9f-001122334455}", "0e2f4d1c-7a3b-4c5d-8e9f-00112233445"):
        answer = await put(api, job_id)
        assert (answer.status_code, answer.json()["field"]) == (400, "jobId")
    assert await api.storage.count_tasks() == 0


async def test_a_uuid_names_the_same_job_however_it_is_written(api: Api) -> None:
    job_id = str(uuid.uuid4())
    answer = (await put(api, job_id.upper())).json()
    assert answer["jobId"] == job_id
    for written in (job_id, job_id.upper(), job_id.replace("-", "")):
        job = f"/tasks/t/jobs/{written}/"
        found = await api.http.get(job)
        assert (found.status_code, found.json()["job"]["executions"][0]["executionId"]) == (200, answer["executionId"])
        execution = f"{job}executions/{answer['executionId'].replace('-', '').upper()}/"
        assert (await api.http.get(execution)).json()["execution"]["executionId"] == answer["executionId"]
        assert (await api.http.post(f"{job}stop/")).json()["jobId"] == job_id


async def test_a_put_that_is_refused_leaves_the_job_as_it_was(api: Api) -> None:
    job_id = str(uuid.uuid4())
    first = (await put(api, job_id, command="first")).json()
    assert (await put(api, job_id, command="second", timeout=-1)).status_code == 400
    assert (await api.http.get(first["jobUrl"])).json()["job"]["command"] == "first"
    assert (await stored(api, first["executionId"])).status is Status.ENQUEUED


async def test_the_same_uuid_under_another_task_is_another_job(api: Api) -> None:
    job_id = str(uuid.uuid4())
    await put(api, job_id)
    await api.http.put(f"/tasks/u/jobs/{job_id}/", json=JOB)
    assert await api.storage.count_jobs() == 2


async def test_preconditions_of_a_put_are_kept(api: Api) -> None:
    job_id = str(uuid.uuid4())
    assert (await put(api, job_id, headers={"If-Match": '"0"'})).status_code == 412
    assert (await put(api, job_id, headers={"If-None-Match": "*"})).status_code == 200
    answer = await put(api, job_id, headers={"If-None-Match": "*"})
    assert (answer.status_code, answer.json()["operation"]) == (412, "put_job")
    etag = (await put(api, job_id, headers={"If-Match": '"0"'})).headers["ETag"]
    assert (await put(api, job_id, headers={"If-Match": '"0"'})).status_code == 412
    assert (await put(api, job_id, headers={"If-Match": etag})).headers["ETag"] == '"2"'
    assert (await put(api, job_id, headers={"If-Match": "*"})).json()["field"] == "If-Match"
    assert (await put(api, job_id, headers={"If-None-Match": '"0"'})).json()["field"] == "If-None-Match"


async def test_a_put_repeated_with_its_key_is_answered_as_the_first_time(api: Api) -> None:
    job_id, key = str(uuid.uuid4()), {"Idempotency-Key": "k"}
    first = await put(api, job_id, headers=key)
    again = await put(api, job_id, headers=key)
    assert (again.json(), again.headers["ETag"]) == (first.json(), first.headers["ETag"])
    assert (await put(api, job_id, headers=key, command="other")).status_code == 409


async def test_a_submission_s_key_outlives_a_put(api: Api) -> None:
    key = {"Idempotency-Key": "k"}
    first = await api.http.post("/tasks/t/", json=JOB, headers=key)
    await put(api, first.json()["jobId"], command="other")
    assert (await api.http.post("/tasks/t/", json=JOB, headers=key)).json() == first.json()


# Retrying


async def test_a_job_is_run_again_and_the_answer_says_by_which_execution(api: Api) -> None:
    first = await api.end(await api.run(await api.submit()), Status.FAILED, 1, retry_at=1e9)
    shown = (await api.http.get(api.at(first))).json()["execution"]
    assert shown["nextRetryAt"] == "2001-09-09T01:46:40.000000"
    answer = await api.http.post(api.job(first, "retry"))
    body = answer.json()
    assert answer.status_code == 200
    assert {name: body[name] for name in ("taskId", "jobId", "jobUrl", "taskUrl")} == {
        "taskId": "t",
        "jobId": first.job_id,
        "jobUrl": f"{api.url}{api.job(first)}",
        "taskUrl": f"{api.url}/tasks/t/",
    }
    shown = (await api.http.get(body["executionUrl"])).json()["execution"]
    assert (shown["retryOf"], shown["attempt"], shown["status"]) == (first.id, 2, "enqueued")
    assert body["executionId"] in await api.queue.contains([body["executionId"]])


async def test_a_job_that_runs_is_run_again_only_by_force(api: Api) -> None:
    first = await api.run(await api.submit())
    answer = await api.http.post(api.job(first, "retry/"))
    assert (answer.status_code, answer.json()["operation"]) == (409, "retry_job")
    assert "?force=true" in answer.json()["error"]
    assert (await api.http.post(api.job(first, "retry/?force=maybe"))).json()["field"] == "force"
    assert (await api.http.post(api.job(first, "retry/?force=true"))).status_code == 200
    assert (await stored(api, first.id)).stop_requested_at is not None


async def test_a_job_that_is_still_scheduled_or_unknown_is_not_run_again(api: Api) -> None:
    first = await api.submit(start_at=time.time() + 1000)
    answer = await api.http.post(api.job(first, "retry/"))
    assert (answer.status_code, answer.json()["operation"]) == (400, "retry_job")
    answer = await api.http.post("/tasks/t/jobs/none/retry/")
    assert (answer.status_code, answer.json()["operation"]) == (404, "retry_job")


async def test_jobs_of_a_task_are_run_again_by_how_they_ended(api: Api) -> None:
    ended = {status: await api.end(await api.submit("many"), status, None) for status in Status if status.is_final}
    answer = (await api.http.post("/tasks/many/retry/")).json()
    usual = [Status.FAILED, Status.TIMEDOUT, Status.EXPIRED]
    assert {each["jobId"] for each in answer["retried"]} == {ended[each].job_id for each in usual}
    assert (answer["refused"], answer["lookedAt"], answer["cursor"]) == ([], 5, None)
    answer = (await api.http.post("/tasks/many/retry", json={"status": "stopped", "until": time.time() + 60})).json()
    assert [each["jobId"] for each in answer["retried"]] == [ended[Status.STOPPED].job_id]
    nothing = [
        {"status": ["done"], "reason": "timed_out"},
        {"status": "done", "since": time.time() + 60},
        {"status": "done", "until": "2020-01-01T00:00:00Z"},
    ]
    for selection in nothing:
        assert (await api.http.post("/tasks/many/retry/", json=selection)).json()["retried"] == []


async def test_a_selection_in_the_address_is_refused_and_runs_nothing_again(api: Api) -> None:
    await put(api, str(uuid.uuid4()))

    answer = await api.http.post("/tasks/t/retry?status=done")

    assert (answer.status_code, answer.json()["field"]) == (400, "status")


async def test_many_are_run_again_some_at_a_time(api: Api) -> None:
    for _ in range(7):
        await api.end(await api.submit("many"), Status.FAILED, 1)
    seen: list[str] = []
    cursor: str | None = None
    while True:
        answer = (await api.http.post("/tasks/many/retry/", json={"limit": 3, "cursor": cursor})).json()
        seen += [each["jobId"] for each in answer["retried"]]
        cursor = answer["cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 7


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"status": "running"}, "status"),
        ({"status": ["failed", 5]}, "status"),
        ({"reason": "bad luck"}, "reason"),
        ({"since": "yesterday"}, "since"),
        ({"limit": 0}, "limit"),
        ({"limit": 100_000}, "limit"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"stauts": "failed"}, "stauts"),
    ],
)
async def test_a_selection_that_says_nothing_usable_is_refused(api: Api, body: dict[str, object], field: str) -> None:
    await api.end(await api.submit("many"), Status.FAILED, 1)
    answer = await api.http.post("/tasks/many/retry/", json=body)
    assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
    assert (await api.http.post("/tasks/none/retry/")).status_code == 404
