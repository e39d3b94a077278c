"""A worker that is paused for far longer than its lease and woken: what others adopted meanwhile is theirs."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fastlane_core.app import Application, open_application
from fastlane_core.models import Execution, Status
from tests.end_to_end.farm_harness import containers_of, engines_of, witnessed
from tests.end_to_end.service import PATIENCE, Service
from tests.services.docker_engine import DockerEngine
from tests.services.fixtures import require_redis, started_mongo
from tests.services.redis_server import RedisServer

pytestmark = [
    pytest.mark.services,
    # The driver of MongoDB leaves sockets to the garbage collector that were being connected when it was closed.
    pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning"),
]

LEASE_SECONDS = 2.0
#: Lines that a run writes in a second.
PACE = 10


@pytest.fixture(params=["sqlite", "mongodb and redis"])
def beneath(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mapping[str, object]]:
    """The settings of a storage and a queue."""
    if request.param == "sqlite":
        yield {"SQLITE_PATH": str(tmp_path / "fastlane.db")}
        return
    require_redis()
    with started_mongo() as mongo, RedisServer(tmp_path / "redis") as redis:
        yield {"STORAGE": "mongo", "MONGODB_URL": mongo.url, "QUEUE": "redis", "REDIS_URL": redis.url}


@pytest.fixture
def engine() -> Iterator[DockerEngine]:
    with engines_of(1) as (engine,):
        yield engine


class Paused:
    """An API, a worker that has begun to run things, and an heir that came after that."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self.api = Service(folder / "api", settings, ("api",))
        self.victim = Service(folder / "victim", settings, ("worker", "-i", "victim"))
        # Busy machines pause as well: nobody must adopt from the heir.
        self.heir = Service(folder / "heir", {**settings, "LEASE_SECONDS": 60.0}, ("worker", "-i", "heir"))

    def __enter__(self) -> Paused:
        self.api.start()
        self.victim.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self.victim, self.heir, self.api):
            each.close()

    def signal(self, number: signal.Signals) -> None:
        """Send it to the victim."""
        assert self.victim.process is not None
        os.kill(self.victim.process.pid, number)

    def submit(self, seconds: float) -> Any:
        """A run that counts, line by line, for that long."""
        script = f"for i in $(seq 1 {lines(seconds)}); do echo $i; sleep {1 / PACE}; done"
        return self.api.submit("paused", {"image": "busybox", "command": ["sh", "-c", script]})


def lines(seconds: float) -> int:
    return int(seconds * PACE)


async def eventually(what: str, holds: Callable[[], Awaitable[object]], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not await holds():
        assert time.monotonic() < deadline, f"gave up waiting until {what}"
        await asyncio.sleep(0.1)


async def record(application: Application, answer: Mapping[str, str]) -> Execution:
    found = await application.storage.get_execution(answer["executionId"])
    assert found is not None
    return found


@pytest.mark.parametrize("pause", [8 * LEASE_SECONDS, pytest.param(60.0, marks=pytest.mark.long)])
async def test_a_worker_that_was_paused_cannot_write_over_what_another_adopted(
    tmp_path: Path, beneath: Mapping[str, object], engine: DockerEngine, pause: float
) -> None:
    deployment = f"paused-{tmp_path.name}"
    farm = {"name": "all", "hosts": [engine.url], "maxRunning": 2}
    settings: dict[str, object] = {
        "RUNNERS": ["docker"],
        "DOCKER_HOSTS": [farm],
        "DEPLOYMENT_ID": deployment,
        "LEASE_SECONDS": LEASE_SECONDS,
        **beneath,
    }
    with (
        Paused(tmp_path, settings) as fastlane,
        witnessed(deployment, {"all": [engine]}) as witnesses,
    ):
        async with open_application(fastlane.api.config, {}) as application:
            # One that ends while its worker is paused, and one that goes on when it is woken.
            lengths = (pause * 0.75, pause + 20.0)
            answers = [fastlane.submit(seconds) for seconds in lengths]

            async def writes(answer: Mapping[str, str]) -> bool:
                return bool(await application.storage.last_log(answer["executionId"]))

            for answer in answers:
                await eventually("its output is stored", lambda answer=answer: writes(answer))  # type: ignore[misc]
            assert {(await record(application, each)).worker for each in answers} == {"victim"}
            fastlane.heir.start()

            fastlane.signal(signal.SIGSTOP)
            paused_at = time.monotonic()

            async def adopted() -> bool:
                return all([(await record(application, each)).worker == "heir" for each in answers])

            await eventually(f"the heir has adopted both: {fastlane.heir.tail()}", adopted)

            async def one_has_ended() -> bool:
                return (await record(application, answers[0])).status is Status.DONE

            await eventually("the first has ended", one_has_ended)
            await asyncio.sleep(paused_at + pause - time.monotonic())
            before = [await record(application, each) for each in answers]
            assert before[1].status is Status.RUNNING
            fastlane.signal(signal.SIGCONT)

            async def has_let_go() -> bool:
                told = fastlane.victim.log.read_text(errors="replace")
                return all(
                    any(
                        each["executionId"] in line and ("lost a lease" in line or "left to another" in line)
                        for line in told.splitlines()
                    )
                    for each in answers
                )

            await eventually("the woken worker has found out", has_let_go)
            for answer in answers:
                await asyncio.to_thread(fastlane.api.finished, answer)
            after = [await record(application, each) for each in answers]

        assert after[0] == before[0]
        for was, now, seconds, answer in zip(before, after, lengths, answers, strict=True):
            assert (now.status, now.exit_code, now.worker) == (Status.DONE, 0, "heir")
            assert (now.fence, now.lease_token, now.handle) == (was.fence, was.lease_token, was.handle)
            assert now.fence == 2
            whole = "".join(f"{number}\n" for number in range(1, lines(seconds) + 1))
            assert fastlane.api.get(answer["executionUrl"] + "stdout")[1].decode() == whole
            assert fastlane.api.get_json(answer["jobUrl"])["job"]["executionCount"] == 1

        async def no_slot_is_taken() -> bool:
            return bool(fastlane.api.get_json("/status/")["lanes"]["docker:all"]["leased"] == 0)

        await eventually("no slot is taken", no_slot_is_taken)
        assert sorted(map(len, containers_of(deployment, engine).values())) == [1, 1]
    for action in ("create", "start", "die"):
        assert witnesses["all"].count(action) == {each["executionId"]: 1 for each in answers}
