"""Every storage with every queue, in API and workers apart; what must not be mixed; and stores of third parties."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pymongo
import pytest

from fastlane_core.app import open_application
from fastlane_core.engine.presence import WORKERS_SCOPE
from tests.end_to_end.service import PATIENCE, Service, until
from tests.services.redis_server import RedisServer

#: The module of a distribution that brings a storage and a queue, as a third party would write it.
THEIR_PLUGIN = """
from pathlib import Path

from pydantic import BaseModel, Field

from fastlane_core.builtin.sqlite.queue import SqliteQueue
from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.hookspecs import QueuePlugin, SettingsSection, StoragePlugin, hookimpl


class TheirSettings(BaseModel):
    their_folder: str = Field("", description="Where their files are.")


class TheirStorage(SqliteStorage):
    async def health(self):
        return "their storage: " + await super().health()


class TheirQueue(SqliteQueue):
    async def health(self):
        return "their queue: " + await super().health()


@hookimpl
def fastlane_settings():
    yield SettingsSection(title="Theirs", model=TheirSettings)


@hookimpl
def fastlane_storages():
    yield StoragePlugin(name="theirs", create=lambda context: TheirStorage(_folder(context) / "storage.db"))


@hookimpl
def fastlane_queues():
    yield QueuePlugin(
        name="theirs", create=lambda context: TheirQueue(_folder(context) / "queue.db", clock=context.clock)
    )


def _folder(context):
    return Path(context.settings.section(TheirSettings).their_folder)
"""


@pytest.fixture
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mapping[str, object]]:
    """Settings of the combination that the test is for: the names of a storage and a queue."""
    storage, queue = request.param
    settings: dict[str, object] = {"STORAGE": storage, "QUEUE": queue, "SQLITE_PATH": str(tmp_path / "shared.db")}
    if queue == "redis":
        redis_server: RedisServer = request.getfixturevalue("redis_server")
        settings["REDIS_URL"] = redis_server.url
    if storage != "mongo":
        yield settings
        return
    mongo_url: str = request.getfixturevalue("mongo_url")
    database = f"fastlane_{uuid.uuid4().hex}"
    yield {**settings, "MONGODB_CONFIG": {"host": mongo_url, "db": database}}
    with pymongo.MongoClient[dict[str, Any]](mongo_url, timeoutMS=60_000) as client:
        client.drop_database(database)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path)
    yield made
    made.close()


class Processes:
    """`fastlane api` and `fastlane worker`, each with a settings file of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Service] = []

    def make(
        self,
        command: str,
        settings: Mapping[str, object],
        *arguments: str,
        environment: Mapping[str, str] | None = None,
    ) -> Service:
        """One that is not started yet."""
        folder = self._folder / f"{command}-{len(self._made)}"
        common = {"RUNNERS": ["process"], "PROCESS_FOLDER": str(self._folder / "engine")}
        service = Service(folder, {**common, **settings}, (command, *arguments), environment=environment)
        self._made.append(service)
        return service

    def close(self) -> None:
        for each in reversed(self._made):
            each.close()


def combinations(*names: tuple[str, str]) -> list[Any]:
    """As parameters; those with servers are marked."""
    marks = {"mongo", "redis"}
    return [
        pytest.param(each, id="-".join(each), marks=[pytest.mark.services] if marks & set(each) else [])
        for each in names
    ]


ALL = combinations(("sqlite", "sqlite"), ("mongo", "redis"), ("sqlite", "redis"), ("mongo", "sqlite"))


@pytest.mark.parametrize("stores", ALL, indirect=True)
def test_jobs_run_with_api_and_workers_in_processes_of_their_own(
    stores: Mapping[str, object], processes: Processes
) -> None:
    api = processes.make("api", stores, "--workers", "2").start()
    workers = [processes.make("worker", stores, "-i", f"w{number}").start() for number in range(2)]
    code = "echo to stdout; echo to stderr >&2; exit"
    answers = [
        api.submit(f"task-{number % 3}", {"image": "none", "command": f"sh -c '{code} {number % 2}'"})
        for number in range(12)
    ]
    executions = [api.finished(answer) for answer in answers]

    assert [each["exitCode"] for each in executions] == [0, 1] * 6
    assert {each["status"] for each in executions} == {"done", "failed"}
    assert api.get(answers[0]["jobUrl"] + "stdout")[1] == b"to stdout\n"
    assert api.get(answers[1]["jobUrl"] + "stderr")[1] == b"to stderr\n"
    until("both workers are listed", lambda: {each["worker"] for each in listed(api)} == {"w0", "w1"})

    # What the one had is gone on with by the other.
    long = api.submit("long", {"image": "none", "command": "sh -c 'while [ ! -e go ]; do sleep 0.05; done'"})
    until("it runs", lambda: api.execution(long)["status"] == "running")
    stop = api.submit("long", {"image": "none", "command": "sleep 600"})
    until("it runs", lambda: api.execution(stop)["status"] == "running")
    workers[0].kill()
    assert api.post(stop["jobUrl"] + "stop/", {})[0] == 200
    assert api.finished(stop)["status"] == "stopped"
    assert api.execution(long)["status"] == "running"
    assert api.post(long["jobUrl"] + "stop/", {})[0] == 200
    assert api.finished(long)["status"] == "stopped"


def listed(api: Service) -> Any:
    return api.get_json("/status/")["workers"]


@pytest.mark.parametrize("stores", ALL, indirect=True)
async def test_a_second_machine_is_refused_where_sqlite_is_in_use_and_only_there(
    stores: Mapping[str, object], processes: Processes
) -> None:
    worker = processes.make("worker", stores, "-i", "here")
    machine = {"boot": "other", "installation": "other", "host": "far", "pid_namespace": "pid:[1]"}
    async with open_application(worker.config, {}) as application:
        report = {"host": "far", "pid": 7, "version": "0", "at": time.time(), "machine": machine}
        await application.storage.put_state(
            WORKERS_SCOPE, "far-worker", {**report, "queue": stores["QUEUE"], "lanes": {}}, revision=None
        )
    await asyncio.to_thread(worker.start)
    bound = [f"{key} = sqlite" for key in ("STORAGE", "QUEUE") if stores[key] == "sqlite"]

    assert worker.process is not None
    if bound:
        assert await asyncio.to_thread(worker.process.wait, PATIENCE) == 2
        told = worker.log.read_text()
        assert "the worker far-worker (process 7 on far) belongs to the same deployment" in told
        assert f"{' and '.join(bound)} works within one machine only" in told
    else:
        await asyncio.to_thread(until, "the worker is ready", lambda: "worker is ready" in worker.log.read_text())


@pytest.mark.services
@pytest.mark.parametrize("stores", combinations(("sqlite", "redis"), ("mongo", "redis")), indirect=True)
def test_a_worker_with_another_queue_on_the_same_storage_is_refused(
    stores: Mapping[str, object], processes: Processes
) -> None:
    processes.make("api", stores).start()
    worker = processes.make("worker", {**stores, "QUEUE": "sqlite"}, "-i", "other").start()

    assert worker.process is not None
    assert worker.process.wait(PATIENCE) == 2
    told = worker.log.read_text()
    assert "uses the queue redis, but this process QUEUE = sqlite: with two queues jobs could run twice" in told


def test_stores_of_a_third_party_plug_in_by_name(tmp_path: Path, processes: Processes) -> None:
    site = tmp_path / "site"
    about = site / "their_stores-1.2.dist-info"
    about.mkdir(parents=True)
    (site / "their_stores.py").write_text(THEIR_PLUGIN)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-stores\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text("[fastlane]\ntheirs = their_stores\n")
    settings = {"STORAGE": "theirs", "QUEUE": "theirs", "THEIR_FOLDER": str(tmp_path)}
    environment = {"PYTHONPATH": str(site)}

    api = processes.make("api", settings, environment=environment).start()
    processes.make("worker", settings, environment=environment).start()
    answer = api.submit("task", {"image": "none", "command": "echo done by theirs"})

    assert api.finished(answer)["status"] == "done"
    assert api.get(answer["jobUrl"] + "stdout")[1] == b"done by theirs\n"
    command = [sys.executable, "-m", "fastlane_core", "doctor", "-c", str(api.config)]
    paths = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert "theirs (their-stores 1.2)" in done.stdout
    assert "storage theirs: their storage: SQLite" in done.stdout
    assert "queue theirs: their queue: SQLite" in done.stdout
    assert (tmp_path / "storage.db").exists()
    assert (tmp_path / "queue.db").exists()
    without = processes.make("worker", {key: settings[key] for key in ("STORAGE", "QUEUE")}).start()
    assert without.process is not None
    assert without.process.wait(PATIENCE) == 2
    assert "STORAGE" in without.log.read_text()
    assert "theirs" in without.log.read_text()
