"""What `fastlane doctor` is told of MongoDB beyond whether it answers: version, members, indexes, room."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pymongo
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from fastlane_core.builtin.mongo.database import INDEXES
from fastlane_core.builtin.mongo.documents import Document
from fastlane_core.builtin.mongo.server import MongoServer
from fastlane_core.builtin.mongo.trouble import explain
from fastlane_core.hookspecs import Finding, Level

#: The oldest server whose operations these are.
_OLDEST: Final = (4, 4)
#: Members of a replica set of which one may be gone while a majority is left.
_SAFE_MEMBERS: Final = 3
#: Seconds that all calls may take together, and in which a process that is starting makes an index.
_SECONDS: Final = 10.0
_MAKING_SECONDS: Final = 2.0
#: Bytes of free disk under which it is warned.
_LITTLE_BYTES: Final = 2**30
#: What the server answers where the user may not ask, or where it does not know the question.
_NOT_TOLD: Final = frozenset({13, 59, 115, 238})


async def check_servers(server: MongoServer) -> Sequence[Finding]:
    """Findings about the servers and the database."""
    subject = f"MongoDB at {server.address}"
    client = server.client()
    try:
        with pymongo.timeout(_SECONDS):
            hello: Mapping[str, Any] = await client.admin.command("hello")
            version = str((await client.server_info())["version"])
            return [
                judge_version(subject, version),
                *judge_topology(subject, hello),
                *(judge_members(subject, await _ask(client, "replSetGetStatus")) if hello.get("setName") else ()),
                *await _check_indexes(client, server.database),
                *judge_room(subject, await _ask(client, "dbStats", database=server.database)),
            ]
    except PyMongoError as error:
        advice = "See whether the servers run, and whether MONGODB_URL or MONGODB_CONFIG lead to them."
        message = explain(error, server.address)
        return [Finding(level=Level.PROBLEM, subject=subject, message=message, advice=advice)]
    finally:
        with pymongo.timeout(1.0):
            await client.close()


def judge_version(subject: str, version: str) -> Finding:
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        needed = ".".join(map(str, _OLDEST))
        advice = f"Bring it to {needed} or newer before anything is stored there."
        message = f"is version {version}, and Fastlane needs {needed}"
        return Finding(level=Level.PROBLEM, subject=subject, message=message, advice=advice)
    return Finding(level=Level.OK, subject=subject, message=f"is version {version}")


def judge_topology(subject: str, hello: Mapping[str, Any]) -> Sequence[Finding]:
    if hello.get("msg") == "isdbgrid":
        message = "is a sharded cluster, which Fastlane was not made for"
        advice = "Use a replica set: its collections are not sharded, so other shards would serve nothing."
        return [Finding(level=Level.WARNING, subject=subject, message=message, advice=advice)]
    if not hello.get("setName"):
        message = "is a standalone server: what it acknowledged is on its own disk alone"
        return [Finding(level=Level.OK, subject=subject, message=message)]
    members = sum(len(hello.get(kind, ())) for kind in ("hosts", "passives", "arbiters"))
    name = f"replica set {hello['setName']}"
    if members < _SAFE_MEMBERS:
        message = f"the {name} has {members} members: when one is down, there is no majority and nothing is accepted"
        advice = f"Add members until there are {_SAFE_MEMBERS}."
        return [Finding(level=Level.WARNING, subject=subject, message=message, advice=advice)]
    primary = hello.get("primary") or "none now"
    message = f"the {name} has {members} members, primary: {primary}"
    return [Finding(level=Level.OK, subject=subject, message=message)]


def judge_members(subject: str, status: Mapping[str, Any] | None) -> Sequence[Finding]:
    if status is None:
        message = "does not tell this user how the members of its replica set are"
        advice = "Give the user the role clusterMonitor on the database admin, if you want to see it here."
        return [Finding(level=Level.OK, subject=subject, message=message, advice=advice)]
    found: list[Finding] = []
    for member in status["members"]:
        state = str(member.get("stateStr"))
        if state not in ("PRIMARY", "SECONDARY", "ARBITER") or member.get("health") == 0:
            message = f"is {state}"
            advice = "See why: without a majority of its members the replica set accepts nothing."
            name = f"MongoDB member {member.get('name')}"
            found.append(Finding(level=Level.WARNING, subject=name, message=message, advice=advice))
    return found


async def _check_indexes(client: AsyncMongoClient[Document], database: str) -> Sequence[Finding]:
    subject = f"indexes of the database {database}"
    missing = await _missing_indexes(client, database)
    if missing:
        # Another process may be making them.
        await asyncio.sleep(_MAKING_SECONDS)
        missing = await _missing_indexes(client, database)
    if not missing:
        return [Finding(level=Level.OK, subject=subject, message="are there")]
    message = f"are missing, so queries read whole collections: {', '.join(missing)}"
    advice = "They are made when a process of Fastlane starts: start one, with a user who may do that (readWrite)."
    return [Finding(level=Level.PROBLEM, subject=subject, message=message, advice=advice)]


async def _missing_indexes(client: AsyncMongoClient[Document], database: str) -> Sequence[str]:
    """Those of collections that are there; nothing needs any where nothing is."""
    missing: list[str] = []
    made = set(await client[database].list_collection_names())
    for collection, indexes in INDEXES.items():
        if collection in made:
            known = await client[database][collection].index_information()
            names = [str(index.document["name"]) for index in indexes]
            missing += [f"{collection}.{name}" for name in names if name not in known]
    return missing


def judge_room(subject: str, stats: Mapping[str, Any] | None) -> Sequence[Finding]:
    # Not every server tells the size of its disk.
    if stats is None or not stats.get("fsTotalSize"):
        return []
    free = float(stats["fsTotalSize"]) - float(stats["fsUsedSize"])
    if free >= _LITTLE_BYTES:
        return []
    message = f"only {free / 2**30:.1f} GiB are free on its disk"
    advice = "Make room, or set KEEP_FINISHED_DAYS: when the disk is full, no job is accepted."
    return [Finding(level=Level.WARNING, subject=subject, message=message, advice=advice)]


async def _ask(
    client: AsyncMongoClient[Document], command: str, *, database: str = "admin"
) -> Mapping[str, Any] | None:
    """The answer to a command; None where the server does not tell."""
    try:
        answer: Mapping[str, Any] = await client[database].command(command)
    except OperationFailure as error:
        if error.code in _NOT_TOLD:
            return None
        raise
    return answer
