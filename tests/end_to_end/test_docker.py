"""Jobs in real containers, by plain `curl`, through kills, restarts and an engine that goes away."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.end_to_end.service import Service, until
from tests.services.docker_engine import DockerEngine
from tests.services.fixtures import SharedEngine

pytestmark = pytest.mark.services

TEN = 10


@pytest.fixture
def service(tmp_path: Path, docker_engine: SharedEngine) -> Iterator[Service]:
    """`fastlane dev` on the shared engine."""
    service = Service(tmp_path, settings_for(docker_engine.url, capacity=TEN)).start()
    yield service
    service.close()


def settings_for(url: str, *, capacity: int) -> dict[str, object]:
    hosts = [{"match": "", "hosts": [url], "maxRunning": capacity}]
    return {"RUNNERS": ["docker"], "DOCKER_HOSTS": json.dumps(hosts, indent=2)}


def curl(*arguments: str) -> tuple[bytes, int, dict[str, str]]:
    """Body, status and headers, of curl as people type it."""
    done = subprocess.run(["curl", "-sS", "-i", *arguments], capture_output=True, timeout=60, check=True)
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    return (
        body,
        int(status.split()[1]),
        {name.lower(): value for name, value in (field.split(": ", 1) for field in fields)},
    )


@pytest.mark.parametrize(
    ("image", "command", "expected"),
    [
        ("hello-world", "", b"Hello from Docker!"),
        ("busybox", "echo 'hello world'", b"hello world\n"),
        ("ubuntu:latest", "ls -lah", b" etc\n"),
    ],
)
def test_the_getting_started_walk_by_curl(
    service: Service, walk_images: SharedEngine, image: str, command: str, expected: bytes
) -> None:
    task = f"{service.url}/tasks/test-task"
    body, status, _ = curl("-d", json.dumps({"image": image, "command": command}), task)
    assert status == 200, body
    answer = json.loads(body)
    assert answer["taskId"] == "test-task"
    service.finished(answer)

    body, status, _ = curl(answer["jobUrl"])
    assert status == 200
    job = json.loads(body)["job"]
    assert job["executions"][0]["status"] == "done"
    assert expected.decode() in job["executions"][0]["log"]

    body, status, headers = curl(answer["jobUrl"].rstrip("/") + "/stdout")
    assert (status, headers["fastlane-exit-code"]) == (200, "0")
    assert expected in body
    assert curl(answer["jobUrl"].rstrip("/") + "/stderr/")[0] == b""
    tasks = json.loads(curl(f"{service.url}/tasks/")[0])
    assert [item["taskId"] for item in tasks["items"]] == ["test-task"]


def test_ten_containers_survive_a_kill_and_are_adopted(service: Service, docker_engine: SharedEngine) -> None:
    begun = engine_time(docker_engine)
    script = "echo begin; sleep 15; echo end; echo done >&2"
    payload = {"image": "busybox", "command": ["sh", "-c", script]}
    answers = [service.submit("restart", payload) for _ in range(TEN)]
    for answer in answers:
        until("all run", lambda answer=answer: service.execution(answer)["status"] == "running")
    service.kill()
    service.start()
    for answer in answers:
        execution = service.finished(answer)
        assert (execution["status"], execution["exitCode"]) == ("done", 0)
        assert service.get(answer["executionUrl"] + "stdout")[1] == b"begin\nend\n"
        assert service.get(answer["executionUrl"] + "stderr")[1] == b"done\n"
    assert created(docker_engine, since=begun, answers=answers) == {answer["executionId"]: 1 for answer in answers}


def test_sigterm_with_running_containers_exits_soon_and_the_next_start_adopts(
    service: Service, docker_engine: SharedEngine
) -> None:
    begun = engine_time(docker_engine)
    payload = {"image": "busybox", "command": ["sh", "-c", "for i in $(seq 1 30); do echo $i; sleep 1; done"]}
    answers = [service.submit("handover", payload) for _ in range(4)]
    for answer in answers:
        until("all run", lambda answer=answer: service.execution(answer)["status"] == "running")
    seconds = service.terminate()
    running = docker.DockerClient(base_url=docker_engine.url)
    names = {container.name for container in running.containers.list()}
    assert {f"fastlane-job-{answer['executionId']}" for answer in answers} <= names
    service.start()
    for answer in answers:
        assert service.finished(answer)["status"] == "done"
        assert service.get(answer["executionUrl"] + "stdout")[1] == b"".join(b"%d\n" % i for i in range(1, 31))
    assert created(docker_engine, since=begun, answers=answers) == {answer["executionId"]: 1 for answer in answers}
    # The promise is three seconds; a busy machine gets some more, but never as many as the runs last.
    assert seconds < 25, f"SIGTERM took {seconds:.1f} s"


def test_jobs_wait_and_say_why_while_the_engine_is_down(tmp_path: Path, own_docker_engine: DockerEngine) -> None:
    engine = own_docker_engine
    service = Service(tmp_path, settings_for(engine.url, capacity=4)).start()
    try:
        engine.kill()
        payload = {"image": "busybox", "command": "echo back again"}
        answers = [service.submit("down", payload) for _ in range(6)]

        def told() -> bool:
            found = [service.execution(answer) for answer in answers]
            assert {each["status"] for each in found} <= {"enqueued", "pulling"}
            return all("cannot be reached" in (each["waitingFor"] or "") for each in found)

        until("every job says that its engine cannot be reached", told)
        engine.start()
        for answer in answers:
            assert service.finished(answer)["status"] == "done"
            assert service.get(answer["executionUrl"] + "stdout")[1] == b"back again\n"
    finally:
        service.close()


def test_stop_ends_a_running_container(service: Service, docker_engine: SharedEngine) -> None:
    answer = service.submit("stop", {"image": "busybox", "command": ["sh", "-c", "echo on; exec sleep 600"]})
    until("it runs", lambda: service.execution(answer)["status"] == "running")
    assert service.post(answer["jobUrl"] + "stop/", {})[0] == 200
    execution = service.finished(answer)
    assert (execution["status"], execution["reason"]) == ("stopped", "stopped")
    assert service.get(answer["executionUrl"] + "stdout")[1] == b"on\n"
    names = {each.name for each in docker.DockerClient(base_url=docker_engine.url).containers.list()}
    assert f"fastlane-job-{answer['executionId']}" not in names


def test_a_timeout_stops_the_container_and_keeps_its_output(service: Service) -> None:
    command = ["sh", "-c", "echo on; exec sleep 600"]
    answer = service.submit("timeout", {"image": "busybox", "command": command, "timeout": 2})
    execution = service.finished(answer)
    assert (execution["status"], execution["reason"]) == ("timedout", "timed_out")
    assert service.get(answer["executionUrl"] + "stdout")[1] == b"on\n"


def engine_time(engine: SharedEngine) -> float:
    """Now; the engine is on this machine."""
    return time.time()


def created(engine: SharedEngine, *, since: float, answers: list[Any]) -> dict[str, int]:
    """How many containers the engine says it created for each of the executions."""
    client = docker.DockerClient(base_url=engine.url)
    events = client.api.events(
        since=f"{since:.6f}",
        until=f"{time.time():.6f}",
        filters={"type": "container", "event": "create"},
        decode=True,
    )
    prefix = "fastlane-job-"
    names = Counter(event["Actor"]["Attributes"]["name"].removeprefix(prefix) for event in events)
    wanted = {answer["executionId"] for answer in answers}
    return {name: count for name, count in names.items() if name in wanted}
