"""Every form in which a host may be written."""

from __future__ import annotations

import pytest

from fastlane_docker.engines.addresses import TlsFiles, parse_address


@pytest.mark.parametrize(
    ("text", "key", "host", "port"),
    [
        ("engine", "engine:2375", "engine", 2375),
        ("Engine.Example.org", "engine.example.org:2375", "engine.example.org", 2375),
        ("engine:1", "engine:1", "engine", 1),
        (" engine:65535/ ", "engine:65535", "engine", 65535),
        ("tcp://10.0.0.1:80", "10.0.0.1:80", "10.0.0.1", 80),
        ("tcp://[::1]:80", "[::1]:80", "::1", 80),
        ("[::1]", "[::1]:2375", "::1", 2375),
        ("[0:0:0::0001]:2375", "[::1]:2375", "::1", 2375),
        ("[2001:DB8::A]", "[2001:db8::a]:2375", "2001:db8::a", 2375),
        ("unix:///var/run/docker.sock", "unix:///var/run/docker.sock", "unix:///var/run/docker.sock", None),
    ],
)
def test_addresses(text: str, key: str, host: str, port: int | None) -> None:
    address = parse_address(text)

    assert (address.key, address.host, address.port, address.tls) == (key, host, port, None)
    assert parse_address(address.key) == address


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("engine", "https://engine:2376"),
        ("engine:2375", "https://engine:2375"),
        ("tcp://engine", "https://engine:2376"),
        ("https://engine", "https://engine:2376"),
        ("https://engine:443/", "https://engine:443"),
        ("[::1]", "https://[::1]:2376"),
        ("https://[::1]:1", "https://[::1]:1"),
    ],
)
def test_addresses_with_tls(text: str, url: str) -> None:
    files = TlsFiles(ca="ca.pem")

    address = parse_address(text, files)

    assert (address.url, address.key, address.tls) == (url, url.removeprefix("https://"), files)
    assert parse_address(address.key, files) == address


def test_https_is_tls_without_files() -> None:
    assert parse_address("https://engine").tls == TlsFiles()


def test_a_socket_has_no_tls() -> None:
    assert parse_address("unix:///a/b", TlsFiles()) == parse_address("unix:///a/b")


@pytest.mark.parametrize(
    "text",
    [
        *("", ":80", "http://a", "unix://relative", "a/b", "tcp://user@a", "a b", "a:b", "::1", "ssh://a", "https://"),
        *("a:", "a:0", "a:65536", "a:123456", "[::1]x", "[::1", "[]", "[1.2.3.4]", "[::1%eth0]", "[a]", "a..b", "-a"),
        *("a?b", "a#b", "https://a/b", f"{'a' * 64}.b", f"{'a.' * 127}b"),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected .*(https://|unix://|port)"):
        parse_address(text)
