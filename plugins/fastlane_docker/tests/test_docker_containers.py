"""What runs are as containers, how they end, and what is kept of their output."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import docker
import pytest

from fastlane_core.errors import RunNotFound, StartRejected
from fastlane_core.models import Reason
from fastlane_core.testing.runner_driver import DEADLINE, RunDriver, Written
from fastlane_docker.runner import DockerRunner
from tests.services.fixtures import SharedEngine

pytestmark = pytest.mark.services

Build = Callable[..., DockerRunner]


def container_of(sdk: docker.DockerClient, execution_id: str) -> Any:
    (container,) = sdk.containers.list(all=True, filters={"label": f"fastlane.execution={execution_id}"})
    return container


async def test_containers_are_hardened_and_labelled(
    runner: DockerRunner, runs: RunDriver, sdk: docker.DockerClient
) -> None:
    run = await runs.start(runner, "true", fence=3)

    container = container_of(sdk, run.request.execution_id)

    host = container.attrs["HostConfig"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert host["PidsLimit"] == 4096
    assert not host["Privileged"]
    assert host["LogConfig"]["Type"] == "local"
    assert container.name == f"fastlane-job-{run.request.execution_id}"
    assert container.labels == {
        "fastlane.deployment": runs.deployment_id,
        "fastlane.execution": run.request.execution_id,
        "fastlane.job": run.request.job_id,
        "fastlane.task": "suite",
        "fastlane.fence": "3",
    }


async def test_options_reach_the_container(runner: DockerRunner, runs: RunDriver, sdk: docker.DockerClient) -> None:
    options = {"entrypoint": ["sh", "-c"], "workdir": "/tmp", "user": "nobody", "memory": "64m", "cpus": 0.5}
    request = await runs.request(runner, "ignored", options={"docker": options})
    run = await runs.start_request(runner, replace(request, argv=("id -un; pwd",)))

    assert (await run.written()).stdout == b"nobody\n/tmp\n"
    host = container_of(sdk, run.request.execution_id).attrs["HostConfig"]
    assert (host["Memory"], host["NanoCpus"]) == (64 * 1024**2, 500_000_000)


async def test_use_of_too_much_memory_is_told(runner: DockerRunner, runs: RunDriver) -> None:
    command = "awk 'BEGIN { s = \"x\"; while (1) s = s s }'"
    run = await runs.start(runner, command, options={"docker": {"memory": "16m"}})

    outcome = await run.wait()

    assert outcome.reason is Reason.OUT_OF_MEMORY
    assert outcome.exit_code == 137


@pytest.mark.parametrize(
    "options", [{"user": "no-such-user"}, {"workdir": "relative"}, {"memory": "1k"}, {"unknown": 1}], ids=str
)
async def test_what_the_engine_cannot_start_is_rejected_and_leaves_nothing(
    runner: DockerRunner, runs: RunDriver, sdk: docker.DockerClient, options: dict[str, Any]
) -> None:
    request = await runs.request(runner, "true", options={"docker": options})

    with pytest.raises(StartRejected):
        await runs.start_request(runner, request)

    assert sdk.containers.list(all=True, filters={"label": f"fastlane.execution={request.execution_id}"}) == []


async def test_name_taken_by_a_stranger_is_rejected(
    runner: DockerRunner, runs: RunDriver, build_runner: Build, docker_engine: SharedEngine, sdk: docker.DockerClient
) -> None:
    run = await runs.start(runner, "echo mine")
    stranger = build_runner(docker_engine.url, deployment="another")
    await stranger.open()

    with pytest.raises(StartRejected, match="not this Fastlane's"):
        await stranger.start(replace(run.request, deployment_id="another"))

    assert (await run.written()).stdout == b"mine\n"
    assert len(sdk.containers.list(all=True, filters={"name": run.request.execution_id})) == 1


async def test_removed_container_is_a_run_not_found(
    runner: DockerRunner, runs: RunDriver, sdk: docker.DockerClient
) -> None:
    run = await runs.start(runner, "sleep 600")
    waiting = asyncio.create_task(run.wait())
    await asyncio.sleep(0)
    container_of(sdk, run.request.execution_id).remove(force=True)

    with pytest.raises(RunNotFound):
        await waiting
    with pytest.raises(RunNotFound):
        await run.logs()


# Output


async def test_short_lines_up_to_the_limit_are_all_kept(runner: DockerRunner, runs: RunDriver) -> None:
    request = await runs.request(runner, "sh -c 'yes \"\" | head -n 1000000'")
    run = await runs.start_request(runner, replace(request, max_log_bytes=1_000_000))
    await run.wait()

    assert (await run.written(follow=False)).stdout == b"\n" * 1_000_000


async def test_a_line_that_is_written_slowly_beside_others_resumes_exactly(
    runner: DockerRunner, runs: RunDriver
) -> None:
    script = 'for i in $(seq 1 8); do head -c 20000 /dev/zero | tr "\\000" x; echo line $i >&2; sleep 0.2; done'
    run = await runs.start(runner, f"sh -c '{script}'")
    outputs = await run.logs()
    errors = b"".join(b"line %d\n" % number for number in range(1, 9))
    assert Written.of(outputs) == Written(stdout=b"x" * 160_000, stderr=errors)

    for index, output in enumerate(outputs):
        rest = await run.logs(after=output.position, follow=False)
        assert Written.of(rest) == Written.of(outputs[index + 1 :])


async def test_many_runs_are_followed_at_once(runner: DockerRunner, runs: RunDriver) -> None:
    run = await runs.start(runner, "sh -c 'for i in $(seq 1 20); do echo $i; sleep 0.1; done'")

    read = await asyncio.gather(*(run.written() for _ in range(64)), run.wait())

    expected = Written(stdout=b"".join(b"%d\n" % number for number in range(1, 21)), stderr=b"")
    assert read[:-1] == [expected] * 64


@pytest.mark.parametrize("script", ["echo on; exec sleep 600", "echo on; exec yes on"])
async def test_whoever_stops_reading_lets_go_of_the_engine_at_once(
    runner: DockerRunner, runs: RunDriver, script: str
) -> None:
    run = await runs.start(runner, f"sh -c '{script}'")
    await run.logs_until(lambda outputs: b"on" in Written.of(outputs[-1:]).stdout)

    deadline = time.monotonic() + DEADLINE
    while any("_Reading._copy" in each for each in _frames()):
        assert time.monotonic() < deadline, "a thread goes on reading"
        await asyncio.sleep(0.05)
    await run.stop(0)


def _frames() -> list[str]:
    import sys

    found = []
    for frame in sys._current_frames().values():
        here = frame
        while here is not None:
            found.append(here.f_code.co_qualname)
            here = here.f_back  # type: ignore[assignment]
    return found


# Clean-up


async def test_prune_removes_what_was_finished_long_enough_ago(
    runner: DockerRunner, runs: RunDriver, sdk: docker.DockerClient
) -> None:
    finished, ended = await runs.start(runner, "true"), await runs.start(runner, "true")
    for run in (finished, ended):
        await run.wait()
    await runner.finish(finished.handle)
    name = f"defunct-fastlane-job-{finished.request.execution_id}"

    (young,) = await runner.prune(older_than=3600, dry_run=False)
    (dry,) = await runner.prune(older_than=0, dry_run=True)
    assert container_of(sdk, finished.request.execution_id).name == name
    (wet,) = await runner.prune(older_than=0, dry_run=False)

    assert (list(young.removed), list(dry.removed), list(wet.removed)) == ([], [name], [name])
    assert sdk.containers.list(all=True, filters={"name": finished.request.execution_id}) == []
    assert container_of(sdk, ended.request.execution_id).name == f"fastlane-job-{ended.request.execution_id}"


async def test_closing_leaves_no_thread_behind(
    build_runner: Build, docker_engine: SharedEngine, runs: RunDriver
) -> None:
    before = threading.active_count()
    runner = build_runner(docker_engine.url)
    await runner.open()
    run = await runs.start(runner, "echo hi")
    await run.written()
    await run.wait()
    assert threading.active_count() > before

    await runner.close()

    deadline = time.monotonic() + DEADLINE
    while any(thread.name.startswith("docker") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()
        await asyncio.sleep(0.05)
