"""How calls to an engine look on the wire, and what is made of answers that are no engine's."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest

from fastlane_docker.engines.client import Client, NoEngine


class Asked(NamedTuple):
    """A request that came."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: tuple[str, int]


class Server(ThreadingHTTPServer):
    """Answers as an engine might, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[Asked] = []
        self.status = 200

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.asked.append(Asked(self.requestline, headers, body, self.client_address))
        content = b"" if server.status in (204, 304) else json.dumps({"ApiVersion": "1.41", "Id": "abc"}).encode()
        self.send_response(server.status)
        self.send_header("Content-Type", "application/json")
        if server.status in (301, 307):
            self.send_header("Location", "/elsewhere")
        if content:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = answer  # noqa: N815 - as the library asks for them

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client.connected(server.url, 10.0, connections=2)
    server.asked.clear()
    yield client
    client.close()


def test_parameters_are_encoded_and_those_without_a_value_left_out(client: Client, server: Server) -> None:
    client._get(client._url("/x"), params={"a": "ö &", "none": None, "many": ["1", "2"], "flag": 1})
    client._get(client._url("/x"), params={})

    assert [each.line for each in server.asked] == [
        "GET /v1.41/x?a=%C3%B6+%26&many=1&many=2&flag=1 HTTP/1.1",
        "GET /v1.41/x HTTP/1.1",
    ]


def test_bodies_are_of_the_length_that_is_said_and_headers_those_of_the_sdk(client: Client, server: Server) -> None:
    client._post_json(client._url("/x"), {"Name": "ö", "None": None}, headers={"X-Registry-Auth": "abc"})
    client._post(client._url("/x"))
    client._delete(client._url("/x"))

    created, started, removed = server.asked
    assert json.loads(created.body) == {"Name": "ö"}
    assert created.headers["content-type"] == "application/json"
    assert created.headers["x-registry-auth"] == "abc"
    assert created.headers["user-agent"].startswith("docker-sdk-python/")
    assert started.headers["content-length"] == "0"
    assert "content-length" not in removed.headers
    assert removed.line.startswith("DELETE")


def test_what_an_ascii_address_cannot_say_is_left_to_the_library(client: Client, server: Server) -> None:
    client._get(f"{client.base_url}/ö", params={"a": "b"})
    client._post(client._url("/x"), data={"a": "b"})

    assert [each.line for each in server.asked] == ["GET /%C3%B6?a=b HTTP/1.1", "POST /v1.41/x HTTP/1.1"]
    assert server.asked[1].body == b"a=b"


@pytest.mark.parametrize("status", [200, 204, 304, 404, 500])
def test_one_connection_serves_call_after_call(client: Client, server: Server, status: int) -> None:
    server.status = status
    for _ in range(3):
        client._post(client._url("/containers/abc/start"))

    assert len({each.connection for each in server.asked}) == 1


@pytest.mark.parametrize("status", [301, 307])
def test_a_server_that_sends_elsewhere_is_no_engine(client: Client, server: Server, status: int) -> None:
    server.status = status

    with pytest.raises(NoEngine, match=f"status {status}"):
        client.inspect_container("abc")
    assert len(server.asked) == 1
