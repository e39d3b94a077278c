"""REDIS_URL in all its forms, and what is said of those that cannot be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastlane_core.builtin.redis import plugin
from fastlane_core.builtin.redis.url import RedisAddress, Topology, parse_redis_url
from fastlane_core.errors import SettingsError
from fastlane_core.settings import Settings

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://host", RedisAddress(topology=Topology.SINGLE, hosts=(("host", 6379),))),
        (
            "redis://:p%40ss@[::1]:7000/3",
            RedisAddress(topology=Topology.SINGLE, hosts=(("::1", 7000),), database=3, password="p@ss"),
        ),
        (
            "rediss://user:secret@host:1/0",
            RedisAddress(topology=Topology.SINGLE, hosts=(("host", 1),), tls=True, username="user", password="secret"),
        ),
        (
            "unix://user:secret@/run/redis%20x.sock?db=2",
            RedisAddress(
                topology=Topology.SINGLE, path="/run/redis x.sock", database=2, username="user", password="secret"
            ),
        ),
        (
            "redis+sentinel://user:secret@a:1,b:2,c/4?master=the-master",
            RedisAddress(
                topology=Topology.SENTINEL,
                hosts=(("a", 1), ("b", 2), ("c", 26379)),
                database=4,
                username="user",
                password="secret",
                master="the-master",
            ),
        ),
        (
            "rediss+sentinel://a/?master=m",
            RedisAddress(topology=Topology.SENTINEL, hosts=(("a", 26379),), tls=True, master="m"),
        ),
        (
            "redis+cluster://:secret@a:1,b:2",
            RedisAddress(topology=Topology.CLUSTER, hosts=(("a", 1), ("b", 2)), password="secret"),
        ),
        ("rediss+cluster://a", RedisAddress(topology=Topology.CLUSTER, hosts=(("a", 6379),), tls=True)),
    ],
)
def test_every_form_of_url_is_understood(url: str, address: RedisAddress) -> None:
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (f"http://:{SECRET}@host", "redis+sentinel://"),
        ("host:6379", "redis://"),
        (f"redis://{SECRET}@host", ":password"),
        (f"redis://:{SECRET}#@host", "%2F"),
        (f"redis://:{SECRET}@a,b", "takes one"),
        (f"redis://:{SECRET}@host/zero", "database"),
        (f"redis://:{SECRET}@host:0", "port"),
        (f"redis://:{SECRET}@host:x", "name:port"),
        ("redis://", "name:port"),
        (f"redis://host?password={SECRET}", "expected none"),
        (f"redis+sentinel://:{SECRET}@a:1", "master="),
        (f"redis+sentinel://:{SECRET}@a:1?master=m&sentinel_password={SECRET}", "only master"),
        (f"redis+cluster://:{SECRET}@a:1/1", "database 0"),
        (f"unix://:{SECRET}@socket", "path of a socket"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_its_secrets(url: str, told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({"FASTLANE_REDIS_URL": url})

    assert "FASTLANE_REDIS_URL: REDIS_URL: " in str(refused.value)
    assert told in str(refused.value)
    assert SECRET not in str(refused.value)


def test_the_bare_name_of_the_first_fastlane_is_read() -> None:
    settings = load({"REDIS_URL": "redis://elsewhere:1/1"}).section(plugin.RedisSettings)

    assert settings.redis_url == "redis://elsewhere:1/1"


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        (
            {"FASTLANE_REDIS_URL": "rediss://a", "FASTLANE_REDIS_CA_FILE": "/nowhere/ca.pem"},
            "REDIS_CA_FILE: there is no",
        ),
        ({"FASTLANE_REDIS_URL": "redis://a", "FASTLANE_REDIS_CA_FILE": __file__}, "REDIS_CA_FILE"),
        ({"FASTLANE_REDIS_URL": "rediss://a", "FASTLANE_REDIS_CERT_FILE": __file__}, "REDIS_KEY_FILE"),
        ({"FASTLANE_REDIS_SENTINEL_PASSWORD": SECRET}, "REDIS_SENTINEL_PASSWORD"),
        ({"FASTLANE_REDIS_TIMEOUT_SECONDS": "0"}, "REDIS_TIMEOUT_SECONDS"),
        ({"FASTLANE_REDIS_CONNECTIONS": "0"}, "REDIS_CONNECTIONS"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name(environment: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(environment)

    assert told in str(refused.value)
    assert SECRET not in str(refused.value)


def test_passwords_are_not_in_what_is_shown_of_an_address() -> None:
    address = parse_redis_url(f"redis+sentinel://user:{SECRET}@a:1?master=m")

    assert SECRET not in repr(address)
    assert address.place == "the master m of the sentinels a:1"


def test_without_the_library_core_runs_and_the_choice_is_refused_with_the_extra(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from fastlane_core.app import open_application

async def main():
    path = sys.argv[1] + "/fastlane.db"
    async with open_application(environment={"FASTLANE_SQLITE_PATH": path, "FASTLANE_RUNNERS": "process"}):
        print("runs")
    try:
        async with open_application(environment={"FASTLANE_SQLITE_PATH": path, "FASTLANE_QUEUE": "redis"}):
            print("wrong")
    except Exception as error:
        print(type(error).__name__, error)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['redis'] = None\n{script}", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert "runs" in done.stdout, done.stderr
    assert "PluginError" in done.stdout
    assert "fastlane-core[redis]" in done.stdout


def load(environment: dict[str, str]) -> Settings:
    """The section, from the environment."""
    return Settings.load(plugin.fastlane_settings(), path=None, environment=environment)
