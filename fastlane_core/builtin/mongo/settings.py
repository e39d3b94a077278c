"""Settings of the MongoDB storage. They are checked without the driver too, which is only there where it is used."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

_DEFAULT_URL = "mongodb://localhost:10101/fastlane"
_DATABASE = "fastlane"
_SCHEMES = ("mongodb://", "mongodb+srv://")
_EXPECTED = (
    "expected mongodb://host:27017/database, with user:password and an @ before the host if it wants them; what is no "
    "letter, digit or -._~ in these is written as %XX"
)
#: A value of the driver's options.
_Option = bool | int | float | str | None


def _as_urls(value: object) -> object:
    return [value] if isinstance(value, str) else value


class MongoConfig(BaseModel):
    """The table that the first Fastlane had: where the server is, and any options of MongoDB's driver beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, _Option] = Field(init=False)

    #: A URL, or `host` or `host:port` of each server.
    host: Annotated[list[SecretStr], BeforeValidator(_as_urls), Field(min_length=1)] = [SecretStr(_DEFAULT_URL)]
    port: int | None = Field(default=None, ge=1, le=65_535)
    #: Name of the database; without it that of the URL, or "fastlane".
    db: str = ""
    username: str | None = None
    password: SecretStr | None = None
    #: Taken as the first Fastlane did, and without a meaning: the storage connects when it is opened.
    connect: bool = False

    def connection(self) -> tuple[str, str, dict[str, object]]:
        """URL, database and options for the driver. Raises ValueError."""
        hosts = [host.get_secret_value() for host in self.host]
        given = {"username": self.username, "password": self.password and self.password.get_secret_value()}
        options: dict[str, object] = {name: value for name, value in given.items() if value is not None}
        options |= self.__pydantic_extra__
        if len(hosts) == 1 and "://" in hosts[0]:
            url, database = _checked(hosts[0])
            return url, self.db or database, options
        names = [f"{host}:{self.port}" if self.port and ":" not in host else host for host in hosts]
        if any(not name or set(name) & set("/@?#% ") for name in names):
            raise ValueError("expected a URL, or names of hosts with or without a port, as `host`")
        return f"mongodb://{','.join(names)}/", self.db or _DATABASE, options


class MongoSettings(BaseModel):
    """Settings of the MongoDB storage."""

    mongodb_url: SecretStr = Field(
        SecretStr(_DEFAULT_URL),
        description="URL of the MongoDB server, or of the members of its replica set, with the name of the database: "
        "mongodb://user:password@host1:27017,host2:27017/fastlane?replicaSet=rs0&tls=true.",
    )
    mongodb_config: MongoConfig | None = Field(
        None,
        description="The same as a table, for those who would rather: host (a URL or names of hosts), port, db, "
        "username, password, and any option of MongoDB's Python driver, like serverSelectionTimeoutMS.",
    )
    mongodb_timeout_seconds: float = Field(
        10.0,
        ge=0.1,
        le=600,
        description="Seconds after which one call of the MongoDB storage fails that has no answer.",
    )

    def connection(self) -> tuple[str, str, Mapping[str, object]]:
        """URL, database and options for the driver. Raises ValueError."""
        if self.mongodb_config is not None:
            return self.mongodb_config.connection()
        return *_checked(self.mongodb_url.get_secret_value()), {}

    @model_validator(mode="after")
    def _can_be_used(self) -> MongoSettings:
        given = {"mongodb_url", "mongodb_config"} & self.model_fields_set
        if len(given) == 2 and self.mongodb_config is not None:
            raise ValueError("MONGODB_URL and MONGODB_CONFIG are both set: remove one of them")
        for key in given:
            try:
                refusal = _refusal(*self.connection())
            except ValueError as error:
                refusal = str(error)
            if refusal:
                raise ValueError(f"{key.upper()}: {refusal}")
        return self


def _checked(url: str) -> tuple[str, str]:
    """The URL, and the database that it names. Raises ValueError, which does not quote it."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(_EXPECTED) from None
    database = unquote(parts.path.lstrip("/"))
    if not url.startswith(_SCHEMES) or not parts.netloc.rpartition("@")[2] or set(database) & set('/\\. "$\x00'):
        raise ValueError(_EXPECTED)
    return url, database or _DATABASE


def _refusal(url: str, database: str, options: Mapping[str, object]) -> str:
    """Why the driver does not take them, without quoting any; "" if it does, or is not installed."""
    try:
        from pymongo.errors import PyMongoError

        from fastlane_core.builtin.mongo.server import MongoServer
    except ModuleNotFoundError:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            MongoServer(url=url, database=database, options=options).client()
        except (PyMongoError, ValueError, TypeError, OSError, UserWarning) as error:
            reason = str(error).partition(". ")[0]
            # What it quotes may be part of a password that was not written as it has to be.
            return _EXPECTED if any(quote in reason for quote in "'\"") else f"{reason}; {_EXPECTED}"
    return ""
