"""What `fastlane doctor` is told of MongoDB: well, down, or without its indexes."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pymongo
import pytest

from fastlane_core.builtin.mongo import checks
from fastlane_core.builtin.mongo.plugin import fastlane_checks
from fastlane_core.builtin.mongo.server import MongoServer
from fastlane_core.builtin.mongo.settings import MongoSettings
from fastlane_core.builtin.mongo.storage import MongoStorage
from fastlane_core.hookspecs import CheckContext, Finding
from fastlane_core.testing.runner_context import GivenSettings
from tests.services.ports import free_port

pytestmark = pytest.mark.services


@pytest.fixture
def database(mongo_url: str) -> Iterator[str]:
    """Name of one that is not there yet."""
    name = f"fastlane_{uuid.uuid4().hex}"
    yield name
    with pymongo.MongoClient[dict[str, Any]](mongo_url, timeoutMS=60_000) as client:
        client.drop_database(name)


async def check(url: str, database: str = "fastlane", *, storage: str = "mongo") -> Sequence[Finding]:
    settings = MongoSettings.model_validate({"mongodb_config": {"host": url, "db": database}})
    context = CheckContext(
        settings=GivenSettings(settings),
        deployment_id="d",
        api_bind=None,
        clock=time.time,
        storage=storage,
        queue="sqlite",
        runners=(),
    )
    return await fastlane_checks(context)


async def test_a_server_with_all_indexes_is_well(mongo_url: str, database: str) -> None:
    storage = MongoStorage(MongoServer(url=mongo_url, database=database), timeout=60.0)
    await storage.open()
    await storage.close()

    findings = await check(mongo_url, database)

    assert {each.level for each in findings} == {"ok"}
    told = {each.subject: each.message for each in findings}
    assert told[f"indexes of the database {database}"] == "are there"
    assert any(each.message.startswith("is version ") for each in findings)


async def test_a_database_that_is_not_there_lacks_nothing(mongo_url: str, database: str) -> None:
    assert {each.level for each in await check(mongo_url, database)} == {"ok"}


async def test_an_index_that_was_dropped_is_a_problem(mongo_url: str, database: str) -> None:
    storage = MongoStorage(MongoServer(url=mongo_url, database=database), timeout=60.0)
    await storage.open()
    await storage.close()
    with pymongo.MongoClient[dict[str, Any]](mongo_url, timeoutMS=60_000) as client:
        client[database]["executions"].drop_index("unfinished_1")

    (finding,) = [each for each in await check(mongo_url, database) if each.level != "ok"]

    assert finding.level == "problem"
    assert finding.message.endswith(": executions.unfinished_1")
    assert "start one" in finding.advice


async def test_a_server_that_is_down_is_a_problem_that_tells_no_password() -> None:
    port = free_port()

    (finding,) = await check(f"mongodb://me:hush@127.0.0.1:{port}/?serverSelectionTimeoutMS=300")

    assert (finding.level, finding.subject) == ("problem", f"MongoDB at 127.0.0.1:{port}")
    assert "hush" not in finding.message


async def test_nothing_is_asked_where_the_storage_is_another() -> None:
    assert list(await check(f"mongodb://127.0.0.1:{free_port()}/", storage="sqlite")) == []


@pytest.mark.parametrize(
    ("hello", "level", "told"),
    [
        ({}, "ok", "standalone"),
        ({"msg": "isdbgrid"}, "warning", "sharded cluster"),
        ({"setName": "rs", "hosts": ["a", "b"]}, "warning", "has 2 members"),
        ({"setName": "rs", "hosts": ["a", "b"], "arbiters": ["c"], "primary": "a"}, "ok", "primary: a"),
    ],
)
def test_topologies_are_judged(hello: dict[str, Any], level: str, told: str) -> None:
    (finding,) = checks.judge_topology("MongoDB", hello)

    assert finding.level == level
    assert told in finding.message


def test_members_that_are_not_well_and_old_versions_are_told() -> None:
    members = [
        {"name": "a:1", "stateStr": "PRIMARY", "health": 1.0},
        {"name": "b:1", "stateStr": "(not reachable/healthy)", "health": 0.0},
        {"name": "c:1", "stateStr": "RECOVERING", "health": 1.0},
    ]

    assert [each.subject for each in checks.judge_members("MongoDB", {"members": members})] == [
        "MongoDB member b:1",
        "MongoDB member c:1",
    ]
    assert checks.judge_version("MongoDB", "4.2.24").level == "problem"
    assert checks.judge_version("MongoDB", "4.4.0").level == "ok"


def test_a_disk_that_is_nearly_full_is_told() -> None:
    (finding,) = checks.judge_room("MongoDB", {"fsTotalSize": 2.0**40, "fsUsedSize": 2.0**40 - 2**28})

    assert (finding.level, "0.2 GiB" in finding.message) == ("warning", True)
    assert checks.judge_room("MongoDB", {"fsTotalSize": 2.0**40, "fsUsedSize": 2.0**39}) == []
