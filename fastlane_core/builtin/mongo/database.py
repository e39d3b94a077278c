"""The connection to MongoDB: one client per storage, bound to the event loop that opens it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pymongo
from pymongo import AsyncMongoClient, IndexModel, ReadPreference, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.read_concern import ReadConcern

from fastlane_core.builtin.mongo.documents import Document
from fastlane_core.builtin.mongo.server import MongoServer
from fastlane_core.builtin.mongo.trouble import explain, is_outage
from fastlane_core.errors import SchemaNotReady, SchemaTooNew, StorageUnavailable

#: Grows when older versions of Fastlane could not work with what is stored any more.
SCHEMA_VERSION = 1
#: Indexes of a big database that a newer Fastlane adds take their time.
_INDEX_SECONDS = 600.0
_CLOSE_SECONDS = 1.0

#: By collection.
INDEXES: Mapping[str, list[IndexModel]] = {
    "tasks": [
        IndexModel([("number", 1)], unique=True),
        IndexModel([("words", 1)]),
        IndexModel([("unsettled", 1)]),
        IndexModel([("limited", 1)], sparse=True),
    ],
    "jobs": [
        IndexModel([("task", 1), ("modified_at", -1), ("_id", -1)]),
        IndexModel([("unsettled", 1)]),
        IndexModel([("due_at", 1), ("_id", 1)], sparse=True),
    ],
    "executions": [
        IndexModel([("job", 1), ("created_at", -1), ("_id", -1)]),
        IndexModel([("unfinished", 1)], sparse=True),
        IndexModel([("job", 1), ("unfinished", 1)]),
        IndexModel([("owes_at", 1)], sparse=True),
        IndexModel([("removable_at", 1)], sparse=True),
        IndexModel([("failed_at", -1), ("_id", -1)], sparse=True),
        IndexModel([("failed_task", 1), ("failed_at", -1), ("_id", -1)], sparse=True),
    ],
    "log_chunks": [
        IndexModel([("execution", 1), ("last", 1)]),
        IndexModel([("execution", 1), ("stdout", 1)]),
        IndexModel([("execution", 1), ("stderr", 1)]),
    ],
    "log_parts": [IndexModel([("execution", 1)])],
    "state": [IndexModel([("scope", 1)])],
}


class Collection:
    """A collection, once for writes that are durable when they return, and once for those that need not be yet."""

    def __init__(self, collection: AsyncCollection[Document]) -> None:
        primary = collection.with_options(
            read_preference=ReadPreference.PRIMARY, read_concern=ReadConcern("local"), write_concern=WriteConcern(1)
        )
        #: On disk of a majority of the servers.
        self.durable = primary.with_options(write_concern=WriteConcern("majority", j=True))
        #: Lost by a crash only together with everything that was written after it.
        self.quick = primary


class Collections:
    """What is stored, by kind."""

    def __init__(self, client: AsyncMongoClient[Document], name: str) -> None:
        database = client[name]
        self.tasks = Collection(database["tasks"])
        self.jobs = Collection(database["jobs"])
        #: Idempotency keys.
        self.keys = Collection(database["submission_keys"])
        self.executions = Collection(database["executions"])
        self.logs = Collection(database["log_chunks"])
        self.log_parts = Collection(database["log_parts"])
        self.state = Collection(database["state"])
        self.schema = Collection(database["schema"])
        #: Tasks are made one after the other, since each gets the next number.
        self.making_tasks = asyncio.Lock()


@dataclass(slots=True)
class Database:
    """The servers, and the time that one call may take."""

    server: MongoServer
    timeout: float
    _client: AsyncMongoClient[Document] | None = field(default=None, init=False)
    _collections: Collections | None = field(default=None, init=False)
    #: Whether nothing is to be changed.
    only_looks: bool = field(default=False, init=False)

    async def open(self, *, only_look: bool = False) -> None:
        """Connect, and make what is missing. Raises StorageUnavailable, SchemaTooNew.

        Makes nothing if it is `only_look`ed at, and raises SchemaNotReady where nothing is stored.
        """
        if self._client is not None:
            return
        self._client = client = self.server.client()
        self._collections = collections = Collections(client, self.server.database)
        self.only_looks = only_look
        try:
            with self.call():
                await client.admin.command("ping")
                await self._check_version(collections)
            if not only_look:
                with self.call(_INDEX_SECONDS):
                    await self._make_indexes(client)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connections; no error if there are none."""
        client, self._client, self._collections = self._client, None, None
        if client is not None:
            # It tells the servers, and would wait for them half a minute if they are gone.
            with pymongo.timeout(_CLOSE_SECONDS):
                await client.close()

    async def health(self) -> str:
        """Version and topology of the servers. Raises StorageUnavailable."""
        with self.call():
            client = self._used()
            hello = await client.admin.command("hello")
            version = (await client.server_info())["version"]
        if hello.get("msg") == "isdbgrid":
            topology = "sharded cluster"
        elif name := hello.get("setName"):
            topology = f"replica set {name} of {len(hello.get('hosts', ()))}, primary {hello.get('me')}"
        else:
            topology = "standalone"
        return f"MongoDB {version} at {self.server.address}, {topology}, database {self.server.database}"

    async def clock(self) -> float:
        """The time by the server that takes writes, as Unix time. Raises StorageUnavailable."""
        with self.call():
            hello = await self._used().admin.command("hello")
        return float(hello["localTime"].timestamp())

    @contextmanager
    def call(self, timeout: float | None = None) -> Iterator[Collections]:
        """The collections, for operations that take `timeout` seconds (the call's time) at most together.

        What the driver raises because of the servers is raised as StorageUnavailable.
        """
        self._used()
        assert self._collections is not None
        task = asyncio.current_task()
        cancellations = task.cancelling() if task is not None else 0
        try:
            with pymongo.timeout(self.timeout if timeout is None else timeout):
                yield self._collections
        except PyMongoError as error:
            if is_outage(error):
                raise StorageUnavailable(explain(error, self.server.address)) from error
            raise
        finally:
            # The driver sends with asyncio.wait_for, which may drop a cancellation before Python 3.12.
            if task is not None and task.cancelling() > cancellations:
                raise asyncio.CancelledError

    def _used(self) -> AsyncMongoClient[Document]:
        if self._client is None:
            raise StorageUnavailable(f"the MongoDB at {self.server.address} is not open")
        return self._client

    async def _make_indexes(self, client: AsyncMongoClient[Document]) -> None:
        for name, indexes in INDEXES.items():
            collection = client[self.server.database][name]
            for index in indexes:
                # One by one: FerretDB 1.24 may crash over several of which some exist.
                await collection.create_indexes([index])

    async def _check_version(self, collections: Collections) -> None:
        while True:
            found = await collections.schema.durable.find_one({"_id": "storage"})
            if found is not None:
                break
            if self.only_looks:
                raise SchemaNotReady(
                    f"the MongoDB database {self.server.database} at {self.server.address} holds nothing of Fastlane "
                    "yet"
                )
            try:
                await collections.schema.durable.insert_one({"_id": "storage", "version": SCHEMA_VERSION})
            except DuplicateKeyError:
                continue
        if found["version"] > SCHEMA_VERSION:
            raise SchemaTooNew(
                f"the MongoDB database {self.server.database} at {self.server.address} has version "
                f"{found['version']} of the storage, and this Fastlane knows versions up to {SCHEMA_VERSION}: install "
                "the newer Fastlane that wrote it, or use another database"
            )
