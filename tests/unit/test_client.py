"""The Python client against the real API, and against a server that misbehaves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fastlane_core.client import (
    ClientError,
    FastlaneClient,
    FollowItem,
    OutputPiece,
    Result,
    ServerUnreachable,
    StatusChange,
    UnexpectedAnswer,
)
from fastlane_core.errors import Conflict, InvalidInput, NotFound
from fastlane_core.models import Status, Stream
from tests.integration.api_harness import DEADLINE, Api, running_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with running_api(tmp_path) as running:
        yield running


@pytest.fixture
def client(api: Api) -> Iterator[FastlaneClient]:
    with FastlaneClient(api.url, timeout=DEADLINE) as connected:
        yield connected


async def test_submits_and_reads(api: Api, client: FastlaneClient) -> None:
    job = await asyncio.to_thread(client.submit, "a b?", "busybox", ["echo", "a b"], envs={"A": 1})
    task, job_id, execution_id = (str(job[key]) for key in ("taskId", "jobId", "executionId"))
    details = await asyncio.to_thread(client.job, task, job_id)
    assert details["job"]["command"] == "echo 'a b'"  # type: ignore[index, call-overload]
    execution = await asyncio.to_thread(client.execution, task, job_id, execution_id)
    assert execution["execution"]["status"] == "enqueued"  # type: ignore[index, call-overload]
    await asyncio.to_thread(client.stop, task, job_id)
    stored = await api.storage.get_execution(execution_id)
    assert stored is not None
    assert stored.status is Status.STOPPED


async def test_refusals_are_typed_and_say_what_the_server_said(api: Api, client: FastlaneClient) -> None:
    with pytest.raises(InvalidInput, match="did you mean 'envs'") as refused:
        await asyncio.to_thread(client.submit, "t", "busybox", "true", evns={})
    assert refused.value.field == "evns"
    assert str(refused.value).count("evns") == 1
    with pytest.raises(NotFound, match="no job none"):
        await asyncio.to_thread(client.job, "t", "none")
    await asyncio.to_thread(client.submit, "t", "busybox", "true", idempotency_key="k")
    with pytest.raises(Conflict):
        await asyncio.to_thread(client.submit, "t", "busybox", "false", idempotency_key="k")
    await api.storage.close()
    with pytest.raises(ServerUnreachable, match="out of reach"):
        await asyncio.to_thread(client.job, "t", "none")


async def test_following_gives_exact_bytes_and_the_result(api: Api, client: FastlaneClient) -> None:
    execution = await api.submit()
    following = asyncio.create_task(asyncio.to_thread(lambda: list(client.follow("t", execution.job_id, execution.id))))
    await api.run(execution)
    await api.write(execution, (Stream.STDOUT, "ü\x00".encode()), (Stream.STDERR, b"\xff"))
    await api.end(execution, Status.DONE, 0)
    items = await asyncio.wait_for(following, DEADLINE)
    assert [item for item in items if isinstance(item, OutputPiece)] == [
        OutputPiece(stream=Stream.STDOUT, data="ü\x00".encode(), sequence=1),
        OutputPiece(stream=Stream.STDERR, data=b"\xff", sequence=2),
    ]
    assert items[-1] == Result(
        status=Status.DONE,
        exit_code=0,
        reason="succeeded",
        message=None,
        output_limit_reached=False,
        retry_id=None,
    )


async def test_following_goes_on_where_it_was_cut(api: Api, client: FastlaneClient) -> None:
    """A proxy cuts each connection a little later than the last."""
    execution = await api.run(await api.submit())
    for number in range(20):
        await api.write(execution, (Stream.STDOUT, b"%d\n" % number))
    await api.end(execution, Status.DONE, 0)
    cuts = 0

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal cuts
        cuts += 1
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", api.port)
        up_writer.write(await reader.readuntil(b"\r\n\r\n"))
        budget = 250 + 97 * cuts
        while budget > 0 and (data := await up_reader.read(min(50, budget))):
            writer.write(data)
            budget -= len(data)
        for each in (writer, up_writer):
            each.close()
            await each.wait_closed()

    proxy = await asyncio.start_server(cut, "127.0.0.1", 0)
    async with proxy:
        port = proxy.sockets[0].getsockname()[1]
        with FastlaneClient(f"http://127.0.0.1:{port}") as through:
            items = await asyncio.wait_for(
                asyncio.to_thread(lambda: list(through.follow("t", execution.job_id, execution.id))), DEADLINE
            )
    output = b"".join(item.data for item in items if isinstance(item, OutputPiece))
    assert output == b"".join(b"%d\n" % number for number in range(20))
    assert isinstance(items[-1], Result)
    assert cuts > 3


async def test_following_what_does_not_exist_waits_only_if_it_is_expected(api: Api, client: FastlaneClient) -> None:
    execution = await api.submit()

    def follow(*, expected: bool) -> list[FollowItem]:
        return list(client.follow("t", execution.job_id, "none", patience=0.2, expected=expected))

    for expected in (False, True):
        with pytest.raises(NotFound):
            await asyncio.to_thread(follow, expected=expected)


def test_server_that_is_not_there_is_given_up_on() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with FastlaneClient(f"http://127.0.0.1:{reserved.getsockname()[1]}") as client:
            with pytest.raises(ServerUnreachable, match="does not answer"):
                client.submit("t", "i", "c")
            with pytest.raises(ServerUnreachable):
                list(client.follow("t", "j", "e", patience=0.3))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\nbad",
        b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_server_that_is_no_fastlane_is_told_of(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with FastlaneClient(url) as client, pytest.raises(UnexpectedAnswer):
            await asyncio.to_thread(client.job, "t", "j")


@pytest.mark.parametrize("url", ["", "localhost:10000", "ftp://x", "http://", "http://[", "http://x:99999999"])
def test_bad_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ClientError, match="is no URL"):
        FastlaneClient(url)


async def test_status_changes_are_told(api: Api, client: FastlaneClient) -> None:
    execution = await api.change(await api.submit(), waiting_for="a free slot")
    items: list[FollowItem] = []

    def follow() -> None:
        items.extend(client.follow("t", execution.job_id, execution.id))

    following = asyncio.create_task(asyncio.to_thread(follow))
    await api.end(execution, Status.STOPPED, None)
    await asyncio.wait_for(following, DEADLINE)
    assert all(isinstance(item, StatusChange | Result) for item in items)
