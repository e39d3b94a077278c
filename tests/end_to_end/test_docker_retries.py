"""Retries, limits of time, stopping, replacing and running again, by plain `curl`, in real containers."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import docker
import pytest

from tests.end_to_end.service import PATIENCE, Service, until
from tests.services.fixtures import started_engine
from tests.services.tcp_proxy import TcpProxy

pytestmark = pytest.mark.services

#: Containers at a time.
CAPACITY = 3
SLEEP = ["sh", "-c", "echo on; exec sleep 600"]


@dataclass
class Site:
    """`fastlane dev`, and its engine behind a proxy."""

    service: Service
    proxy: TcpProxy
    engine_url: str

    def curl(self, method: str, path: str, payload: object = None) -> tuple[int, Any]:
        """Status and JSON, as curl gets them."""
        url = path if path.startswith("http") else self.service.url + path
        body = () if payload is None else ("-d", json.dumps(payload))
        done = subprocess.run(
            ["curl", "-sS", "--noproxy", "*", "-X", method, *body, "-w", "\n%{http_code}", url],
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        text, _, status = done.stdout.decode().rpartition("\n")
        return int(status), json.loads(text)

    def submit(self, task: str, **payload: object) -> Any:
        status, answer = self.curl("POST", f"/tasks/{task}", {"image": "busybox", "command": "true", **payload})
        assert status == 200, answer
        return answer

    def attempts(self, answer: Any) -> list[Any]:
        """The executions of a job, first one first."""
        return list(reversed(self.curl("GET", answer["jobUrl"])[1]["job"]["executions"]))

    def ended(self, answer: Any, count: int) -> list[Any]:
        """The executions of a job, once there are so many that have ended."""

        def have_ended() -> list[Any] | None:
            found = self.attempts(answer)
            return found if len(found) >= count and all(each["finishedAt"] for each in found) else None

        found: list[Any] = until(
            lambda: f"{count} executions have ended, not {self.attempts(answer)}; log: {self.service.tail()}",
            have_ended,
        )
        assert len(found) == count
        return found

    def running(self, answer: Any) -> None:
        until("it runs", lambda: self.service.execution(answer)["status"] == "running")

    def containers(self) -> dict[str, str]:
        """Names of all containers on the engine, with their status."""
        client = docker.DockerClient(base_url=self.engine_url)
        try:
            return {str(each.name): str(each.status) for each in client.containers.list(all=True)}
        finally:
            client.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with started_engine(tmp_path_factory.mktemp("engine")) as engine, TcpProxy(("127.0.0.1", engine.port)) as proxy:
        farm = [{"match": "", "hosts": [f"127.0.0.1:{proxy.port}"], "maxRunning": CAPACITY}]
        settings = {
            "RUNNERS": ["docker"],
            "DOCKER_HOSTS": json.dumps(farm),
            "DOCKER_CIRCUIT_BREAKER_RESET_TIMEOUT_SECONDS": 1.0,
            "STOP_GRACE_SECONDS": 1.0,
        }
        service = Service(tmp_path_factory.mktemp("fastlane"), settings)
        try:
            yield Site(service.start(), proxy, engine.url)
        finally:
            service.close()


def test_failures_are_tried_again_each_in_a_container_of_its_own(site: Site) -> None:
    retry = {"minSeconds": 0.2, "factor": 1}
    answer = site.submit("retries", command="sh -c 'echo try; exit 3'", retries=2, retry=retry)
    found = site.ended(answer, 3)
    assert [(each["exitCode"], each["log"]) for each in found] == [(3, "try\n")] * 3
    assert [each["attempt"] for each in found] == [1, 2, 3]
    assert [each["retryOf"] for each in found] == [None, found[0]["executionId"], found[1]["executionId"]]
    assert [each["nextRetryAt"] is not None for each in found] == [True, True, False]
    assert len({each["metadata"]["container_id"] for each in found}) == 3


def test_a_time_out_keeps_output_and_exit_code_and_is_tried_again_where_the_job_says_so(site: Site) -> None:
    command = ["sh", "-c", "trap 'echo off; exit 9' TERM; echo on; while true; do sleep 0.1; done"]
    retry = {"minSeconds": 0, "on": ["timed_out"]}
    # Time for a shell on a busy machine to set its trap, and to be told by it; the time-out is all that it waits for.
    answer = site.submit("timeout", command=command, timeout=10, retries=1, retry=retry, docker={"stopGrace": "60s"})
    until("it traps", lambda: any("on" in (each["log"] or "") for each in site.attempts(answer)))
    found = site.ended(answer, 2)
    assert [(each["status"], each["reason"]) for each in found] == [("timedout", "timed_out")] * 2
    assert [(each["exitCode"], each["log"]) for each in found] == [(9, "on\noff\n")] * 2
    names = site.containers()
    for each in found:
        assert names.get(f"fastlane-job-{each['executionId']}") is None


def test_what_expires_is_recorded_and_never_started(site: Site) -> None:
    (late,) = site.ended(site.submit("expires", startIn="2s", expiresIn="1s"), 1)
    (past,) = site.ended(site.submit("expires", expiration=time.time() - 60), 1)
    for each in (late, past):
        assert (each["status"], each["reason"], each["startedAt"]) == ("expired", "expired", None)
        assert "expiration" in each["message"]


def test_what_waits_in_a_full_farm_for_too_long_expires(site: Site) -> None:
    full = [site.submit("full", command=SLEEP) for _ in range(CAPACITY)]
    for answer in full:
        site.running(answer)
    (late,) = site.ended(site.submit("waits", queueTimeout=1), 1)
    assert (late["status"], late["startedAt"]) == ("expired", None)
    assert "queue" in late["message"]
    queued = site.submit("waits")
    assert site.curl("POST", queued["jobUrl"] + "stop/")[0] == 200
    (stopped,) = site.ended(queued, 1)
    assert (stopped["status"], stopped["startedAt"]) == ("stopped", None)
    for answer in full:
        site.curl("POST", answer["jobUrl"] + "stop")
    for answer in full:
        (stopped,) = site.ended(answer, 1)
        assert (stopped["status"], stopped["log"]) == ("stopped", "on\n")


def test_scheduled_and_recurring_jobs_are_stopped_before_they_start(site: Site) -> None:
    later = site.submit("later", startIn="1h", retries=5)
    recurring = site.submit("recurring", cron="* * * * *")
    assert (later["executionId"] is None, recurring["executionId"]) == (False, None)
    for answer in (later, recurring):
        for _ in range(2):
            assert site.curl("POST", answer["jobUrl"] + "stop/")[0] == 200
    assert site.ended(later, 1)[0]["status"] == "stopped"
    assert recurring["jobId"] not in json.dumps(site.curl("GET", "/status")[1]["jobs"]["scheduled"])


def test_running_and_pulling_jobs_are_stopped_while_the_engine_hangs(site: Site) -> None:
    running = site.submit("hangs", command=SLEEP, retries=5)
    site.running(running)
    site.proxy.hang()
    try:
        pulling = site.submit("hangs", image="nobody/knows:this")
        until("it is being pulled", lambda: site.service.execution(pulling)["status"] == "pulling")
        for answer in (running, pulling):
            assert site.curl("POST", answer["jobUrl"] + "stop/")[0] == 200
        # Nothing of it is on the engine yet, so nothing has to be waited for.
        assert site.ended(pulling, 1)[0]["status"] == "stopped"
        assert site.curl("POST", running["jobUrl"] + "retry/")[0] == 409
        assert site.service.execution(running)["status"] == "running"
    finally:
        site.proxy.pass_on()
    (stopped,) = site.ended(running, 1)
    assert (stopped["status"], stopped["log"]) == ("stopped", "on\n")
    assert site.containers().get(f"fastlane-job-{running['executionId']}") is None


def test_a_put_job_is_replaced_and_run_again(site: Site) -> None:
    path = f"/tasks/put/jobs/{uuid.uuid4()}"
    job = {"image": "busybox", "command": "echo first"}
    status, first = site.curl("PUT", path, {**job, "startIn": "1h"})
    assert status == 200
    second = site.curl("PUT", path, {**job, "command": "sh -c 'echo second; exit 1'"})[1]
    assert second["jobId"] == first["jobId"]
    assert [each["status"] for each in site.ended(second, 2)] == ["stopped", "failed"]
    third = site.curl("POST", f"{path}/retry")[1]
    assert third["executionId"] not in (first["executionId"], second["executionId"])
    found = site.ended(second, 3)[-1]
    assert (found["executionId"], found["log"], found["retryOf"]) == (
        third["executionId"],
        "second\n",
        second["executionId"],
    )
    assert site.curl("POST", "/tasks/put/retry", {"reason": "exit_code"})[1]["retried"][0]["jobId"] == first["jobId"]
    site.ended(second, 4)


def test_a_running_job_is_run_again_by_force_when_it_is_dead(site: Site) -> None:
    answer = site.submit("force", command=["sh", "-c", "trap '' TERM; echo on; while true; do sleep 0.1; done"])
    site.running(answer)
    until("it traps", lambda: site.service.execution(answer)["log"] == "on\n")
    assert site.curl("POST", answer["jobUrl"] + "retry/")[0] == 409
    status, again = site.curl("POST", answer["jobUrl"] + "retry/?force=true")
    assert status == 200
    site.running(again)
    (first, second) = site.attempts(answer)
    assert (first["status"], first["exitCode"]) == ("stopped", 137)
    assert second["startedAt"] > first["finishedAt"]
    site.curl("POST", answer["jobUrl"] + "stop/")
    site.ended(answer, 2)
