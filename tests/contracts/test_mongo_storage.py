"""The storage suite over MongoDB."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pymongo
import pytest

from fastlane_core.builtin.mongo.server import MongoServer
from fastlane_core.builtin.mongo.storage import MongoStorage
from fastlane_core.testing.storage_fixtures import BuildStorage
from fastlane_core.testing.storage_suite import StorageSuite

pytestmark = pytest.mark.services


class TestMongoStorage(StorageSuite):
    """Everything over one server, each test in a database of its own."""

    @pytest.fixture
    def build_storage(self, mongo_url: str) -> Iterator[BuildStorage]:
        server = MongoServer(url=mongo_url, database=f"fastlane_{uuid.uuid4().hex}")
        yield lambda: MongoStorage(server, timeout=60.0)
        with pymongo.MongoClient[dict[str, object]](mongo_url, timeoutMS=60_000) as client:
            client.drop_database(server.database)
