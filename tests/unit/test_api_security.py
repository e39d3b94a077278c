"""Which requests of browsers are refused."""

from __future__ import annotations

import pytest
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.datastructures import Headers

from fastlane_core.api.answers import Refused
from fastlane_core.api.security import Policy


def asked(**headers: str) -> BaseRequestWebsocket:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {"headers": [(name.lower().encode(), value.encode()) for name, value in named.items()]}
    return BaseRequestWebsocket("POST", "http", "/", b"", Headers(named), "", "1.1", scope)  # type: ignore[arg-type]


def is_refused(policy: Policy, *, changes: bool = True, **headers: str) -> bool:
    try:
        policy.check(asked(**headers), changes=changes)
    except Refused:
        return True
    return False


def policy(bind: str = "127.0.0.1", name: str | None = None, origins: list[str] | None = None) -> Policy:
    return Policy(bind_host=bind, server_name=name, cors_origins=origins or [])


@pytest.mark.parametrize(
    "host", ["127.0.0.1:10000", "localhost", "LOCALHOST:1", "[::1]:10000", "127.8.9.1", "fast.example:10000", ""]
)
def test_loopback_server_takes_names_that_are_its_own(host: str) -> None:
    assert not is_refused(policy(name="fast.example:10000"), Host=host)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:10000", "localhost.evil.example", "10.0.0.1", "[::2]"])
def test_loopback_server_refuses_names_made_to_point_at_it(host: str) -> None:
    assert is_refused(policy(), Host=host, changes=False)


def test_server_on_the_network_takes_any_name() -> None:
    assert not is_refused(policy(bind="0.0.0.0"), Host="fast.example")


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site"])
def test_changes_asked_for_by_pages_of_other_sites_are_refused(site: str) -> None:
    assert is_refused(policy(), Host="localhost", Sec_Fetch_Site=site)
    assert not is_refused(policy(), Host="localhost", Sec_Fetch_Site=site, changes=False)


@pytest.mark.parametrize("site", ["same-origin", "none", ""])
def test_changes_asked_for_by_own_pages_and_programs_are_taken(site: str) -> None:
    assert not is_refused(policy(), Host="localhost", Sec_Fetch_Site=site)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:10000", "http://localhost:10000"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("localhost:443", "https://localhost"),
        ("[::1]:10000", "http://[::1]:10000"),
    ],
)
def test_own_origin_is_taken(host: str, origin: str) -> None:
    assert not is_refused(policy(), Host=host, Origin=origin)


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://localhost:10001", "http://localhost", "null", "", "file://", "http://[", "x"],
)
def test_foreign_origin_is_refused_whatever_is_asked(origin: str) -> None:
    assert is_refused(policy(), Host="localhost:10000", Origin=origin, changes=False)


def test_origin_by_the_servers_name_is_taken_behind_a_proxy_that_changes_the_host() -> None:
    behind = policy(name="fast.example")
    assert not is_refused(behind, Host="127.0.0.1:10000", Origin="https://fast.example")


def test_allowed_origin_is_taken_and_others_are_not() -> None:
    allowing = policy(origins=["https://ci.example/"])
    assert not is_refused(allowing, Host="localhost", Origin="https://CI.example", Sec_Fetch_Site="cross-site")
    assert is_refused(allowing, Host="localhost", Origin="https://ci.example.evil")
    assert not is_refused(policy(origins=["*"]), Host="localhost", Origin="null", Sec_Fetch_Site="cross-site")
