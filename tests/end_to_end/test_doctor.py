"""`fastlane doctor`: well or not, with servers up or down, and without changing anything."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pymongo
import pytest

from fastlane_core.app import open_application
from fastlane_core.builtin.sqlite.plugin import SqliteSettings
from fastlane_core.engine.presence import WORKERS_SCOPE
from fastlane_core.engine.submission import JobOrder, JobSubmission
from fastlane_core.models import Execution, RunSpec
from tests.end_to_end.service import PATIENCE, Service, until
from tests.services.clocks import WrongClock
from tests.services.redis_server import RedisServer


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    settings = {"RUNNERS": ["process"], "PROCESS_FOLDER": str(tmp_path / "engine"), "DEPLOYMENT_ID": "doctored"}
    service = Service(tmp_path, settings)
    yield service
    service.close()


def doctor(service: Service) -> tuple[int, Any]:
    """Exit code, and what was found."""
    done = _run(service, "--json")
    return done.returncode, json.loads(done.stdout)


def _run(service: Service, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastlane_core", "doctor", "-c", str(service.config), *options]
    return subprocess.run(command, check=False, cwd=service.folder, capture_output=True, text=True, timeout=PATIENCE)


def problems(report: Any) -> dict[str, str]:
    """The message of each problem, by its subject."""
    return {each["subject"]: each["message"] for each in report["findings"] if each["level"] == "problem"}


def test_a_fastlane_that_is_well_has_no_problem(service: Service) -> None:
    service.start()
    service.finished(service.submit("t", {"image": "none", "command": "true"}))
    until("the worker is listed", lambda: service.get_json("/status/")["workers"][0]["lanes"])
    code, report = doctor(service)

    assert (code, problems(report)) == (0, {})
    subjects = {each["subject"] for each in report["findings"]}
    assert {"storage sqlite", "queue sqlite", "disk of SQLite", f"API 127.0.0.1:{service.port}"} <= subjects
    assert {each["name"]: each["state"] for each in report["plugins"]}["sqlite"] == "loaded"
    assert report["fastlane"]
    assert report["python"]
    told = _run(service).stdout
    assert "ok      comparison: storage and queue agree on 0 unfinished executions" in told
    assert told.rstrip().endswith("No problem.")


def test_servers_that_are_down_are_told_and_everything_else_is_looked_at(service: Service) -> None:
    (service.folder / "file").touch()
    path = str(service.folder / "file/fastlane.db")
    service.config.write_text(f"SQLITE_PATH = {path!r}\nRUNNERS = ['process']\n")
    code, report = doctor(service)

    assert code == 1
    assert set(problems(report)) == {"storage sqlite", "queue sqlite"}
    assert "disk of SQLite" in {each["subject"] for each in report["findings"]}
    told = _run(service)
    assert "Traceback" not in told.stderr
    assert "-> See whether the server runs, and whether the settings of STORAGE lead to it." in told.stdout
    assert told.stdout.rstrip().endswith("2 problems, 1 warning.")


def contents(folder: Path) -> dict[str, bytes]:
    """All files, but for the memory that processes share while they have the database open."""
    return {
        str(each.relative_to(folder)): each.read_bytes()
        for each in folder.rglob("*")
        # An empty write-ahead log is as good as none: who only reads, and closes last, leaves it.
        if each.is_file() and each.suffix != ".db-shm" and not (each.suffix == ".db-wal" and not each.stat().st_size)
    }


async def test_sqlite_files_are_left_byte_for_byte(service: Service, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    copied = f"SQLITE_PATH = {str(copies / 'fastlane.db')!r}\nRUNNERS = ['process']\n"
    async with open_application(service.config, {}) as application:
        path = Path(application.settings.section(SqliteSettings).sqlite_path)
        await application.queue.rebuilt()
        # As a process leaves them that dies.
        for each in path.parent.glob(f"{path.name}*"):
            shutil.copy(each, copies / each.name.replace(path.name, "fastlane.db"))
    for config in (service.config.read_text(), copied):
        service.config.write_text(config)
        before = contents(tmp_path)
        code, report = doctor(service)
        assert (code, set(problems(report))) == (1, {"workers"})
        assert contents(tmp_path) == before


def test_a_database_that_is_not_there_is_told_and_not_made(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "fastlane.db"
    service.config.write_text(f"SQLITE_PATH = {str(path)!r}\nRUNNERS = ['process']\n")
    code, report = doctor(service)
    assert code == 1
    assert problems(report)["storage sqlite"] == f"there is no SQLite database {path} yet"
    assert not path.parent.exists()


async def test_tables_of_an_older_fastlane_are_told_and_not_brought_up_to_date(service: Service) -> None:
    async with open_application(service.config, {}) as application:
        path = Path(application.settings.section(SqliteSettings).sqlite_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE schema_versions SET version = 1 WHERE component = 'storage'")
    before = path.read_bytes()
    code, report = doctor(service)
    assert code == 1
    assert "has version 1 of the storage tables, and this Fastlane needs version" in problems(report)["storage sqlite"]
    assert path.read_bytes() == before


async def test_what_does_not_fit_is_found_and_left_as_it_is(service: Service) -> None:
    # A minute ago, so that nobody could think of a race.
    async with open_application(service.config, {}, clock=lambda: time.time() - 60) as application:
        await application.queue.rebuilt()
        submission = JobSubmission(
            application.storage, application.queue, application.routing, application.context.clock
        )
        executions = [await _submit(submission) for _ in range(5)]
        for execution in executions:
            await application.queue.cancel(execution.id)
        await _submit(submission)
        leases = await application.queue.claim(
            "process:local", worker="gone", capacity=5, limit=5, lease_seconds=PATIENCE
        )
        await application.queue.hand_over(leases)
    code, report = doctor(service)

    assert code == 1
    found = problems(report)
    assert found["missing_in_queue"].startswith("5 executions are missing in the queue: ")
    assert found["missing_in_queue"].endswith(", ...")
    assert found["workers"] == "none is running"
    warned = {each["subject"]: each["message"] for each in report["findings"] if each["level"] == "warning"}
    assert warned["lane process:local"] == "1 of 1 leases ran out or were handed over, and nobody has adopted them"
    async with open_application(service.config, {}) as application:
        assert await application.queue.contains([each.id for each in executions]) == frozenset()
        assert [await application.storage.get_execution(each.id) for each in executions] == executions


async def test_a_lane_that_no_worker_serves_and_a_second_machine_are_problems(service: Service) -> None:
    machine = {"boot": "other", "installation": "other", "host": "far", "pid_namespace": "pid:[1]"}
    # As by a clock that is behind, or from a process that has died since.
    at = time.time() - 20
    report = {"host": "far", "pid": 7, "version": "0.0.1", "at": at, "machine": machine, "queue": "sqlite"}
    async with open_application(service.config, {}) as application:
        await application.queue.rebuilt()
        submission = JobSubmission(
            application.storage, application.queue, application.routing, application.context.clock
        )
        await _submit(submission)
        await application.storage.put_state(
            WORKERS_SCOPE, "far-worker", {**report, "lanes": {}, "leftOut": ["monitor"]}, revision=None
        )
    code, told = doctor(service)

    assert code == 1
    found = problems(told)
    assert found["lane process:local"] == "1 wait and 0 are held, and no worker serves it"
    assert "STORAGE = sqlite and QUEUE = sqlite works within one machine only" in found["this machine"]
    assert found["workers"] == "none monitors"
    warned = {each["subject"]: each["message"] for each in told["findings"] if each["level"] == "warning"}
    assert warned["process 7 on far, Fastlane 0.0.1"].endswith("or the clock of its host is behind")


async def _submit(submission: JobSubmission) -> Execution:
    spec = RunSpec(image="none", command="true", timeout=60.0)
    submitted = await submission.submit(JobOrder(task_id="t", spec=spec))
    await submission.settled()
    assert submitted.execution is not None
    return submitted.execution


@pytest.mark.services
async def test_a_mongodb_is_left_as_it_is_with_what_is_missing_there(tmp_path: Path, mongo_url: str) -> None:
    name = f"fastlane_{uuid.uuid4().hex}"
    url = urlsplit(mongo_url)._replace(path=f"/{name}").geturl()
    service = Service(tmp_path, {"RUNNERS": ["process"], "STORAGE": "mongo", "MONGODB_URL": url})
    with pymongo.MongoClient[dict[str, Any]](mongo_url, timeoutMS=60_000) as client:
        database = client[name]
        _, report = await asyncio.to_thread(doctor, service)
        assert problems(report)["storage mongo"].endswith("holds nothing of Fastlane yet")
        assert database.list_collection_names() == []

        async with open_application(service.config, {}) as application:
            await application.storage.health()
        database["jobs"].drop_index("unsettled_1")
        state = list(database["state"].find())
        _, report = await asyncio.to_thread(doctor, service)
        told = problems(report)[f"indexes of the database {name}"]
        assert told == "are missing, so queries read whole collections: jobs.unsettled_1"
        assert "unsettled_1" not in database["jobs"].index_information()
        assert list(database["state"].find()) == state
        client.drop_database(name)


@pytest.mark.services
async def test_servers_of_other_stores_are_looked_at_and_their_clocks_compared(
    tmp_path: Path, mongo_url: str, redis_server: RedisServer
) -> None:
    mongo = urlsplit(mongo_url)
    if mongo.scheme != "mongodb" or "," in mongo.netloc or "tls=true" in mongo.query:
        pytest.skip("the server that MONGODB_URL names cannot be reached through a proxy that changes its answers")
    user, at, _ = mongo.netloc.rpartition("@")
    options = [each for each in mongo.query.split("&") if each.partition("=")[0] in ("authSource", "authMechanism")]
    query = "&".join([*options, "directConnection=true"])
    database = f"fastlane_{uuid.uuid4().hex}"
    with (
        WrongClock(mongo.port or 27_017, 90, mongo.hostname or "") as behind_mongo,
        WrongClock(redis_server.port, -70) as behind_redis,
    ):
        settings = {
            "RUNNERS": ["process"],
            "STORAGE": "mongo",
            "QUEUE": "redis",
            "MONGODB_URL": f"mongodb://{user}{at}127.0.0.1:{behind_mongo.port}/{database}?{query}",
            "REDIS_URL": f"redis://127.0.0.1:{behind_redis.port}",
        }
        service = Service(tmp_path, settings)
        async with open_application(service.config, {}):
            pass
        _, report = await asyncio.to_thread(doctor, service)
    with pymongo.MongoClient[dict[str, Any]](mongo_url, timeoutMS=60_000) as client:
        client.drop_database(database)

    told = {f"{each['subject']}: {each['message']}" for each in report["findings"]}
    warned = {each["subject"]: each["message"] for each in report["findings"] if each["level"] == "warning"}
    assert warned["storage mongo"] in {f"its clock differs by {seconds} s from this machine's" for seconds in (89, 90)}
    assert warned["queue redis"] in {f"its clock differs by {seconds} s from this machine's" for seconds in (69, 70)}
    assert f"indexes of the database {database}: are there" in told
    assert any(each.startswith(f"Redis 127.0.0.1:{behind_redis.port}: answers: Redis ") for each in told)
