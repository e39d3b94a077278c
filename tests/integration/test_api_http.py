"""The HTTP API over real storage and queue: routes, shapes, stopping, refusals."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from quart import Blueprint
from structlog.testing import capture_logs

from fastlane_core.models import Reason, Status, Stream
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
