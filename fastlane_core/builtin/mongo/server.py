"""Which servers are used, and how the driver reaches them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pymongo import AsyncMongoClient

from fastlane_core.builtin.mongo.documents import Document


@dataclass(frozen=True, kw_only=True, slots=True)
class MongoServer:
    """A standalone server, or a replica set."""

    #: As the driver takes it, with the password.
    url: str = field(repr=False)
    #: Name of the database.
    database: str
    #: The driver's own options beside those of the URL.
    options: Mapping[str, object] = field(default_factory=dict, repr=False)

    @property
    def address(self) -> str:
        """For people: without user and password."""
        return self.url.partition("://")[2].partition("/")[0].rpartition("@")[2]

    def client(self) -> AsyncMongoClient[Document]:
        """A client that has not connected yet. Raises ValueError, TypeError, PyMongoError for what it cannot use."""
        options: dict[str, Any] = {"appname": "fastlane", "tz_aware": True, **self.options}
        return AsyncMongoClient[Document](self.url, **options)
