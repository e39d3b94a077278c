"""Where MongoDB is: as a URL or as a table, checked at the start, and told without its password."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fastlane_core.builtin.mongo.plugin import fastlane_settings
from fastlane_core.builtin.mongo.server import MongoServer
from fastlane_core.builtin.mongo.settings import MongoSettings
from fastlane_core.errors import SettingsError
from fastlane_core.settings import Settings
from fastlane_core.settings.rendering import render

_WITHOUT_DRIVER = """
import asyncio, sys

class NoDriver:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pymongo", "bson"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoDriver())

from fastlane_core.app import open_application
from fastlane_core.errors import PluginError

async def main(storage):
    try:
        async with open_application(None, {}, overrides={"STORAGE": storage, "RUNNERS": "process"}):
            print("open")
    except PluginError as error:
        print(error)

asyncio.run(main(sys.argv[1]))
"""


def load(**environment: str) -> MongoSettings:
    return Settings.load(fastlane_settings(), path=None, environment=environment).section(MongoSettings)


def refused(**environment: str) -> str:
    with pytest.raises(SettingsError) as refusal:
        load(**environment)
    assert "hunter2" not in str(refusal.value)
    return str(refusal.value)


def table(**values: object) -> str:
    return json.dumps(values)


def test_without_settings_it_is_where_the_first_fastlane_had_it() -> None:
    assert load().connection() == ("mongodb://localhost:10101/fastlane", "fastlane", {})


@pytest.mark.parametrize(
    ("url", "database"),
    [
        ("mongodb://host", "fastlane"),
        ("mongodb://host/", "fastlane"),
        ("mongodb://user:p%40ss@h1:1,h2:2/jobs?replicaSet=rs0&tls=true", "jobs"),
        ("mongodb+srv://user:pass@cluster.example/jobs", "jobs"),
        ("mongodb://[::1]:27017/jobs", "jobs"),
    ],
)
def test_a_url_names_servers_and_database(url: str, database: str) -> None:
    assert load(FASTLANE_MONGODB_URL=url).connection() == (url, database, {})


def test_the_table_of_the_first_fastlane_is_taken_by_its_bare_name() -> None:
    config = table(host="mongodb://localhost:10101/fastlane", db="other", serverSelectionTimeoutMS=100, connect=False)

    settings = load(MONGODB_CONFIG=config)

    assert settings.connection() == (
        "mongodb://localhost:10101/fastlane",
        "other",
        {"serverSelectionTimeoutMS": 100},
    )


def test_the_table_may_name_hosts_instead_of_a_url() -> None:
    one = table(host="mongo", port=27018, username="app", password="hunter2", authSource="admin")
    several = table(host=["a:1", "b:2"], db="jobs", replicaSet="rs0")

    assert load(MONGODB_CONFIG=one).connection() == (
        "mongodb://mongo:27018/",
        "fastlane",
        {"username": "app", "password": "hunter2", "authSource": "admin"},
    )
    assert load(FASTLANE_MONGODB_CONFIG=several).connection() == ("mongodb://a:1,b:2/", "jobs", {"replicaSet": "rs0"})


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://app:hunter2@host",
        "mongodb://",
        "mongodb://app:hunter2@",
        "mongodb://app:hun/ter2@host/db",
        "mongodb://app:hunter2@x@host/db",
        "mongodb://app:hunter2@host:99999/db",
        "mongodb://app:hunter2@[host/db",
        "mongodb://host/a.b",
        "mongodb://host/db?noSuchOption=hunter2",
        "mongodb://host/db?tlsCAFile=/nowhere/hunter2&tls=true",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_being_told(url: str) -> None:
    message = refused(FASTLANE_MONGODB_URL=url)

    assert "MONGODB_URL" in message
    assert "mongodb://host:27017/database" in message


@pytest.mark.parametrize(
    "config",
    [
        "hunter2",
        table(host=[]),
        table(host="mongodb://app:hunter2@x@host"),
        table(host="app:hunter2@host"),
        table(host="mongo", port=0),
        table(host="mongo", password={"hunter2": 1}),
        table(host="mongo", noSuchOption=1),
        table(host="mongo", serverSelectionTimeoutMS="soon"),
        table(host="mongo", replicaSet={"a": "b"}),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(config: str) -> None:
    assert "MONGODB_CONFIG" in refused(MONGODB_CONFIG=config)


def test_url_and_table_together_are_refused() -> None:
    message = refused(FASTLANE_MONGODB_URL="mongodb://host", MONGODB_CONFIG=table(host="mongo"))

    assert "MONGODB_URL and MONGODB_CONFIG" in message


def test_no_password_is_shown() -> None:
    by_url = load(FASTLANE_MONGODB_URL="mongodb://app:hunter2@host1,host2/jobs")
    by_table = load(MONGODB_CONFIG=table(host="mongodb://app:hunter2@host", username="app", password="hunter2"))
    server = MongoServer(url="mongodb://app:hunter2@host1,host2/jobs", database="jobs", options={"password": "hunter2"})

    assert server.address == "host1,host2"
    for shown in (repr(by_url), repr(by_table), by_table.model_dump_json(), repr(server)):
        assert "hunter2" not in shown


def test_the_printed_settings_load_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "fastlane.conf"
    lines = render(fastlane_settings()).splitlines()
    file.write_text("\n".join(line.removeprefix("#") for line in lines))

    settings = Settings.load(fastlane_settings(), path=file, environment={}).section(MongoSettings)

    assert settings.connection() == load().connection()


@pytest.mark.parametrize("storage", ["sqlite", "mongo"])
def test_only_who_chooses_mongodb_needs_its_driver(storage: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_DRIVER, storage],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    if storage == "sqlite":
        assert "open" in done.stdout
    else:
        assert "pip install 'fastlane-core[mongo]'" in done.stdout
        assert "STORAGE" in done.stdout
