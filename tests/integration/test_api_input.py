"""Odd input: refused with a sentence, nothing stored, and the server goes on."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fastlane_core.settings import ApiSettings
from tests.integration.api_harness import DEADLINE, Api, running_api

JOB = b'{"image":"busybox","command":"true"}'


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with running_api(tmp_path) as running:
        yield running
        assert await running.storage.count_jobs() == 0
        assert await running.storage.count_tasks() == 0
        assert (await running.http.post("/tasks/t/", content=JOB)).status_code == 200


async def raw(api: Api, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """One request, byte for byte; status, headers and body of the answer."""
    async with asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        try:
            writer.write(request)
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
            await writer.wait_closed()
    status, *lines = head.decode("latin1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, body


async def curl(*arguments: str) -> tuple[int, str]:
    """What curl prints as body and status."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sS", "--noproxy", "*", "--max-time", "20", "--path-as-is", "-w", "\n%{http_code}", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
    assert process.returncode == 0, err
    body, _, status = out.decode().rpartition("\n")
    return int(status), body


def send_all_then_read(port: int, body: bytes) -> tuple[int, bytes]:
    """As simple clients do: they see no answer before they have sent everything."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request("POST", "/tasks/t/", body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def request(target: bytes, body: bytes = JOB, *headers: bytes) -> bytes:
    head = [b"POST " + target + b" HTTP/1.1", b"Host: localhost", b"Connection: close", *headers]
    if not any(header.startswith(b"Transfer-Encoding") for header in headers):
        head.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("body", "field", "part"),
    [
        (b"", "", "empty"),
        (b"image=busybox&command=true", "", "not JSON"),
        (b"[]", "", "a list"),
        (b"5", "", "a number"),
        (b"null", "", "null"),
        (b"\xff\xfe\x00", "", "UTF-8"),
        (b"[" * 200_000, "", "nested"),
        (b'{"command":"true"}', "image", "missing"),
        (b'{"image":"i","command":"c","evns":{}}', "evns", "did you mean 'envs'"),
        (b'{"image":5,"command":"c"}', "image", "got a number"),
        (b'{"image":"i","command":"a\\u0000b"}', "command", "NUL"),
        (b'{"image":"i","command":"\\ud800"}', "command", "surrogate"),
        (b'{"image":"i","command":"c","metadata":{"\\u0000":1}}', "metadata", "NUL"),
        (b'{"image":"i","command":"echo \'"}', "command", "quotation"),
        (b'{"image":"i","command":"c","envs":[1]}', "envs", "got a list"),
        (b'{"image":"i","command":"c","cron":"* * * * * *"}', "cron", "five fields"),
        (b'{"image":"i","command":"c","cron":"@daily","timezone":"Nowhere"}', "timezone", "no time zone"),
        (b'{"image":"i","command":"c","cron":"@daily","overlap":"maybe"}', "overlap", "allow, skip, queue or replace"),
        (b'{"image":"i","command":"c","cron":"@daily","misfireCap":0}', "misfireCap", "from 1 to 1000, got 0"),
        (b'{"image":"i","command":"c","docker":{"memry":"1g"}}', "docker.memry", "did you mean 'memory'"),
        (b'{"image":"i","command":"c","k8s":{}}', "k8s", "no such field"),
    ],
)
async def test_bad_bodies_are_refused_with_the_field(api: Api, body: bytes, field: str, part: str) -> None:
    status, headers, answer = await raw(api, request(b"/tasks/t/", body))
    told = json.loads(answer)
    assert (status, headers["content-type"]) == (400, "application/json")
    assert (told["field"], told["operation"]) == (field, "enqueue_job")
    assert part in told["error"]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"/tasks/" + b"x" * 10_000 + b"/", 400),
        (b"/tasks/" + b"%F0%9F%9A%80" * 10_000 + b"/", 400),
        (b"/tasks/../", 400),
        (b"/tasks/%2e%2e/", 400),
        (b"/tasks/./", 400),
        (b"/tasks/%00/", 400),
        (b"/tasks/a%0Ab/", 400),
        (b"/tasks/%20/", 400),
        (b"/tasks/%FF/", 400),
        (b"/tasks/a%C3", 400),
        (b"/tasks/%ED%A0%80/", 400),
        (b"/tasks/../../etc/passwd", 404),
        (b"/tasks/a%2Fb/", 404),
        (b"//tasks//t//", 404),
        (b"/tasks/t/jobs/../../", 404),
        (b"/nothing", 404),
    ],
)
async def test_bad_paths_are_refused_as_json(api: Api, target: bytes, status: int) -> None:
    got, headers, answer = await raw(api, request(target))
    assert (got, headers["content-type"]) == (status, "application/json"), answer
    told = json.loads(answer)
    assert told["error"]
    assert len(answer) < 1000
    if status == 400:
        assert told["field"] == "taskId"


async def test_names_that_nothing_can_have_are_not_found(api: Api) -> None:
    for path in ("/tasks/%00/", "/tasks/" + "x" * 9_000, "/tasks/t/jobs/%00/", "/tasks/t/jobs/j/executions/%0a/logs"):
        answer = await api.http.get(path)
        assert answer.status_code == 404
        assert len(answer.content) < 1000


async def test_the_sign_that_stands_for_bytes_that_are_no_text_is_text_itself(tmp_path: Path) -> None:
    async with running_api(tmp_path) as api:
        assert (await api.http.post("/tasks/%EF%BF%BD/", content=JOB)).json()["taskId"] == "\ufffd"
        answer = await api.http.get("/tasks/%EF%BF%BD/jobs/%FE/")
        assert (answer.status_code, answer.json()["field"]) == (400, "jobId")


async def test_names_of_the_longest_length_work(tmp_path: Path) -> None:
    async with running_api(tmp_path) as api:
        task = "🚀" * 255
        answer = await api.http.post("/tasks/" + "%F0%9F%9A%80" * 255, content=JOB)
        assert answer.json()["taskId"] == task
        assert (await api.http.get(answer.json()["executionUrl"])).status_code == 200


@pytest.mark.parametrize("expect", ["Expect: 100-continue", "Expect:"])
@pytest.mark.parametrize("how", ["Transfer-Encoding: chunked", "X-Nothing: 1"])
async def test_body_of_20_megabytes_is_refused_to_curl(api: Api, tmp_path: Path, expect: str, how: str) -> None:
    body = tmp_path / "body"
    body.write_bytes(b'{"image":"i","command":"' + b"x" * 20_000_000 + b'"}')
    status, answer = await curl("--data-binary", f"@{body}", "-H", expect, "-H", how, f"{api.url}/tasks/t/")
    assert status == 413
    assert "larger than the 16777216 bytes allowed" in json.loads(answer)["error"]


async def test_body_that_is_too_large_is_read_before_it_is_refused(tmp_path: Path) -> None:
    async with running_api(tmp_path, settings=ApiSettings(max_body_bytes=1024)) as api:
        for size in (1025, 20_000_000):
            status, answer = await asyncio.to_thread(send_all_then_read, api.port, b"x" * size)
            assert (status, json.loads(answer)["operation"]) == (413, "enqueue_job")
        just = b'{"image":"i","command":"%s"}'
        body = just % (b"x" * (1024 - len(just) + 2))
        assert len(body) == 1024
        assert (await api.http.post("/tasks/t/", content=body)).status_code == 200


async def test_body_sent_with_a_get_does_no_harm(api: Api) -> None:
    answer = await api.http.request("GET", "/tasks/", content=b"x" * 1_000_000)
    assert answer.status_code == 200


async def test_curl_without_a_content_type_of_its_own_submits(tmp_path: Path) -> None:
    async with running_api(tmp_path) as api:
        status, body = await curl("-d", JOB.decode(), f"{api.url}/tasks/my-task")
        assert status == 200
        assert json.loads(body)["taskId"] == "my-task"
        status, body = await curl("-XPOST", f"{api.url}/tasks/my-task/jobs/{json.loads(body)['jobId']}/stop")
        assert status == 200


async def test_client_that_goes_away_in_the_middle_does_no_harm(api: Api) -> None:
    for part in (b"POST /tas", request(b"/tasks/t/", b"x" * 100)[:-50]):
        _, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(part)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


async def test_old_http_without_a_host_is_served(api: Api) -> None:
    status, _, body = await raw(api, b"GET /tasks/ HTTP/1.0\r\n\r\n")
    assert status == 200
    assert json.loads(body)["items"] == []
