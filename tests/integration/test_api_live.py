"""Live output: the NDJSON stream and the WebSocket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from fastlane_core.api import ApiLimits
from fastlane_core.models import Execution, Reason, Status, Stream
from tests.integration.api_harness import DEADLINE, LANE, Api, running_api, unknown

OUT, ERR = Stream.STDOUT, Stream.STDERR


class Lines:
    """The lines of a followed stream, as they come."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def next(self) -> dict[str, object]:
        async with asyncio.timeout(DEADLINE):
            return dict(json.loads(await anext(self._lines)))

    async def rest(self) -> list[dict[str, object]]:
        async with asyncio.timeout(DEADLINE):
            return [json.loads(line) async for line in self._lines]


@asynccontextmanager
async def followed(api: Api, path: str) -> AsyncIterator[Lines]:
    async with api.http.stream("GET", path) as answer:
        assert answer.status_code == 200
        yield Lines(answer)


def socket(api: Api, path: str, **headers: str) -> connect:
    return connect(f"ws://127.0.0.1:{api.port}{path}", proxy=None, additional_headers=headers)


async def frames(connection: ClientConnection) -> tuple[list[str], int | None, str | None]:
    """All frames until the server closes, with the code and reason that it gave."""
    got: list[str] = []
    async with asyncio.timeout(DEADLINE):
        try:
            while True:
                got.append(str(await connection.recv(decode=True)))
        except ConnectionClosed:
            return got, connection.close_code, connection.close_reason


async def watched(api: Api, path: str) -> tuple[list[str], int | None, str | None]:
    async with socket(api, path) as connection:
        return await frames(connection)


async def test_following_tells_status_output_and_the_end(api: Api) -> None:
    execution = await api.submit()
    async with followed(api, api.at(execution, "follow")) as lines:
        assert lines.answer.headers["Content-Type"] == "application/x-ndjson"
        assert await lines.next() == {"executionId": execution.id, "status": "enqueued", "waitingFor": None}
        await api.change(execution, status=Status.PULLING)
        assert (await lines.next())["status"] == "pulling"
        await api.run(execution)
        assert (await lines.next())["status"] == "running"
        await api.write(execution, (OUT, "grüße\n".encode()))
        assert await lines.next() == {"seq": 1, "stream": "stdout", "data": "grüße\n"}
        await api.write(execution, (ERR, b"\xff\x00"), (OUT, b"end"))
        raw = await lines.next()
        assert base64.b64decode(str(raw.pop("base64"))) == b"\xff\x00"
        assert raw == {"seq": 2, "stream": "stderr"}
        assert (await lines.next())["seq"] == 3
        await api.end(execution, Status.FAILED, 4, message="It failed.", retry_id="r", retry_at=0.0)
        assert await lines.rest() == [
            {
                "executionId": execution.id,
                "status": "failed",
                "exitCode": 4,
                "reason": "exit_code",
                "message": "It failed.",
                "outputLimitReached": False,
                "retryId": "r",
                "retryAt": "1970-01-01T00:00:00.000000",
            }
        ]


async def test_progress_of_a_pull_is_told_before_the_output_starts(api: Api) -> None:
    execution = await api.submit()
    await api.change(execution, status=Status.PULLING)
    async with followed(api, api.at(execution, "follow")) as lines:
        assert (await lines.next())["status"] == "pulling"
        for done in (1, 2):
            waiting_for = f"pulling busybox:latest: {done}.0 of 4.0 MiB"
            await api.change(execution, waiting_for=waiting_for)
            expected = {"executionId": execution.id, "status": "pulling", "waitingFor": waiting_for}
            assert await lines.next() == expected
            shown = (await api.http.get(api.at(execution))).json()["execution"]
            assert (shown["status"], shown["waitingFor"]) == ("pulling", waiting_for)
            (listed,) = (await api.http.get(api.job(execution))).json()["job"]["executions"]
            assert (listed["status"], listed["waitingFor"]) == ("pulling", waiting_for)


async def test_following_goes_on_behind_what_was_seen(api: Api) -> None:
    execution = await api.run(await api.submit())
    await api.write(execution, (OUT, b"1"), (ERR, b"2"), (OUT, b"3"))
    await api.end(execution, Status.DONE, 0)
    for base in (api.at(execution), api.job(execution)):
        async with followed(api, base + "follow/?after=2") as lines:
            first, last = await lines.rest()
        assert (first["seq"], first["data"]) == (3, "3")
        assert (last["status"], last["exitCode"]) == ("done", 0)


async def test_following_finds_what_no_wake_up_told_of(tmp_path: Path) -> None:
    async with running_api(tmp_path, limits=ApiLimits(follow_poll_seconds=0.05)) as api:
        execution = await api.run(await api.submit())
        await api.queue.close()
        async with followed(api, api.at(execution, "follow")) as lines:
            assert (await lines.next())["status"] == "running"
            stored = await api.storage.get_execution(execution.id)
            assert stored is not None
            await api.storage.put_execution(replace(stored, status=Status.DONE, reason=Reason.SUCCEEDED, exit_code=0))
            assert (await lines.rest())[-1]["status"] == "done"


async def test_quiet_stream_gives_signs_of_life(tmp_path: Path) -> None:
    async with running_api(tmp_path, limits=ApiLimits(heartbeat_seconds=0.05)) as api:
        execution = await api.run(await api.submit())
        async with followed(api, api.at(execution, "follow")) as lines:
            assert (await lines.next())["status"] == "running"
            assert await lines.next() == {"heartbeat": True}
            assert await lines.next() == {"heartbeat": True}
            await api.write(execution, (OUT, b"x"))
            while "heartbeat" in (line := await lines.next()):
                pass
            assert line["seq"] == 1


async def test_server_that_ends_ends_its_streams_at_once(api: Api) -> None:
    execution = await api.run(await api.submit())
    async with followed(api, api.at(execution, "follow")) as lines, socket(api, api.at(execution, "ws")) as connection:
        assert (await lines.next())["status"] == "running"
        await api.write(execution, (OUT, b"x"))
        assert await connection.recv() == "x"
        assert (await lines.next())["seq"] == 1
        api.stop.set()
        assert await lines.rest() == []
        assert await frames(connection) == ([], 1000, "retry")
    async with asyncio.timeout(DEADLINE):
        await api.served


async def test_more_followers_than_allowed_are_asked_to_come_back(tmp_path: Path) -> None:
    async with running_api(tmp_path, limits=ApiLimits(followers=1)) as api:
        execution = await api.run(await api.submit())
        path = api.at(execution, "follow")
        async with followed(api, path) as lines:
            await lines.next()
            refused = await api.http.get(path)
            assert (refused.status_code, refused.headers["Retry-After"]) == (503, "2")
            assert await watched(api, api.at(execution, "ws")) == ([], 1000, "retry")
        await api.end(execution, Status.DONE, 0)
        async with asyncio.timeout(DEADLINE):
            # The server hears of the first one's leaving in its own time.
            while (await api.http.get(path)).status_code != 200:
                await asyncio.sleep(0.01)


async def test_follower_that_goes_away_is_let_go(tmp_path: Path) -> None:
    async with running_api(tmp_path, limits=ApiLimits(followers=1)) as api:
        execution = await api.run(await api.submit())
        for path in (api.at(execution, "follow"), api.at(execution, "follow")):
            async with asyncio.timeout(DEADLINE):
                while True:
                    async with api.http.stream("GET", path) as answer:
                        if answer.status_code == 200:
                            break
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize("status", [Status.DONE, Status.FAILED, Status.TIMEDOUT, Status.STOPPED, Status.EXPIRED])
async def test_socket_shows_an_ended_execution_and_closes(api: Api, status: Status) -> None:
    execution = await api.submit()
    if status is not Status.EXPIRED:
        await api.run(execution)
        await api.write(execution, (OUT, b"out \xff"), (ERR, b"err"), (OUT, b"!"))
    await api.end(execution, status, None if status is Status.EXPIRED else 3)
    shown = ["EXIT CODE: 3\n", "out \\xff!", "\n-=-\n", "err"]
    if status is Status.EXPIRED:
        shown = ["EXIT CODE: None\n", "", "\n-=-\n", ""]
    for path in (
        api.at(execution, "ws"),
        api.at(execution, "ws/"),
        api.job(execution, "ws"),
        api.job(execution, "ws/"),
    ):
        assert await watched(api, path) == (shown, 1000, "done")


async def test_socket_stays_until_the_client_has_answered_that_it_closes(api: Api) -> None:
    execution = await api.submit()
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    with contextlib.closing(writer):
        writer.write(
            f"GET {api.at(execution, 'ws')} HTTP/1.1\r\nHost: 127.0.0.1:{api.port}\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        async with asyncio.timeout(DEADLINE):
            await reader.readuntil(b"\x88\x07\x03\xe8retry")

        # Browsers that find the connection gone when they answer tell their page nothing of code and reason.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await reader.read(1)

        writer.write(b"\x88\x82\0\0\0\0\x03\xe8")
        async with asyncio.timeout(DEADLINE):
            assert await reader.read() == b""


async def test_socket_shows_output_as_it_comes_and_closes_when_it_ends(api: Api) -> None:
    execution = await api.run(await api.submit())
    await api.write(execution, (OUT, b"before "))
    async with socket(api, api.job(execution, "ws/")) as connection:
        assert await connection.recv() == "before "
        euro = "€".encode()
        await api.write(execution, (OUT, euro[:2]), (ERR, b"between"), (OUT, euro[2:]))
        assert await connection.recv() == "between"
        assert await connection.recv() == "€"
        await api.write(execution, (OUT, b"\xff "), (ERR, euro[:1]))
        assert await connection.recv() == "\\xff "
        await api.end(execution, Status.FAILED, 1)
        assert await frames(connection) == (["\\xe2"], 1000, "done")


@pytest.mark.parametrize("status", [Status.ENQUEUED, Status.PULLING])
async def test_socket_of_what_has_not_started_asks_to_come_back(api: Api, status: Status) -> None:
    execution = await api.change(await api.submit(), status=status)
    for path in (api.at(execution, "ws"), api.job(execution, "ws")):
        assert await watched(api, path) == ([], 1000, "retry")


async def test_socket_of_what_does_not_exist_says_so(api: Api) -> None:
    execution = await api.submit()
    for path in (f"/tasks/t/jobs/{unknown()}/ws", f"{api.job(execution)}executions/{unknown()}/ws/"):
        assert await watched(api, path) == ([], 4404, "there is no such job or execution")


async def test_long_output_comes_in_frames_that_clients_take(api: Api) -> None:
    execution = await api.run(await api.submit())
    long = b"\xff" * 500_000
    live = await api.run(await api.submit())
    await api.write(execution, (OUT, long))
    await api.end(execution, Status.DONE, 0)
    shown, code, reason = await watched(api, api.at(execution, "ws"))
    assert (code, reason) == (1000, "done")
    assert shown[0] == "EXIT CODE: 0\n"
    assert "".join(shown[1:]) == "\\xff" * 500_000 + "\n-=-\n"

    async with socket(api, api.at(live, "ws")) as connection:
        await api.write(live, (ERR, long))
        await api.end(live, Status.DONE, 0)
        shown, code, reason = await frames(connection)
        assert ("".join(shown), code, reason) == ("\\xff" * 500_000, 1000, "done")


async def test_what_a_client_says_does_not_pile_up(api: Api) -> None:
    execution = await api.run(await api.submit())
    async with socket(api, api.at(execution, "ws")) as connection:
        for _ in range(200):
            await connection.send("x" * 1000)
        pong = await connection.ping()
        await asyncio.wait_for(pong, DEADLINE)
        async with asyncio.timeout(DEADLINE):
            while any(each.qsize() > 20 for each in gc.get_objects() if type(each) is asyncio.Queue):
                await asyncio.sleep(0.02)
        await api.write(execution, (OUT, b"still here"))
        assert await connection.recv() == "still here"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "null", "Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
async def test_socket_is_refused_to_pages_of_other_sites(api: Api, headers: dict[str, str]) -> None:
    execution = await api.submit()
    with pytest.raises(InvalidStatus) as refused:
        await watched_as(api, execution, headers)
    assert refused.value.response.status_code == 403
    assert b"may not use this server" in (refused.value.response.body or b"")
    assert await watched_as(api, execution, {"Origin": api.url}) == ([], 1000, "retry")


async def watched_as(
    api: Api, execution: Execution, headers: dict[str, str]
) -> tuple[list[str], int | None, str | None]:
    async with socket(api, api.at(execution, "ws"), **headers) as connection:
        return await frames(connection)


async def run_command(api: Api, *arguments: str) -> asyncio.subprocess.Process:
    """`fastlane run` against the API, as a process of its own."""
    # As from a terminal: whatever runs the tests may have been started in the background, and so ignore Ctrl-C.
    interrupts = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{interrupts}; from fastlane_core.cli.run import command; command()"
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "faulthandler", "-c", program, "--url", api.url, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """What it wrote, once it has ended; where it hangs, the failure tells where."""
    reading = asyncio.create_task(process.communicate())
    done, _ = await asyncio.wait([reading], timeout=DEADLINE)
    if not done:
        process.send_signal(signal.SIGABRT)
    out, err = await reading
    assert done, f"it did not end: {err.decode()}"
    return out, err


async def submitted(api: Api) -> Execution:
    """The one execution there is, once it is there."""
    async with asyncio.timeout(DEADLINE):
        while not (page := await api.storage.list_unfinished(cursor=None, limit=1)).items:
            await asyncio.sleep(0.02)
    return page.items[0]


async def test_run_copies_output_and_exits_as_the_job_does(api: Api) -> None:
    process = await run_command(api, "-e", "A=b=c", "--timeout", "9", "busybox", "--", "sh", "-c", "echo $A -e x=y")
    execution = await submitted(api)
    assert execution.spec.command == "sh -c 'echo $A -e x=y'"
    assert (execution.task_id, execution.spec.env, execution.spec.timeout) == ("run", {"A": "b=c"}, 9.0)
    await api.run(execution)
    await api.write(execution, (OUT, b"\xff\x00out\n"), (ERR, b"err"), (OUT, b"no newline"))
    await api.end(execution, Status.FAILED, 42)
    out, err = await ended(process)
    assert (out, err, process.returncode) == (b"\xff\x00out\nno newline", b"err", 42)


@pytest.mark.parametrize(
    ("status", "exit_code", "reason", "code"),
    [
        (Status.DONE, 0, Reason.SUCCEEDED, 0),
        (Status.FAILED, 137, Reason.OUT_OF_MEMORY, 137),
        (Status.FAILED, None, Reason.IMAGE_NOT_FOUND, 125),
        (Status.TIMEDOUT, 143, Reason.TIMED_OUT, 125),
        (Status.STOPPED, None, Reason.STOPPED, 125),
        (Status.EXPIRED, None, Reason.EXPIRED, 125),
    ],
)
async def test_run_tells_endings_other_than_an_exit_code(
    api: Api, status: Status, exit_code: int | None, reason: Reason, code: int
) -> None:
    process = await run_command(api, "busybox")
    execution = await submitted(api)
    message = None if reason is Reason.SUCCEEDED else "This is why."
    await api.end(execution, status, exit_code, reason=reason, message=message)
    out, err = await ended(process)
    assert (out, process.returncode) == (b"", code)
    assert err == (b"" if message is None else b"fastlane: This is why.\n")


async def test_run_says_once_what_it_waits_for(tmp_path: Path) -> None:
    async with running_api(tmp_path, limits=ApiLimits(follow_poll_seconds=0.05)) as api:
        process = await run_command(api, "busybox")
        execution = await submitted(api)
        assert process.stderr is not None

        async def said() -> str:
            assert process.stderr is not None
            return (await asyncio.wait_for(process.stderr.readline(), DEADLINE)).decode()

        assert await said() == f"fastlane: waiting: a worker that serves the lane {LANE}: none is running\n"
        lane = {"capacity": 2, "places": {}, "reason": "engine-1.example:2375 does not answer"}
        await api.storage.put_state(
            "workers", "w", {"worker": "w", "at": time.time(), "lanes": {LANE: lane}}, revision=None
        )
        assert await said() == "fastlane: waiting: engine-1.example:2375 does not answer\n"
        for done in range(1, 4):
            await api.change(execution, status=Status.PULLING, waiting_for=f"pulling busybox: {done}.0 of 3.0 MiB")
        assert (await said()).startswith("fastlane: waiting: pulling busybox")
        await api.run(execution)
        await api.end(execution, Status.DONE, 0)
        _, err = await ended(process)
        assert (err, process.returncode) == (b"", 0)


async def test_run_stops_the_job_on_ctrl_c(api: Api) -> None:
    process = await run_command(api, "busybox", "--", "sleep", "99")
    execution = await api.run(await submitted(api))
    await api.write(execution, (OUT, b"x"))
    assert process.stdout is not None
    await asyncio.wait_for(process.stdout.readexactly(1), DEADLINE)
    process.send_signal(2)
    _, err = await ended(process)
    assert (process.returncode, err) == (130, b"fastlane: the job is being stopped\n")
    stored = await api.storage.get_execution(execution.id)
    assert stored is not None
    assert stored.stop_requested_at is not None


async def test_run_ends_quietly_when_nobody_reads_its_output(api: Api) -> None:
    process = await run_command(api, "busybox", "--", "yes")
    execution = await api.run(await submitted(api))
    assert process.stdout is not None
    await api.write(execution, (OUT, b"x"))
    await asyncio.wait_for(process.stdout.readexactly(1), DEADLINE)
    process.stdout._transport.close()  # type: ignore[attr-defined]
    async with asyncio.timeout(DEADLINE):
        while process.returncode is None:
            await api.write(execution, (OUT, b"x"))
            await asyncio.sleep(0.02)
    assert process.stderr is not None
    assert await process.stderr.read() == b"fastlane: the job is being stopped\n"
    assert process.returncode == 141


async def test_run_detached_prints_where_to_look(api: Api) -> None:
    process = await run_command(api, "--detach", "--task", "mine", "busybox")
    out, err = await ended(process)
    execution = await submitted(api)
    assert (out.decode(), err, process.returncode) == (f"{api.url}{api.job(execution)}\n", b"", 0)


async def test_run_tells_what_was_refused(api: Api) -> None:
    process = await run_command(api, "--task", "nowhere", "busybox")
    _, err = await ended(process)
    assert process.returncode == 125
    assert b"no lane takes the task 'nowhere'" in err


async def test_run_follows_the_next_attempt(api: Api) -> None:
    process = await run_command(api, "busybox")
    execution = await submitted(api)
    again = replace(execution, id=unknown(), attempt=2, retry_of=execution.id, revision=0)
    lost = {"reason": Reason.ENGINE_LOST, "message": "Its engine is gone."}
    await api.end(execution, Status.FAILED, None, retry_id=again.id, retry_at=0.0, **lost)
    assert process.stderr is not None
    assert (
        await asyncio.wait_for(process.stderr.readline(), DEADLINE) == b"fastlane: Its engine is gone.; trying again\n"
    )
    await api.storage.add_executions([again])
    await api.run(again)
    await api.end(again, Status.DONE, 0)
    await ended(process)
    assert process.returncode == 0
