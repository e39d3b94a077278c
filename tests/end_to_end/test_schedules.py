"""Jobs that run later, and again and again, in real containers, by plain `curl`."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.service import Service, until
from tests.services.fixtures import SharedEngine

pytestmark = pytest.mark.services


@pytest.fixture
def service(tmp_path: Path, docker_engine: SharedEngine) -> Iterator[Service]:
    """`fastlane dev` on the shared engine."""
    hosts = [{"match": "", "hosts": [docker_engine.url], "maxRunning": 10}]
    service = Service(tmp_path, {"RUNNERS": ["docker"], "DOCKER_HOSTS": json.dumps(hosts)}).start()
    yield service
    service.close()


def curl(*arguments: str) -> Any:
    """The JSON answer to curl as people type it."""
    done = subprocess.run(["curl", "-sS", "--fail-with-body", *arguments], capture_output=True, timeout=60, check=True)
    return json.loads(done.stdout)


def submit(service: Service, **fields: object) -> Any:
    body = {"image": "busybox", "command": "echo hello", **fields}
    return curl("-d", json.dumps(body), f"{service.url}/tasks/reports")


def executions(answer: Any) -> list[Any]:
    return list(curl(answer["jobUrl"])["job"]["executions"])


def eventually(what: str, condition: Callable[[], object]) -> None:
    """Wait for what comes with the next minute."""
    until(what, condition, patience=240.0, pause=0.3)


def keep_clear_of_a_tick() -> None:
    """Return early enough in a minute to look at what its end will bring."""
    eventually("a minute begins", lambda: time.time() % 60 < 40)


def test_jobs_with_a_start_run_then_and_not_before(service: Service) -> None:
    asked_at = time.time()
    soon = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
    waiting = [submit(service, startIn="3s"), submit(service, startAt=asked_at + 4), submit(service, startAt=soon)]
    far = submit(service, startIn="240h")

    def waiting_to_be_due() -> Any:
        return curl(f"{service.url}/status")["queues"]["scheduled"]

    # How many of the others still wait depends on how busy the machine is.
    scheduled = until("the last one is in the queue", lambda: (found := waiting_to_be_due())["length"] and found)
    assert 1 <= scheduled["length"] <= 4
    assert asked_at < scheduled["nextTimeStamp"] <= time.time() + 240 * 3600

    for answer, delay in zip(waiting, (3, 4, 4), strict=True):
        execution = service.finished(answer)
        assert (execution["status"], execution["log"]) == ("done", "hello\n")
        begun = datetime.fromisoformat(execution["startedAt"]).replace(tzinfo=UTC).timestamp()
        assert begun >= asked_at + delay - 0.1
    assert executions(far)[0]["status"] == "enqueued"
    curl("-X", "POST", f"{far['jobUrl']}stop/")
    assert executions(far)[0]["status"] == "stopped"


def test_a_cron_job_runs_at_its_tick_until_it_is_stopped(service: Service) -> None:
    keep_clear_of_a_tick()
    answer = submit(service, cron="* * * * *", command="echo tick")
    assert (answer["executionId"], answer["executionUrl"]) == (None, None)
    job = curl(answer["jobUrl"])["job"]
    assert (job["scheduled"], job["metadata"]["cron"], job["executionCount"]) == (True, "* * * * *", 0)
    (listed,) = curl(f"{service.url}/status")["jobs"]["scheduled"]
    assert (listed["url"], listed["metadata"]["cron"]) == (answer["jobUrl"], "* * * * *")
    (due,) = curl(f"{answer['jobUrl']}schedule?next=1")["next"]

    eventually("the tick has run", lambda: [each["status"] for each in executions(answer)] == ["done"])

    (execution,) = executions(answer)
    assert execution["executionId"] == answer["queueJobId"]
    assert (execution["scheduledFor"], execution["log"]) == (due["at"], "tick\n")
    assert execution["startedAt"] >= due["at"]
    curl("-X", "POST", listed["stopUrl"])
    assert curl(f"{service.url}/status")["jobs"]["scheduled"] == []
    assert curl(answer["jobUrl"])["job"]["scheduled"] is False
    stopped_at = time.time()
    past_next_tick = 60 - stopped_at % 60 + 3
    eventually("the next tick has passed", lambda: time.time() > stopped_at + past_next_tick)
    assert len(executions(answer)) == 1


@pytest.mark.long
def test_a_tick_that_came_while_nothing_ran_is_made_up_for(service: Service) -> None:
    keep_clear_of_a_tick()
    answer = submit(service, cron="* * * * *")
    (due,) = curl(f"{answer['jobUrl']}schedule?next=1")["next"]
    service.terminate()
    eventually("the tick has passed", lambda: time.time() > due["timestamp"] + 1)

    service.start()

    eventually("it has run", lambda: "done" in [each["status"] for each in executions(answer)])
    assert [each["scheduledFor"] for each in executions(answer)][-1] == due["at"]
    curl("-X", "POST", f"{answer['jobUrl']}stop/")


def test_a_schedule_is_previewed_before_it_is_made(service: Service) -> None:
    wanted = {"cron": "0 6 * * sun", "timezone": "America/Sao_Paulo"}

    body = curl("-d", json.dumps(wanted), f"{service.url}/schedule/preview?next=5")

    assert [datetime.fromisoformat(each["local"]).strftime("%a %H:%M") for each in body["next"]] == ["Sun 06:00"] * 5
    assert curl(f"{service.url}/tasks")["total"] == 0
