"""Logs as engines give them, where they give them differently from how they were written."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest

from fastlane_core.errors import RunNotFound
from fastlane_core.testing.runner_driver import RunDriver, Written
from fastlane_docker.engines.addresses import parse_address
from fastlane_docker.engines.client import Client, chunks_of
from fastlane_docker.engines.engine import Engine
from fastlane_docker.logs.following import goes_on
from fastlane_docker.logs.frames import FrameReader
from fastlane_docker.logs.positions import Positions
from fastlane_docker.runner import DockerRunner
from tests.services.fixtures import SharedEngine

pytestmark = pytest.mark.services


@pytest.fixture
def engine(docker_engine: SharedEngine) -> Iterator[Engine]:
    engine = Engine(parse_address(docker_engine.url), 30.0, lambda kind, why: None)
    yield engine
    engine.close()


@pytest.mark.parametrize("size", [16 * 1024, 16 * 1024 - 1, 16 * 1024 + 1, 5 * 16 * 1024, 100_000])
async def test_lines_longer_than_the_engines_buffer_are_exact(runner: DockerRunner, runs: RunDriver, size: int) -> None:
    x = f"head -c {size} /dev/zero | tr '\\000' x"
    script = f"{x}; sleep 0.1; echo; {x}; echo; echo end; {x} >&2; echo >&2; {x} >&2; echo >&2; echo end >&2; {x}"
    line = b"x" * size
    expected = Written(stdout=line + b"\n" + line + b"\nend\n" + line, stderr=(line + b"\n") * 2 + b"end\n")

    run = await runs.start(runner, shell(script))

    assert await run.written() == expected
    assert await run.written(follow=False) == expected


async def test_a_log_goes_on_unless_its_last_frame_is_the_one_that_was_read(
    engine: Engine, runner: DockerRunner, runs: RunDriver
) -> None:
    run = await runs.start(runner, shell("echo one; echo two"))
    await run.wait()
    container = str(run.handle.data["container"])
    log = await engine.call("log", lambda client: _raw_log(client, container))
    frames = FrameReader(Positions(None))
    frames.feed(log)

    assert not await goes_on(engine, container, frames.last)
    assert log.endswith(frames.last)
    assert await goes_on(engine, container, log[: len(frames.last)])
    assert await goes_on(engine, container, b"")


async def test_whether_a_log_goes_on_behind_a_line_without_an_end_cannot_be_told(
    engine: Engine, runner: DockerRunner, runs: RunDriver
) -> None:
    run = await runs.start(runner, shell("printf one"))
    await run.wait()
    container = str(run.handle.data["container"])
    assert await goes_on(engine, container, await engine.call("log", lambda client: _raw_log(client, container)))


async def test_the_log_of_a_container_that_is_gone_is_not_found(engine: Engine) -> None:
    with pytest.raises(RunNotFound):
        await goes_on(engine, "f" * 64, b"")


def shell(script: str) -> str:
    return shlex.join(["sh", "-c", script])


def _raw_log(client: Client, container: str) -> bytes:
    parameters = {"stdout": 1, "stderr": 1, "timestamps": 1}
    with client.streaming(f"/containers/{container}/logs", parameters, quiet_seconds=30.0) as answer:
        return b"".join(chunks_of(answer))
