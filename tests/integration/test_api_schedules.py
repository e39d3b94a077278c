"""Schedules over HTTP: submitting, showing, previewing, pausing and stopping them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from fastlane_core.engine.schedules import execution_id, execution_of
from tests.integration.api_harness import LANE, Api, unknown

CRON = {"image": "ubuntu", "command": "make report", "cron": "30 2 * * *", "timezone": "Europe/Berlin"}


async def submit(api: Api, **fields: object) -> dict[str, Any]:
    answer = await api.http.post("/tasks/reports/", json={**CRON, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def shown(api: Api, answer: Mapping[str, Any], below: str = "") -> dict[str, Any]:
    found = await api.http.get(answer["jobUrl"] + below)
    assert found.status_code == 200, found.text
    return dict(found.json())


async def test_a_cron_job_is_answered_as_clients_know_it_and_nothing_runs_yet(api: Api) -> None:
    answer = await submit(api)

    assert set(answer) == {
        *("taskId", "jobId", "executionId", "executionUrl", "queueJobId", "jobUrl", "taskUrl"),
    }
    assert (answer["executionId"], answer["executionUrl"]) == (None, None)
    assert re.fullmatch(r"[0-9a-f-]{36}", answer["queueJobId"])
    job = (await shown(api, answer))["job"]
    assert (job["scheduled"], job["executionCount"], job["executions"]) == (True, 0, [])
    assert job["metadata"]["cron"] == "30 2 * * *"
    stored = await api.storage.get_job("reports", answer["jobId"])
    assert stored is not None
    assert stored.due_at is not None
    assert answer["queueJobId"] == job["metadata"]["enqueued_id"] == execution_id(stored, stored.due_at)


async def test_a_schedule_tells_its_next_ticks(api: Api) -> None:
    answer = await submit(api, overlap="skip", misfire="run_all", misfireCap=7, jitter=5)

    body = await shown(api, answer, "schedule?next=3")

    assert body["job"] == {"id": answer["jobId"], "url": answer["jobUrl"]}
    assert [each["local"][10:19] for each in body["next"]] == ["T02:30:00"] * 3
    first = datetime.fromisoformat(body["next"][0]["local"])
    assert (body["next"][0]["timestamp"], body["next"][0]["at"][:16]) == (
        first.timestamp(),
        first.astimezone(UTC).isoformat()[:16],
    )
    schedule = body["schedule"]
    assert schedule["nextScheduledAt"] == body["next"][0]["at"]
    assert {key: schedule[key] for key in ("overlap", "misfire", "misfireCap", "jitter", "timezone", "skipped")} == {
        **{"overlap": "skip", "misfire": "run_all", "misfireCap": 7},
        **{"jitter": 5.0, "timezone": "Europe/Berlin", "skipped": 0},
    }
    assert len((await shown(api, answer, "schedule/"))["next"]) == 10


async def test_a_preview_stores_nothing_and_takes_a_whole_job_or_its_schedule(api: Api) -> None:
    for body in (CRON, {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}):
        answer = await api.http.post("/schedule/preview?next=4", json=body)
        assert answer.status_code == 200, answer.text
        assert [each["local"][10:19] for each in answer.json()["next"]] == ["T02:30:00"] * 4

    later = await api.http.post("/schedule/preview", json={"startIn": "1h"})
    assert len(later.json()["next"]) == 1
    assert later.json()["schedule"] is None
    assert await api.storage.count_jobs() == 0


async def test_a_preview_shows_what_the_clock_change_does(api: Api) -> None:
    year = datetime.now(UTC).year + 1
    answer = await api.http.post(
        "/schedule/preview?next=400",
        json={"cron": "30 2 * * sun", "timezone": "America/New_York", "startAt": f"{year}-03-01T00:00:00Z"},
    )
    (moved,) = [
        each["local"] for each in answer.json()["next"] if "T03:00:00" in each["local"] and str(year) in each["local"]
    ]
    assert moved.endswith("-04:00")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": 5}, "cron"),
        ({"cron": "@daily", "jitter": "5"}, "jitter"),
        ({"cron": "@daily", "misfire": "never"}, "misfire"),
        ({"cron": "@daily", "startIn": "5s"}, "startIn"),
        ({"timezone": "UTC"}, "timezone"),
    ],
    ids=str,
)
async def test_a_preview_names_what_is_wrong(api: Api, body: dict[str, object], field: str) -> None:
    answer = await api.http.post("/schedule/preview", json=body)

    assert (answer.status_code, answer.json()["field"]) == (400, field)


@pytest.mark.parametrize("wanted", ["0", "-1", "1001", "x", "", "٣"])
async def test_a_number_of_ticks_that_is_none_is_refused(api: Api, wanted: str) -> None:
    answer = await submit(api)

    found = await api.http.get(f"{answer['jobUrl']}schedule", params={"next": wanted})

    assert (found.status_code, found.json()["field"]) == (400, "next")


async def test_pausing_and_resuming_are_idempotent(api: Api) -> None:
    answer = await submit(api)
    for _ in range(2):
        body = (await api.http.post(answer["jobUrl"] + "pause/")).json()
        assert body["schedule"]["pausedAt"] is not None
        assert (body["schedule"]["nextScheduledAt"], body["next"]) == (None, [])
    assert (await shown(api, answer))["job"]["scheduled"] is True
    assert (await api.http.get("/status")).json()["jobs"]["scheduled"] == []

    for _ in range(2):
        body = (await api.http.post(answer["jobUrl"] + "resume")).json()
        assert body["schedule"]["pausedAt"] is None
        assert len(body["next"]) == 1


async def test_status_lists_jobs_with_a_schedule_as_clients_know_them(api: Api) -> None:
    later = await submit(api, cron="0 0 1 1 *")
    sooner = await submit(api, cron="* * * * *", timezone="UTC", envs={"DB_PASSWORD": "hunter2"})
    await api.submit()

    body = (await api.http.get("/status/")).json()

    items = body["jobs"]["scheduled"]
    assert [each["url"] for each in items] == [sooner["jobUrl"], later["jobUrl"]]
    item = items[0]
    assert item["task"] == {"id": "reports", "url": sooner["taskUrl"]}
    assert item["stopUrl"] == sooner["jobUrl"] + "stop/"
    assert item["scheduled"] is True
    assert item["metadata"]["envs"] == {"DB_PASSWORD": "***"}
    assert not {"executions", "taskId"} & set(item)
    scheduled = body["queues"]["scheduled"]
    assert scheduled["length"] == 2
    assert scheduled["nextHumanReadableDate"] == item["nextScheduledAt"]
    assert await api.storage.next_due_job() == scheduled["nextTimeStamp"]
    assert (await api.http.post(item["stopUrl"])).status_code == 200
    assert [each["url"] for each in (await api.http.get("/status/")).json()["jobs"]["scheduled"]] == [later["jobUrl"]]


async def test_a_stopped_schedule_has_no_next_tick_and_cannot_be_paused(api: Api) -> None:
    answer = await submit(api)
    for _ in range(2):
        assert (await api.http.post(answer["jobUrl"] + "stop/")).status_code == 200

    body = await shown(api, answer, "schedule")

    assert (body["next"], body["schedule"]["nextScheduledAt"]) == ([], None)
    assert (await shown(api, answer))["job"]["scheduled"] is False
    assert (await api.http.post(answer["jobUrl"] + "pause")).status_code == 409
    assert (await api.http.post(answer["jobUrl"] + "resume")).status_code == 409


async def test_a_stopped_schedule_stays_ended_when_its_job_is_run_again(api: Api) -> None:
    answer = await submit(api)
    job = await api.storage.get_job("reports", answer["jobId"])
    assert job is not None
    assert job.due_at is not None
    ran = execution_of(job, job.due_at, lane=LANE, now=job.due_at)
    await api.storage.add_executions([ran])
    await api.http.post(answer["jobUrl"] + "stop/")

    assert (await api.http.post(answer["jobUrl"] + "retry/?force=true")).status_code == 200

    for step in ("", "pause/", "resume/"):
        if step:
            await api.http.post(answer["jobUrl"] + step)
        assert (await shown(api, answer))["job"]["scheduled"] is False
        assert (await shown(api, answer, "schedule"))["next"] == []
        found = await api.storage.get_job("reports", answer["jobId"])
        assert found is not None
        assert found.due_at is None


async def test_a_preview_ends_after_fifty_years_also_of_what_comes_rarely(api: Api) -> None:
    for cron in ("0 0 * 2 5#5", "0 0 29 2 *"):
        answer = await api.http.post("/schedule/preview?next=1000", json={"cron": cron})
        assert answer.status_code == 200, answer.text
        assert 1 <= len(answer.json()["next"]) <= 15


async def test_what_has_no_schedule_is_told_so(api: Api) -> None:
    execution = await api.submit()

    assert (await api.http.get(api.job(execution, "schedule"))).status_code == 404
    assert (await api.http.post(api.job(execution, "pause"))).status_code == 409
    assert (await api.http.get(f"/tasks/t/jobs/{unknown()}/schedule")).status_code == 404


async def test_putting_a_job_replaces_its_schedule(api: Api) -> None:
    answer = await submit(api)

    put = await api.http.put(answer["jobUrl"], json={**CRON, "cron": "0 5 * * *"})

    assert put.status_code == 200, put.text
    assert put.json()["executionId"] is None
    body = await shown(api, answer, "schedule?next=1")
    assert body["next"][0]["local"][10:19] == "T05:00:00"
    once = await api.http.put(answer["jobUrl"], json={"image": "ubuntu", "command": "true"})
    assert once.json()["executionId"] is not None
    assert (await shown(api, answer))["job"]["scheduled"] is False
    assert await api.storage.next_due_job() is None


async def test_a_schedule_without_a_tick_before_its_end_is_refused(api: Api) -> None:
    answer = await api.http.post("/tasks/t/", json={**CRON, "cron": "0 0 29 2 *", "expiresIn": "1s"})

    assert (answer.status_code, answer.json()["field"]) == (400, "cron")
    assert await api.storage.count_jobs() == 0
