"""Limits while workers are killed: by what the runs themselves have written, never too many at a time, and all run."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.service import PATIENCE, Service, until

_JOBS = 24
#: Seconds that a run takes; and how often workers are killed.
_RUN = 0.4
_KILLS = 8
_TASKS = ("two", "three", "free")
_MAX_RUNNING = 6


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """An API without a worker."""
    settings = {
        "RUNNERS": ["process"],
        "PROCESS_FOLDER": str(tmp_path / "engine"),
        "PROCESS_MAX_RUNNING": 20,
        "LEASE_SECONDS": 1.0,
        "TASK_LIMITS": [{"match": "two$", "maxRunning": 2}],
        "MAX_RUNNING": _MAX_RUNNING,
    }
    service = Service(tmp_path, settings, ("api",)).start()
    yield service
    service.close()


def worker(service: Service) -> subprocess.Popen[bytes]:
    with service.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "fastlane_core", "worker", "-c", str(service.config)], stdout=log, stderr=log
        )


def overlaps(spans: list[tuple[float, float]]) -> int:
    """How many of them there are at a time, at most."""
    events = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    now = most = 0
    for _, change in events:
        now += change
        most = max(most, now)
    return most


def check_that_nothing_leaked(service: Service, go: Path) -> None:
    """The limits can be used up again."""
    script = f"until [ -e {go} ]; do sleep 0.1; done"
    payload = {"image": "none", "command": ["sh", "-c", script]}
    answers = {task: [service.submit(task, payload) for _ in range(4)] for task in ("two", "three")}

    def running() -> dict[str, int]:
        return {
            task: sum(service.execution(each)["status"] == "running" for each in its) for task, its in answers.items()
        }

    until(lambda: f"both limits are used up; {running()}", lambda: running() == {"two": 2, "three": 3})
    waiting = [each for its in answers.values() for each in map(service.execution, its) if each["status"] != "running"]
    assert sorted(each["waitingFor"] for each in waiting) == [
        "task three is at its limit of 3",
        *["task two is at its limit of 2"] * 2,
    ]
    go.touch()
    for each in (*answers["two"], *answers["three"]):
        service.finished(each)


def test_no_limit_is_exceeded_and_none_leaks_when_workers_are_killed(service: Service, tmp_path: Path) -> None:
    assert service.request("PUT", "/tasks/three", {"concurrency": 3})[0] == 200
    answers = []
    for number in range(_JOBS):
        for task in _TASKS:
            trace = tmp_path / f"{task}-{number}"
            script = f"date +%s.%N >> {trace}; sleep {_RUN}; date +%s.%N >> {trace}"
            answers.append(service.submit(task, {"image": "none", "command": ["sh", "-c", script]}))

    chance = random.Random(7)
    workers = [worker(service) for _ in range(3)]
    try:
        for _ in range(_KILLS):
            time.sleep(chance.uniform(0.5, 1.5))
            victim = workers.pop(chance.randrange(len(workers)))
            victim.kill()
            victim.wait(PATIENCE)
            workers.append(worker(service))
        for answer in answers:
            assert service.finished(answer)["status"] == "done"
        check_that_nothing_leaked(service, tmp_path / "go")
    finally:
        for each in workers:
            each.kill()
            each.wait(PATIENCE)

    spans: dict[str, list[tuple[float, float]]] = {}
    for task in _TASKS:
        for number in range(_JOBS):
            begin, end = (tmp_path / f"{task}-{number}").read_text().split()
            spans.setdefault(task, []).append((float(begin), float(end)))
    most = {task: overlaps(found) for task, found in spans.items()}
    assert most["two"] <= 2
    assert most["three"] <= 3
    assert overlaps([span for found in spans.values() for span in found]) <= _MAX_RUNNING
