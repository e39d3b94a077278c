"""Redis is emptied while much waits and some runs: everything ends, once, and never more at a time than may."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.service import Service, until
from tests.services.fixtures import require_redis, started_mongo
from tests.services.redis_server import RedisServer

pytestmark = pytest.mark.services

RUNNING = 10
WAITING = 1_000
#: Seconds for all to end on a busy machine.
PATIENCE = 400.0


class Traced:
    """Jobs that leave a line in one file when they begin and when they end; some wait for a gate to be opened."""

    def __init__(self, folder: Path, api: Service) -> None:
        self._folder = folder
        self._api = api
        self._trace = folder / "trace"

    def submit(self, number: int, gate: str = "") -> Any:
        """Without a gate it ends at once."""
        wait = f"while [ ! -e {self._folder / gate} ]; do sleep 0.1; done; " if gate else ""
        script = f"echo begin {number} >> {self._trace}; {wait}echo {number}; echo end {number} >> {self._trace}"
        return self._api.submit("emptied", {"image": "none", "command": ["sh", "-c", script]})

    def open(self, gate: str) -> None:
        (self._folder / gate).touch()

    @property
    def lines(self) -> list[list[str]]:
        return [line.split() for line in self._trace.read_text().splitlines()] if self._trace.exists() else []

    def most(self) -> int:
        """Most that ran at a time."""
        running = most = 0
        for what, _ in self.lines:
            running += 1 if what == "begin" else -1
            most = max(most, running)
        return most


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    require_redis()
    with RedisServer(tmp_path / "redis") as redis:
        yield redis


@pytest.fixture(params=["sqlite", pytest.param("mongodb", marks=pytest.mark.long)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mapping[str, object]]:
    """The settings of a storage."""
    if request.param == "sqlite":
        yield {"SQLITE_PATH": str(tmp_path / "fastlane.db")}
        return
    with started_mongo() as mongo:
        yield {"STORAGE": "mongo", "MONGODB_URL": mongo.url}


def test_all_that_waits_or_runs_when_redis_is_emptied_ends_once(
    tmp_path: Path, redis: RedisServer, storage: Mapping[str, object]
) -> None:
    settings = {
        "RUNNERS": ["process"],
        "PROCESS_FOLDER": str(tmp_path / "engine"),
        "PROCESS_MAX_RUNNING": RUNNING,
        "QUEUE": "redis",
        "REDIS_URL": redis.url,
        "DEPLOYMENT_ID": "emptied",
        **storage,
    }
    with ExitStack() as stack:

        def service(name: str, *command: str) -> Service:
            started = Service(tmp_path / name, settings, command=command, verbosity="-v").start()
            stack.callback(started.close)
            return started

        api = service("api", "api")
        workers = [service(name, "worker", "-i", name) for name in ("worker1", "worker2")]
        jobs = Traced(tmp_path, api)
        for gate in ("early", "late"):
            # Also when the test fails: what has begun outlives its worker.
            stack.callback(jobs.open, gate)

        def lane() -> Any:
            return api.get_json("/status/")["lanes"]["process:local"]

        def counts() -> tuple[int, int]:
            found = lane()
            return found["leased"], found["waiting"]

        # Half of what runs goes on until the queue is whole again; the other half ends while it is not.
        answers = [jobs.submit(number, "early" if number % 2 else "late") for number in range(RUNNING)]
        until("all places are taken", lambda: len(jobs.lines) == RUNNING)
        with ThreadPoolExecutor(8) as pool:
            answers += pool.map(jobs.submit, range(RUNNING, RUNNING + WAITING))
        until(lambda: f"all are in the queue: {counts()}", lambda: counts() == (RUNNING, WAITING))

        redis.flush()
        jobs.open("early")
        until(lambda: f"the queue is whole again: {lane()}", lambda: lane()["leased"] == RUNNING, PATIENCE, 0.1)
        jobs.open("late")

        def tails() -> str:
            return "\n".join(each.tail(1500) for each in workers)

        until(lambda: f"all have ended: {counts()} {tails()}", lambda: counts() == (0, 0), PATIENCE, 0.5)
        for number, answer in enumerate(answers):
            executions = api.get_json(answer["jobUrl"])["job"]["executions"]
            assert [(each["status"], each["log"]) for each in executions] == [("done", f"{number}\n")]
    assert Counter(map(tuple, jobs.lines)) == {
        (what, str(number)): 1 for what in ("begin", "end") for number in range(RUNNING + WAITING)
    }
    assert jobs.most() == RUNNING
