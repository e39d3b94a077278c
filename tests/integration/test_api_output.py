"""Output as the API gives it: byte for byte as text, and in parts of records."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fastlane_core.models import LogChunk, Status, Stream
from tests.integration.api_harness import Api


async def test_output_is_given_byte_for_byte_with_the_exit_code(api: Api) -> None:
    execution = await api.submit()
    out, err = b"a\x00b\xff\r\n\xe2\x82", b"no newline"
    await api.run(execution)
    await api.write(execution, (Stream.STDOUT, out), (Stream.STDERR, err), (Stream.STDOUT, b"\xac"))
    await api.end(execution, Status.FAILED, 137)
    for base in (api.job(execution), api.at(execution)):
        for output, expected in (
            ("stdout", out + b"\xac"),
            ("stderr", err),
            ("logs", out + b"\xac" + b"\n-=-\n" + err),
        ):
            answer = await api.http.get(base + output)
            assert answer.content == expected
            assert answer.headers["Fastlane-Exit-Code"] == "137"
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            head = await api.http.head(base + output)
            assert (head.status_code, head.content, head.headers["Fastlane-Exit-Code"]) == (200, b"", "137")


async def test_output_so_far_is_given_while_it_runs(api: Api) -> None:
    execution = await api.submit()
    answer = await api.http.get(api.at(execution, "logs/"))
    assert (answer.content, answer.headers["Fastlane-Exit-Code"]) == (b"\n-=-\n", "None")
    await api.run(execution)
    await api.write(execution, (Stream.STDOUT, b"so far"))
    answer = await api.http.get(api.at(execution, "stdout/"))
    assert (answer.content, answer.headers["Fastlane-Exit-Code"]) == (b"so far", "None")


async def test_long_output_is_whole_as_text_and_cut_visibly_in_json(api: Api) -> None:
    execution = await api.run(await api.submit())
    line = "ü".encode() * 100_000
    for _ in range(8):
        await api.write(execution, (Stream.STDOUT, line))
    await api.end(execution, Status.DONE, 0)
    assert (await api.http.get(api.at(execution, "stdout/"))).content == line * 8
    shape = (await api.http.get(api.at(execution))).json()["execution"]
    assert shape["log"] == "ü" * (512 * 1024)
    assert (shape["logTruncated"], shape["errorTruncated"]) == (True, False)
    (listed,) = (await api.http.get(api.job(execution))).json()["job"]["executions"]
    assert len(listed["log"]) == 32 * 1024
    assert listed["logTruncated"] is True


@pytest.mark.parametrize(("told", "reads"), [(12, 1), (0, 4), (20, 5)])
async def test_short_output_is_read_at_once_where_the_record_tells_its_size_and_is_whole_in_any_case(
    api: Api, monkeypatch: pytest.MonkeyPatch, told: int, reads: int
) -> None:
    execution = await api.run(await api.submit())
    await api.write(execution, (Stream.STDOUT, b"out \xc3"), (Stream.STDERR, b"err"), (Stream.STDOUT, b"\xbc +\n"))
    await api.end(execution, Status.DONE, 0, stdout_bytes=max(0, told - 3), stderr_bytes=min(told, 3))
    read_log, calls = api.storage.read_log, []

    async def counted(*args: object, **options: object) -> Sequence[LogChunk]:
        calls.append(options)
        return await read_log(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(api.storage, "read_log", counted)
    shape = (await api.http.get(api.at(execution))).json()["execution"]
    assert (shape["log"], shape["error"]) == ("out ü +\n", "err")
    assert len(calls) == reads


async def test_page_shows_output_under_a_strict_policy(api: Api) -> None:
    execution = await api.submit()
    for base in (api.job(execution), api.at(execution), "/tasks/<script>/jobs/x/"):
        answer = await api.http.get(base + "stream")
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert "innerHTML" not in answer.text
        assert "<script>/jobs" not in answer.text
