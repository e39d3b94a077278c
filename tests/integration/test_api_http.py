"""The HTTP API over real storage and queue: routes, shapes, output, stopping."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from quart import Blueprint
from structlog.testing import capture_logs

from fastlane_core.contracts.queue import LaneStats
from fastlane_core.errors import QueueUnavailable
from fastlane_core.models import LogChunk, Reason, Status, Stream
from fastlane_core.settings import ApiSettings
from tests.integration.api_harness import LANE, Api, running_api, unknown

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
MOMENT = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}"

EXECUTION_KEYS = {
    *("executionId", "createdAt", "startedAt", "finishedAt", "requestIPAddress", "image", "command", "status"),
    *("exitCode", "log", "error", "metadata"),
    *(
        "logTruncated",
        "errorTruncated",
        "outputLimitReached",
        "reason",
        "message",
        "waitingFor",
        "attempt",
        "retryOf",
        "scheduledFor",
    ),
    "nextRetryAt",
    "failure",
}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with running_api(tmp_path) as running:
        yield running


async def test_every_address_is_served_with_and_without_a_slash_at_its_end(api: Api) -> None:
    execution = await api.submit()
    job, at = api.job(execution), api.at(execution)
    gets = ["/tasks/", "/tasks/t/", "/search/?query=t", job, at, "/healthcheck/", "/status/"]
    gets += [base + below for base in (job, at) for below in ("stdout/", "stderr/", "logs/", "stream/")]
    answers = {}
    for path in gets:
        for form in (path, re.sub(r"/(\?|$)", r"\1", path)):
            answers[form] = (await api.http.get(form)).status_code
    for path in ("/tasks/t/", at + "stop/", job + "stop/"):
        for form in (path, path.rstrip("/")):
            answers["POST " + form] = (await api.http.post(form, json={"image": "i", "command": "c"})).status_code
    await api.end(await api.submit("ended"), Status.STOPPED, None)
    assert set(answers.values()) == {200}, answers
    assert (await api.http.get("/")).status_code == 200


async def test_submitting_answers_with_ids_and_addresses_that_work(api: Api) -> None:
    answer = await api.http.post("/tasks/a%20b/", content=b'{"image":"busybox","command":"echo hi"}')
    body = answer.json()
    assert answer.status_code == 200
    assert sorted(body) == [
        *("executionId", "executionUrl", "jobId", "jobUrl", "queueJobId", "taskId", "taskUrl"),
    ]
    assert body["taskId"] == "a b"
    assert re.fullmatch(UUID, body["jobId"])
    assert body["taskUrl"] == f"{api.url}/tasks/a%20b/"
    assert body["jobUrl"] == f"{api.url}/tasks/a%20b/jobs/{body['jobId']}/"
    assert body["executionUrl"] == f"{body['jobUrl']}executions/{body['executionId']}/"
    for url in (body["taskUrl"], body["jobUrl"], body["executionUrl"]):
        assert (await api.http.get(url)).status_code == 200
    await api.context.submission.settled()
    assert await api.queue.contains([body["executionId"]]) == {body["executionId"]}


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", ""])
async def test_body_is_json_whatever_the_content_type(api: Api, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    answer = await api.http.post("/tasks/t", content=b'{"image":"i","command":"c"}', headers=headers)
    assert answer.status_code == 200


async def test_what_was_asked_for_is_stored_as_it_was_asked(api: Api) -> None:
    asked = {
        "image": "registry:5000/image:1.2",
        "command": ["sh", "-c", "echo 'ü'"],
        "envs": {"A": 1, "SECRET": "hunter2"},
        "metadata": {"who": ["me", {"deep": None}]},
        "timeout": 12.5,
        "retries": 3,
        "expiration": 4102444800,
        "docker": {"memory": "1g"},
    }
    submitted = (await api.http.post("/tasks/t/", json=asked)).json()
    job = await api.storage.get_job("t", submitted["jobId"])
    execution = await api.storage.get_execution(submitted["executionId"])
    assert job is not None
    assert execution is not None
    assert execution.spec == job.spec
    assert (job.spec.image, job.spec.command) == ("registry:5000/image:1.2", "sh -c 'echo '\"'\"'ü'\"'\"''")
    assert job.spec.env == {"A": "1", "SECRET": "hunter2"}
    assert job.spec.options == {"docker": {"memory": "1g"}}
    assert (job.spec.timeout, job.retries, job.expiration) == (12.5, 3, 4102444800)
    assert job.metadata == asked["metadata"]
    assert job.request_ip == "127.0.0.1"
    assert execution.lane == LANE

    details = (await api.http.get(submitted["jobUrl"])).json()["job"]
    assert details["metadata"]["custom"] == asked["metadata"]
    assert details["metadata"]["envs"] == {"A": "1", "SECRET": "***"}
    assert details["metadata"]["expiration"] == 4102444800


async def test_address_of_the_client_is_taken_from_a_proxy_if_it_is_one(api: Api) -> None:
    async def recorded(**headers: str) -> str:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        body = (await api.http.post("/tasks/t/", json={"image": "i", "command": "c"}, headers=named)).json()
        details = (await api.http.get(body["executionUrl"])).json()
        return str(details["execution"]["requestIPAddress"])

    assert await recorded(X_Real_Ip="10.1.2.3", X_Forwarded_For="10.9.9.9") == "10.1.2.3"
    assert await recorded(X_Forwarded_For="2001:db8::1, 10.0.0.1") == "2001:db8::1"
    assert await recorded(X_Real_Ip="<script>", X_Forwarded_For="nonsense") == "127.0.0.1"


async def test_repeated_submission_with_a_key_makes_no_second_job(api: Api) -> None:
    async def submit(key: str, command: str = "c") -> tuple[int, dict[str, object]]:
        answer = await api.http.post(
            "/tasks/t/", json={"image": "i", "command": command}, headers={"Idempotency-Key": key}
        )
        return answer.status_code, answer.json()

    first = await submit("k1")
    assert await submit("k1") == first
    assert (await submit("k2"))[1]["jobId"] != first[1]["jobId"]
    status, body = await submit("k1", command="other")
    assert status == 409
    assert "k1" in str(body["error"])
    assert await api.storage.count_jobs() == 2
    assert (await submit("white space"))[1]["field"] == "Idempotency-Key"


async def test_job_has_the_shape_that_clients_know(api: Api) -> None:
    execution = await api.submit()
    answer = await api.http.get(api.job(execution))
    body = answer.json()
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.text == json.dumps(body, sort_keys=True, separators=(",", ":"))
    assert set(body) == {"task", "job"}
    assert body["task"] == {"id": "t", "url": f"{api.url}/tasks/t/"}
    job = body["job"]
    assert set(job) == {
        *("createdAt", "lastModifiedAt", "image", "command", "taskId", "scheduled", "schedule", "executionCount"),
        *("requestIPAddress", "metadata", "executions", "status", "stopRequestedAt", "generation"),
    }
    assert re.fullmatch(MOMENT, job["createdAt"])
    assert (job["scheduled"], job["executionCount"], job["status"]) == (False, 1, "enqueued")
    nothing = {"succeeds": [], "fails": [], "finishes": []}
    assert job["metadata"] == {
        "retries": 0,
        "retry_count": 0,
        "timeout": 60.0,
        "envs": {"A": "1", "DB_PASSWORD": "***"},
        "additional_dns_entries": [],
        "enqueued_id": execution.id,
        "notify": nothing,
        "webhooks": nothing,
    }
    (listed,) = job["executions"]
    assert set(listed) == EXECUTION_KEYS | {"url"}
    assert listed["url"] == f"{api.url}{api.at(execution)}"


async def test_execution_has_the_shape_that_clients_know_in_every_status(api: Api) -> None:
    execution = await api.submit()

    async def details() -> dict[str, object]:
        body = (await api.http.get(api.at(execution))).json()
        assert set(body) == {"task", "job", "execution"}
        assert body["job"] == {"id": execution.job_id, "url": f"{api.url}{api.job(execution)}"}
        assert set(body["execution"]) == EXECUTION_KEYS
        return dict(body["execution"])

    enqueued = await details()
    assert enqueued["status"] == "enqueued"
    assert [enqueued[key] for key in ("startedAt", "finishedAt", "exitCode", "log", "error")] == [None] * 5
    assert enqueued["metadata"] == {"lane": LANE, "place": None}

    await api.run(execution)
    await api.write(execution, (Stream.STDOUT, b"one\n"))
    running = await details()
    assert (running["status"], running["log"], running["error"]) == ("running", "one\n", "")
    assert running["metadata"] == {
        "lane": LANE,
        "place": "engine-1.example:2375",
        "docker_host": "engine-1.example",
        "docker_port": 2375,
        "container_id": "c0ffee",
    }

    await api.write(execution, (Stream.STDERR, b"bad \xff\n"))
    await api.end(execution, Status.FAILED, 3, log_truncated=True)
    ended = await details()
    assert (ended["status"], ended["exitCode"], ended["reason"]) == ("failed", 3, "exit_code")
    assert (ended["log"], ended["error"]) == ("one\n", "bad \\xff\n")
    assert ended["outputLimitReached"] is True
    assert re.fullmatch(MOMENT, str(ended["finishedAt"]))


async def test_what_could_not_start_tells_why_where_clients_look(api: Api) -> None:
    execution = await api.submit()
    await api.end(execution, Status.FAILED, None, reason=Reason.IMAGE_NOT_FOUND, message="There is no such image.")
    shape = (await api.http.get(api.at(execution))).json()["execution"]
    assert (shape["error"], shape["message"]) == ("There is no such image.", "There is no such image.")
    assert shape["reason"] == "image_not_found"
    assert (await api.http.get(api.at(execution, "stderr"))).content == b""


async def test_executions_of_a_job_are_the_newest_twenty_and_counted_in_all(api: Api) -> None:
    first = await api.submit()
    later = [replace(first, id=unknown(), created_at=first.created_at + n, revision=0) for n in range(1, 25)]
    await api.storage.add_executions(later)
    job = (await api.http.get(api.job(first))).json()["job"]
    assert job["executionCount"] == 25
    assert [each["executionId"] for each in job["executions"]] == [each.id for each in reversed(later[4:])]


async def test_output_is_given_byte_for_byte_with_the_exit_code(api: Api) -> None:
    execution = await api.submit()
    out, err = b"a\x00b\xff\r\n\xe2\x82", b"no newline"
    await api.run(execution)
    await api.write(execution, (Stream.STDOUT, out), (Stream.STDERR, err), (Stream.STDOUT, b"\xac"))
    await api.end(execution, Status.FAILED, 137)
    for base in (api.job(execution), api.at(execution)):
        for output, expected in (
            ("stdout", out + b"\xac"),
            ("stderr", err),
            ("logs", out + b"\xac" + b"\n-=-\n" + err),
        ):
            answer = await api.http.get(base + output)
            assert answer.content == expected
            assert answer.headers["Fastlane-Exit-Code"] == "137"
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            head = await api.http.head(base + output)
            assert (head.status_code, head.content, head.headers["Fastlane-Exit-Code"]) == (200, b"", "137")


async def test_output_so_far_is_given_while_it_runs(api: Api) -> None:
    execution = await api.submit()
    answer = await api.http.get(api.at(execution, "logs/"))
    assert (answer.content, answer.headers["Fastlane-Exit-Code"]) == (b"\n-=-\n", "None")
    await api.run(execution)
    await api.write(execution, (Stream.STDOUT, b"so far"))
    answer = await api.http.get(api.at(execution, "stdout/"))
    assert (answer.content, answer.headers["Fastlane-Exit-Code"]) == (b"so far", "None")


async def test_long_output_is_whole_as_text_and_cut_visibly_in_json(api: Api) -> None:
    execution = await api.run(await api.submit())
    line = "ü".encode() * 100_000
    for _ in range(8):
        await api.write(execution, (Stream.STDOUT, line))
    await api.end(execution, Status.DONE, 0)
    assert (await api.http.get(api.at(execution, "stdout/"))).content == line * 8
    shape = (await api.http.get(api.at(execution))).json()["execution"]
    assert shape["log"] == "ü" * (512 * 1024)
    assert (shape["logTruncated"], shape["errorTruncated"]) == (True, False)
    (listed,) = (await api.http.get(api.job(execution))).json()["job"]["executions"]
    assert len(listed["log"]) == 32 * 1024
    assert listed["logTruncated"] is True


@pytest.mark.parametrize(("told", "reads"), [(12, 1), (0, 4), (20, 5)])
async def test_short_output_is_read_at_once_where_the_record_tells_its_size_and_is_whole_in_any_case(
    api: Api, monkeypatch: pytest.MonkeyPatch, told: int, reads: int
) -> None:
    execution = await api.run(await api.submit())
    await api.write(execution, (Stream.STDOUT, b"out \xc3"), (Stream.STDERR, b"err"), (Stream.STDOUT, b"\xbc +\n"))
    await api.end(execution, Status.DONE, 0, stdout_bytes=max(0, told - 3), stderr_bytes=min(told, 3))
    read_log, calls = api.storage.read_log, []

    async def counted(*args: object, **options: object) -> Sequence[LogChunk]:
        calls.append(options)
        return await read_log(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(api.storage, "read_log", counted)
    shape = (await api.http.get(api.at(execution))).json()["execution"]
    assert (shape["log"], shape["error"]) == ("out ü +\n", "err")
    assert len(calls) == reads


async def test_job_and_execution_are_stopped_with_the_answers_that_clients_know(api: Api) -> None:
    first, second = await api.submit(), await api.submit()
    answer = await api.http.post(api.job(first, "stop/"))
    assert answer.json() == {
        "taskId": "t",
        "jobId": first.job_id,
        "jobUrl": f"{api.url}{api.job(first)}",
        "taskUrl": f"{api.url}/tasks/t/",
    }
    answer = await api.http.post(api.at(second, "stop/"))
    assert answer.json() == {
        "task": {"id": "t", "url": f"{api.url}/tasks/t/"},
        "job": {"id": second.job_id, "url": f"{api.url}{api.job(second)}"},
        "execution": {"id": second.id, "url": f"{api.url}{api.at(second)}"},
    }
    for execution in (first, second):
        assert (await api.http.post(api.job(execution, "stop/"))).status_code == 200
        stored = await api.storage.get_execution(execution.id)
        assert stored is not None
        assert stored.status is Status.STOPPED


async def test_tasks_are_paged_in_the_order_they_were_made(api: Api) -> None:
    empty = (await api.http.get("/tasks/")).json()
    assert empty == {
        "items": [],
        "total": 0,
        "page": 1,
        "pages": 0,
        "perPage": 10,
        "hasNext": False,
        "hasPrev": False,
        "nextUrl": None,
        "prevUrl": None,
    }
    for number in range(21):
        await api.submit(f"task-{number:02}")
    await api.submit("task-00")
    url: str | None = "/tasks/"
    items, pages = [], []
    while url is not None:
        body = (await api.http.get(url)).json()
        items += body["items"]
        pages.append((body["page"], body["pages"], body["hasPrev"], body["hasNext"], body["prevUrl"]))
        url = body["nextUrl"]
    assert [item["taskId"] for item in items] == [f"task-{number:02}" for number in range(21)]
    assert pages == [
        (1, 3, False, True, None),
        (2, 3, True, True, f"{api.url}/tasks/?page=1"),
        (3, 3, True, False, f"{api.url}/tasks/?page=2"),
    ]
    assert set(items[0]) == {"taskId", "createdAt", "lastModifiedAt", "url", "jobsCount"}
    assert items[0]["jobsCount"] == 2
    assert items[0]["url"] == f"{api.url}/tasks/task-00/"


async def test_tasks_are_found_by_words_of_their_ids(api: Api) -> None:
    for task in ("nightly report", "nightly-backup", "other"):
        await api.submit(task)
    body = (await api.http.get("/search/", params={"query": "night"})).json()
    assert [item["taskId"] for item in body["items"]] == ["nightly report", "nightly-backup"]
    assert body["total"] == 2
    for nothing in ("zzz", "%", "-_-"):
        body = (await api.http.get("/search/", params={"query": nothing})).json()
        assert (body["items"], body["total"]) == ([], 0)


async def test_jobs_of_a_task_come_newest_first_and_in_parts(api: Api) -> None:
    submitted = [(await api.submit()).job_id for _ in range(203)]
    first = (await api.http.get("/tasks/t/")).json()
    assert first["taskId"] == "t"
    assert set(first["jobs"][0]) == {"id", "createdAt", "url"}
    rest = (await api.http.get(first["nextUrl"])).json()
    assert [job["id"] for job in first["jobs"] + rest["jobs"]] == submitted[::-1]
    assert rest["nextUrl"] is None


@pytest.mark.parametrize(
    ("method", "path", "status", "operation"),
    [
        ("GET", "/tasks/?page=0", 400, "get_tasks"),
        ("GET", "/tasks/?page=x", 400, "get_tasks"),
        ("GET", "/tasks/?page=-1", 400, "get_tasks"),
        ("GET", "/tasks/?page=1_0", 400, "get_tasks"),
        ("GET", "/tasks/?page=2", 404, "get_tasks"),
        ("GET", "/search/", 400, "search_tasks"),
        ("GET", "/search/?query=%20", 400, "search_tasks"),
        ("GET", "/search/?query=%00", 400, "search_tasks"),
        ("GET", "/search/?query=t&page=9", 404, "search_tasks"),
        ("GET", "/tasks/none/", 404, "get_task"),
        ("GET", "/tasks/t/?cursor=zz", 400, "get_task"),
        ("GET", "/tasks/t/jobs/none/", 404, "get_task"),
        ("POST", "/tasks/t/jobs/none/stop/", 404, "stop_job"),
        ("GET", "/tasks/t/jobs/none/stdout/", 404, "retrieve_execution_details"),
        ("GET", "/tasks/t/jobs/{job}/executions/none/", 404, "get_job_execution"),
        ("GET", "/tasks/t/jobs/none/executions/{execution}/", 404, "get_job_execution"),
        ("GET", "/tasks/u/jobs/{job}/executions/{execution}/", 404, "get_job_execution"),
        ("GET", "/tasks/t/jobs/{job}/executions/none/logs/", 404, "retrieve_execution_details"),
        ("GET", "/tasks/u/jobs/{job}/executions/{execution}/logs/", 404, "retrieve_execution_details"),
        ("GET", "/tasks/t/jobs/none/executions/{execution}/follow/", 404, "follow_job_execution"),
        ("POST", "/tasks/t/jobs/{job}/executions/none/stop/", 404, "stop_job_execution"),
        ("POST", "/tasks/u/jobs/{job}/executions/{execution}/stop/", 404, "stop_job_execution"),
        ("GET", "/tasks/t/jobs/{job}/follow/?after=x", 400, "follow_job"),
        ("POST", "/tasks/nowhere/", 400, "enqueue_job"),
        ("GET", "/nothing", 404, None),
        ("GET", "/tasks/t/jobs/{job}/nothing/", 404, None),
        ("PATCH", "/tasks/", 405, None),
        ("PATCH", "/tasks", 405, None),
        ("DELETE", "/tasks/t/jobs/{job}", 405, None),
        ("PUT", "/tasks/t/jobs/{job}/logs", 405, None),
        ("GET", "/tasks/t/jobs/{job}/ws", 400, None),
        ("PATCH", "/nothing", 404, None),
        ("GET", "/tasks/t/jobs/{job}/ws/", 400, None),
    ],
)
async def test_what_is_refused_is_told_as_json(
    api: Api, method: str, path: str, status: int, operation: str | None
) -> None:
    execution = await api.submit()
    url = path.format(job=execution.job_id, execution=execution.id)
    answer = await api.http.request(method, url, content=b'{"image":"i","command":"c"}' if method == "POST" else None)
    body = answer.json()
    assert (answer.status_code, body["operation"]) == (status, operation), body
    assert answer.headers["Content-Type"] == "application/json"
    assert body["error"]
    if status == 405:
        assert "GET" in answer.headers["Allow"]


async def test_a_lane_that_is_out_of_reach_in_the_queue_is_marked_and_the_others_are_told(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stats() -> Mapping[str, LaneStats]:
        return {LANE: LaneStats(reachable=False), "fake:other": LaneStats(waiting=3)}

    execution = await api.submit()
    report = {"worker": "w", "at": time.time(), "lanes": {LANE: {"capacity": 2, "places": {"h:1": 2}, "reason": ""}}}
    await api.storage.put_state("workers", "w", report, revision=None)
    monkeypatch.setattr(api.queue, "stats", stats)

    lanes = (await api.http.get("/status/")).json()["lanes"]
    told = (await api.http.get(f"/tasks/t/jobs/{execution.job_id}/executions/{execution.id}")).json()

    assert {name: lane["reachable"] for name, lane in lanes.items()} == {LANE: False, "fake:other": True}
    assert lanes["fake:other"]["waiting"] == 3
    assert told["execution"]["waitingFor"] == f"the queue, in which the lane {LANE} is out of reach"


async def test_waiting_executions_say_what_for(api: Api) -> None:
    async def waiting_for(execution_id: str, job: str) -> str:
        body = (await api.http.get(f"/tasks/t/jobs/{job}/executions/{execution_id}")).json()
        return str(body["execution"]["waitingFor"])

    execution = await api.submit()
    asked = (execution.id, execution.job_id)
    report = {"worker": "w", "at": time.time(), "lanes": {LANE: {"capacity": 2, "places": {"h:1": 2}, "reason": ""}}}

    assert await waiting_for(*asked) == f"a worker that serves the lane {LANE}: none is running"
    await api.storage.put_state("workers", "w", {**report, "at": time.time() - 61}, revision=None)
    assert await waiting_for(*asked) == f"a worker that serves the lane {LANE}: none is running"

    no_place = {LANE: {"capacity": 2, "places": {}, "reason": "h:1 does not answer"}}
    await api.storage.put_state("workers", "w", {**report, "lanes": no_place}, revision=None)
    assert await waiting_for(*asked) == "h:1 does not answer"

    await api.storage.put_state("workers", "w", report, revision=None)
    assert await waiting_for(*asked) == f"its turn in the lane {LANE}: 0 of 2 slots are taken"

    for _ in range(2):
        await api.submit()
    leases = await api.queue.claim(LANE, worker="w", capacity=2, limit=2, lease_seconds=60)
    assert len(leases) == 2
    last = await api.submit()
    assert await waiting_for(last.id, last.job_id) == f"a free slot in the lane {LANE}: 2 of 2 are taken"

    await api.change(last, waiting_for="its engine, which is out of reach")
    assert await waiting_for(last.id, last.job_id) == "its engine, which is out of reach"
    await api.run(await api.change(last, waiting_for=None, status=Status.PULLING))
    assert await waiting_for(last.id, last.job_id) == "None"


async def test_health_and_status_have_the_shape_that_clients_know(api: Api) -> None:
    for path in ("/", "/healthcheck", "/healthcheck/"):
        body = (await api.http.get(path)).json()
        assert body == {"redis": True, "mongo": True, "queue": True, "storage": True, "errors": []}
    hosts = [
        {"host": "b", "port": 1, "available": False, "blacklisted": True, "circuit": "closed", "error": "blacklisted"},
        {"host": "z", "port": 1, "available": True, "blacklisted": False, "circuit": "closed", "error": None},
    ]
    report = {"worker": "w", "at": time.time(), "lanes": {}, "hosts": hosts, "running": 1}
    await api.storage.put_state("workers", "w", report, revision=None)
    older = {**report, "worker": "v", "at": time.time() - 5, "hosts": [{**hosts[0], "available": True}]}
    await api.storage.put_state("workers", "v", older, revision=None)
    running = await api.run(await api.submit())
    waiting = await api.submit()
    await api.submit(start_at=4102444800.0)
    body = (await api.http.get("/status")).json()
    assert body["hosts"] == [{**host, "running": 0} for host in hosts[::-1]]
    assert body["containers"] == {
        "running": [{"host": "engine-1.example", "port": 2375, "id": "c0ffee", "executionId": running.id}]
    }
    assert waiting.status is Status.ENQUEUED
    assert body["queues"] == {
        "jobs": {"length": 2},
        "monitor": {"length": 0},
        "webhooks": {"length": 0},
        "notify": {"length": 0},
        "scheduled": {
            "length": 1,
            "nextTimeStamp": 4102444800.0,
            "nextHumanReadableDate": "2100-01-01T00:00:00.000000",
        },
    }
    assert body["tasks"] == {"count": 1}
    assert body["jobs"] == {"count": 3, "scheduled": []}
    assert body["fastlane"] == {"version": "1.2.3", "pid": os.getpid(), "executor": "docker"}
    assert body["lanes"][LANE]["capacity"] == 2
    assert {each["worker"] for each in body["workers"]} == {"w", "v"}


async def test_storage_that_is_gone_is_told_and_comes_back_later(api: Api) -> None:
    await api.storage.close()
    answer = await api.http.get("/tasks/")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert answer.json()["operation"] == "get_tasks"
    health = await api.http.get("/healthcheck")
    assert health.status_code == 500
    (error,) = health.json()["errors"]
    assert (error["source"], error["part"]) == ("mongo", "storage")
    assert (health.json()["mongo"], health.json()["redis"]) == (False, True)


async def test_job_is_accepted_while_the_queue_is_gone(api: Api) -> None:
    await api.queue.close()
    with pytest.raises(QueueUnavailable):
        await api.queue.stats()
    answer = await api.http.post("/tasks/t/", json={"image": "i", "command": "c"})
    assert answer.status_code == 200
    assert await api.storage.get_execution(answer.json()["executionId"]) is not None
    assert (await api.http.get(answer.json()["executionUrl"])).status_code == 200


async def test_page_shows_output_under_a_strict_policy(api: Api) -> None:
    execution = await api.submit()
    for base in (api.job(execution), api.at(execution), "/tasks/<script>/jobs/x/"):
        answer = await api.http.get(base + "stream")
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert "innerHTML" not in answer.text
        assert "<script>/jobs" not in answer.text


async def test_server_name_is_used_in_addresses(tmp_path: Path) -> None:
    async with running_api(tmp_path, settings=ApiSettings(server_name="fast.example:81")) as api:
        body = (await api.http.post("/tasks/t/", json={"image": "i", "command": "c"})).json()
        assert body["taskUrl"] == "http://fast.example:81/tasks/t/"
        assert (await api.http.get("/tasks/", headers={"Host": "fast.example"})).status_code == 200
        assert (await api.http.get("/tasks/", headers={"Host": "evil.example"})).status_code == 403


async def test_browsers_may_come_from_allowed_origins_only(tmp_path: Path) -> None:
    async with running_api(tmp_path, settings=ApiSettings(cors_origins=["https://ci.example"])) as api:
        good, evil = {"Origin": "https://ci.example"}, {"Origin": "https://evil.example"}
        ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        preflight = await api.http.options("/tasks/t/", headers=good | ask)
        assert preflight.status_code == 200
        assert preflight.headers["Access-Control-Allow-Origin"] == "https://ci.example"
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
        for path in ("/tasks/", "/nothing"):
            answer = await api.http.get(path, headers=good)
            assert answer.headers["Access-Control-Allow-Origin"] == "https://ci.example"
            assert answer.headers["Vary"] == "Origin"
        for headers in (evil | ask, evil, evil | {"Sec-Fetch-Site": "cross-site"}):
            answer = await api.http.post("/tasks/t/", headers=headers, json={"image": "i", "command": "c"})
            assert answer.status_code == 403
            assert "Access-Control-Allow-Origin" not in answer.headers
        assert await api.storage.count_jobs() == 0


async def test_error_inside_is_told_by_an_id_and_nothing_else(tmp_path: Path) -> None:
    plugin = Blueprint("plugin", __name__)

    @plugin.get("/plugin/")
    async def broken() -> str:
        raise RuntimeError("the password is hunter2")

    async with running_api(tmp_path, blueprints=[plugin]) as api:
        with capture_logs() as logs:
            answer = await api.http.get("/plugin")
        body = answer.json()
        assert (answer.status_code, body["operation"]) == (500, "broken")
        assert "hunter2" not in answer.text
        (line,) = [line for line in logs if line.get("error_id") == body["errorId"]]
        assert line["log_level"] == "error"
        assert (await api.http.get("/tasks")).status_code == 200
