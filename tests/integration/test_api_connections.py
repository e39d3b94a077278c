"""Connections to the API as sockets see them: sent at once, held up by slow readers, closed when idle."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypercorn.config import Config
from quart import Blueprint, Response

from fastlane_core.api import server
from tests.integration.api_harness import DEADLINE, Api, running_api

REQUEST = b"GET /healthcheck HTTP/1.1\r\nHost: localhost\r\n\r\n"
#: More than the sockets of both sides hold, in chunks like those of a log.
CHUNK = b"x" * 10_000
CHUNKS = 10_000


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes = REQUEST) -> None:
    """Send a request and take the head of its answer."""
    writer.write(request)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
    assert head.startswith(b"HTTP/1.1 200 "), head


async def ended(reader: asyncio.StreamReader) -> None:
    """Return when the server has closed the connection."""
    while await asyncio.wait_for(reader.read(65_536), DEADLINE):
        pass


async def test_an_answer_is_sent_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    write = asyncio.StreamWriter.write

    def note(self: asyncio.StreamWriter, data: bytes) -> None:
        written.append(bytes(data))
        write(self, data)

    monkeypatch.setattr(asyncio.StreamWriter, "write", note)
    async with running_api(tmp_path) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        written.clear()
        await ask(reader, writer)
        writer.close()

    asked, answer = written
    assert asked == REQUEST
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"storage":true' in answer


async def test_an_idle_connection_is_closed_and_one_at_work_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Config, "keep_alive_timeout", 1.0)
    async with running_api(tmp_path) as api:
        execution = await api.submit()
        silent, silent_writer = await asyncio.open_connection("127.0.0.1", api.port)
        at_work, at_work_writer = await asyncio.open_connection("127.0.0.1", api.port)
        follow = f"GET {api.at(execution, 'follow/')} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await ask(at_work, at_work_writer, follow.encode())
        served, served_writer = await asyncio.open_connection("127.0.0.1", api.port)
        await ask(served, served_writer)

        await ended(silent)
        await ended(served)

        await api.run(execution)
        while b"running" not in await asyncio.wait_for(at_work.readuntil(b"\n"), DEADLINE):
            pass
        for writer in (silent_writer, served_writer, at_work_writer):
            writer.close()


async def test_a_client_that_does_not_read_holds_up_what_is_sent_to_it(tmp_path: Path) -> None:
    made = 0
    blueprint = Blueprint("endless", __name__)

    @blueprint.get("/endless/")
    async def endless() -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            nonlocal made
            while made < CHUNKS:
                made += 1
                yield CHUNK

        return Response(chunks())

    async with running_api(tmp_path, blueprints=[blueprint]) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port, limit=1_024)
        await ask(reader, writer, b"GET /endless/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        before = -1
        while made != before:
            before = made
            await asyncio.sleep(0.3)
        assert 0 < made < CHUNKS / 2

        await ended(reader)

        assert made == CHUNKS
        writer.close()


async def test_the_server_ends_idle_connections_and_waits_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_GRACE", 10 * DEADLINE)
    monkeypatch.setattr(Config, "keep_alive_timeout", 10 * DEADLINE)
    async with running_api(tmp_path) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        await ask(reader, writer)

        api.stop.set()

        await asyncio.wait_for(asyncio.shield(api.served), DEADLINE)
        await ended(reader)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        assert await is_refused(api)


async def test_a_request_that_outlasts_the_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_GRACE", 0.1)
    blueprint = Blueprint("stuck", __name__)
    begun = asyncio.Event()

    @blueprint.get("/stuck/")
    async def stuck() -> Response:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with running_api(tmp_path, blueprints=[blueprint]) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(b"GET /stuck/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.wait_for(begun.wait(), DEADLINE)

        api.stop.set()

        await asyncio.wait_for(asyncio.shield(api.served), DEADLINE)
        await ended(reader)
        writer.close()


async def test_a_client_that_does_not_read_holds_up_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_GRACE", 0.1)
    blueprint = Blueprint("endless", __name__)
    stuck = asyncio.Event()

    @blueprint.get("/endless/")
    async def endless() -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                blocked = asyncio.get_running_loop().call_later(0.3, stuck.set)
                yield CHUNK * 100
                blocked.cancel()

        return Response(chunks())

    async with running_api(tmp_path, blueprints=[blueprint]) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port, limit=1_024)
        await ask(reader, writer, b"GET /endless/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.wait_for(stuck.wait(), DEADLINE)
        assert "connected" in " ".join(map(repr, asyncio.all_tasks()))

        api.stop.set()

        await asyncio.wait_for(asyncio.shield(api.served), DEADLINE)
        assert "connected" not in " ".join(map(repr, asyncio.all_tasks()))
        writer.close()


async def is_refused(api: Api) -> bool:
    try:
        await asyncio.open_connection("127.0.0.1", api.port)
    except ConnectionRefusedError:
        return True
    return False
