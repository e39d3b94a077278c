"""Removing the containers of processed runs, and nothing else."""

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
from docker.errors import NotFound

from fastlane_core.testing.runner_driver import DEADLINE, RunDriver
from fastlane_docker.engines.addresses import parse_address
from fastlane_docker.engines.engine import Engine
from fastlane_docker.runner import DockerRunner
from fastlane_docker.runs import containers
from fastlane_docker.runs.pruning import prune_engine
from tests.services.fixtures import SharedEngine
from tests.services.http_proxy import HttpProxy
from tests.services.tcp_proxy import TcpProxy

pytestmark = pytest.mark.services

Build = Callable[..., DockerRunner]


class Leftovers:
    """Makes containers as runs leave them, without running anything."""

    def __init__(self, sdk: docker.DockerClient, deployment_id: str) -> None:
        self._api = sdk.api
        self._deployment_id = deployment_id

    def add(self, prefix: str, *, image: str = "busybox:latest", **labels: str) -> str:
        """A container by that prefix; its name."""
        execution = str(uuid.uuid4())
        owned = {"fastlane.deployment": self._deployment_id, "fastlane.execution": execution}
        self._api.create_container(image, "true", name=prefix + execution, labels={**owned, **labels})
        return prefix + execution

    def add_many(self, count: int, prefix: str) -> set[str]:
        """Many of them; their names."""
        with ThreadPoolExecutor(8) as threads:
            return set(threads.map(lambda _: self.add(prefix), range(count)))

    def names(self) -> set[str]:
        """The names of all containers of the deployment."""
        found = self._api.containers(all=True, filters={"label": f"fastlane.deployment={self._deployment_id}"})
        return {each["Names"][0].lstrip("/") for each in found}


@pytest.fixture
def leftovers(sdk: docker.DockerClient, deployment_id: str, runs: RunDriver) -> Leftovers:
    """Removed at the end with everything of the deployment."""
    return Leftovers(sdk, deployment_id)


async def test_only_processed_containers_of_this_deployment_are_removed(
    runner: DockerRunner, leftovers: Leftovers, sdk: docker.DockerClient
) -> None:
    processed = leftovers.add(containers.DEFUNCT_PREFIX)
    kept = {leftovers.add(containers.NAME_PREFIX), leftovers.add(f"my-{containers.DEFUNCT_PREFIX}")}
    others = Leftovers(sdk, f"other-{uuid.uuid4()}")
    theirs = others.add(containers.DEFUNCT_PREFIX)

    (report,) = await runner.prune(older_than=0, dry_run=False)

    assert (list(report.removed), report.error) == ([processed], "")
    assert leftovers.names() == kept
    assert others.names() == {theirs}
    sdk.api.remove_container(theirs)


async def test_report_tells_name_execution_and_image(runner: DockerRunner, runs: RunDriver) -> None:
    run = await runs.start(runner, "true")
    outcome = await run.wait()
    await runner.finish(run.handle)

    (report,) = await runner.prune(older_than=0, dry_run=True)

    (pruned,) = report.runs
    assert report.place == run.request.place
    assert pruned.name == f"defunct-fastlane-job-{run.request.execution_id}"
    assert (pruned.execution_id, pruned.image) == (run.request.execution_id, "busybox:latest")
    assert pruned.created_at is not None
    assert outcome.finished_at is not None
    assert pruned.created_at <= outcome.finished_at


async def test_two_hundred_containers_cost_one_list_and_one_removal_each(
    build_runner: Build, http_proxy: HttpProxy, leftovers: Leftovers
) -> None:
    processed = leftovers.add_many(200, containers.DEFUNCT_PREFIX)
    runner = build_runner(http_proxy.url)

    (young,) = await runner.prune(older_than=3600, dry_run=False)
    (dry,) = await runner.prune(older_than=0, dry_run=True)
    assert (list(young.removed), set(dry.removed)) == ([], processed)
    (wet,) = await runner.prune(older_than=0, dry_run=False)

    assert (set(wet.removed), wet.error) == (processed, "")
    assert leftovers.names() == set()
    assert http_proxy.count("^GET /containers/json") == 3
    assert http_proxy.count("^DELETE /containers/") == 200
    assert http_proxy.count("^GET /containers/[0-9a-f]{64}") == 0


async def test_age_counts_from_the_end_not_from_the_creation(
    runner: DockerRunner, runs: RunDriver, docker_engine: SharedEngine
) -> None:
    run = await runs.start(runner, "sleep 2")
    outcome = await run.wait()
    await runner.finish(run.handle)
    assert outcome.started_at is not None
    assert outcome.finished_at is not None
    engine = Engine(parse_address(docker_engine.url), 10.0, lambda kind, why: None)

    async def prune(now: float) -> int:
        report = await prune_engine(
            engine, runs.deployment_id, older_than=3600, dry_run=False, now=now, seconds=DEADLINE
        )
        assert report.error == ""
        return len(report.runs)

    assert await prune((outcome.started_at + outcome.finished_at) / 2 + 3600) == 0
    assert await prune(outcome.finished_at + 3600) == 1
    engine.close()


async def test_container_whose_image_lost_its_tag_is_removed(
    runner: DockerRunner, leftovers: Leftovers, sdk: docker.DockerClient
) -> None:
    sdk.images.get("busybox:latest").tag("fastlane-test/retagged", "v1")
    name = leftovers.add(containers.DEFUNCT_PREFIX, image="fastlane-test/retagged:v1")
    built = sdk.containers.get(name).commit("fastlane-test/retagged", "v1")
    untagged = leftovers.add(containers.DEFUNCT_PREFIX, image=built.id)
    sdk.images.remove("fastlane-test/retagged:v1", force=True)

    (report,) = await runner.prune(older_than=0, dry_run=False)

    assert (set(report.removed), report.error) == ({name, untagged}, "")
    assert all(run.image for run in report.runs)


async def test_anonymous_volumes_go_with_their_container_and_named_ones_stay(
    runner: DockerRunner, sdk: docker.DockerClient, deployment_id: str, runs: RunDriver
) -> None:
    execution = str(uuid.uuid4())
    sdk.api.create_container(
        "busybox:latest",
        "true",
        name=containers.DEFUNCT_PREFIX + execution,
        labels={"fastlane.deployment": deployment_id, "fastlane.execution": execution},
        volumes=["/scratch", "/kept"],
        host_config=sdk.api.create_host_config(binds=[f"{deployment_id}:/kept"]),
    )
    mounts = sdk.containers.get(containers.DEFUNCT_PREFIX + execution).attrs["Mounts"]
    (anonymous,) = (each["Name"] for each in mounts if each["Destination"] == "/scratch")

    await runner.prune(older_than=0, dry_run=False)

    with pytest.raises(NotFound):
        sdk.volumes.get(anonymous)
    sdk.volumes.get(deployment_id).remove()


async def test_several_prunes_at_once_share_the_work(
    build_runner: Build, docker_engine: SharedEngine, leftovers: Leftovers
) -> None:
    processed = leftovers.add_many(40, containers.DEFUNCT_PREFIX)
    runners = [build_runner(docker_engine.url) for _ in range(3)]

    reports = await asyncio.gather(*(runner.prune(older_than=0, dry_run=False) for runner in runners))

    assert [report.error for (report,) in reports] == ["", "", ""]
    assert {name for (report,) in reports for name in report.removed} == processed
    assert leftovers.names() == set()


async def test_host_that_hangs_keeps_no_other_from_being_pruned(
    build_runner: Build, proxy: TcpProxy, docker_engine: SharedEngine, leftovers: Leftovers
) -> None:
    processed = leftovers.add(containers.DEFUNCT_PREFIX)
    runner = build_runner(proxy.url, docker_engine.url, docker_timeout_seconds=5.0)
    proxy.hang()

    hung, pruned = await asyncio.wait_for(runner.prune(older_than=0, dry_run=False), DEADLINE)

    assert (list(pruned.removed), pruned.error) == ([processed], "")
    assert list(hung.removed) == []
    assert f"127.0.0.1:{proxy.port}" in hung.error


async def test_host_that_stops_answering_meanwhile_is_given_up_with_what_was_done(
    build_runner: Build, http_proxy: HttpProxy, leftovers: Leftovers
) -> None:
    processed = leftovers.add_many(12, containers.DEFUNCT_PREFIX)
    runner = build_runner(http_proxy.url, docker_timeout_seconds=10.0)
    http_proxy.hold_next("^DELETE ")

    (report,) = await asyncio.wait_for(runner.prune(older_than=0, dry_run=False), DEADLINE)

    assert "no answer within" in report.error or "timed out" in report.error.lower()
    assert set(report.removed) <= processed
    assert len(report.removed) >= len(processed) - 4


async def test_time_is_bounded_however_much_there_is(
    docker_engine: SharedEngine, leftovers: Leftovers, deployment_id: str
) -> None:
    leftovers.add_many(8, containers.DEFUNCT_PREFIX)
    engine = Engine(parse_address(docker_engine.url), 10.0, lambda kind, why: None)

    report = await prune_engine(engine, deployment_id, older_than=0, dry_run=False, now=2e9, seconds=0.0)

    assert list(report.removed) == []
    assert "not done within 0 s" in report.error
    engine.close()


async def test_container_that_cannot_be_removed_keeps_no_other_from_it(
    runner: DockerRunner, leftovers: Leftovers, sdk: docker.DockerClient
) -> None:
    stuck, *others = leftovers.add_many(12, containers.DEFUNCT_PREFIX)
    with _unremovable(sdk, stuck):
        (report,) = await runner.prune(older_than=0, dry_run=False)

    assert set(report.removed) == set(others)
    assert "operation not permitted" in report.error
    (again,) = await runner.prune(older_than=0, dry_run=False)
    assert (list(again.removed), again.error) == ([stuck], "")


@contextmanager
def _unremovable(sdk: docker.DockerClient, name: str) -> Iterator[None]:
    """The engine cannot remove the container's files."""
    file = Path(sdk.info()["DockerRootDir"]) / "containers" / sdk.containers.get(name).id / "immutable"
    try:
        file.touch()
        subprocess.run(["chattr", "+i", file], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the engine's files cannot be made immutable here: {error}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", file], check=True)
