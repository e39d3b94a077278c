"""`fastlane prune` as operators type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import docker
import pytest

from tests.end_to_end.service import PATIENCE
from tests.services.fixtures import SharedEngine
from tests.services.ports import free_port

DEPLOYMENT = f"prune-{uuid.uuid4()}"


@pytest.fixture
def sdk(docker_engine: SharedEngine) -> Iterator[docker.APIClient]:
    client = docker.APIClient(base_url=docker_engine.url, version="auto")
    yield client
    for each in client.containers(all=True, filters={"label": f"fastlane.deployment={DEPLOYMENT}"}):
        client.remove_container(each["Id"], force=True)
    client.close()


def processed(sdk: docker.APIClient) -> str:
    """The execution of a container that is left to be pruned."""
    execution = str(uuid.uuid4())
    labels = {"fastlane.deployment": DEPLOYMENT, "fastlane.execution": execution}
    sdk.create_container("busybox:latest", "true", name=f"defunct-fastlane-job-{execution}", labels=labels)
    return execution


def prune(folder: Path, hosts: Sequence[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Prune on these hosts; on the process runner where there are none."""
    values: dict[str, object] = {"DEPLOYMENT_ID": DEPLOYMENT, "SQLITE_PATH": str(folder / "fastlane.db")}
    if hosts:
        values |= {"RUNNERS": ["docker"], "DOCKER_HOSTS": [{"hosts": list(hosts)}], "DOCKER_TIMEOUT_SECONDS": 5}
    else:
        values |= {"RUNNERS": ["process"]}
    config = folder / "fastlane.conf"
    config.write_text("".join(f"{key} = {value!r}\n" for key, value in values.items()))
    return subprocess.run(
        [sys.executable, "-m", "fastlane_core", "prune", "-c", str(config), *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={key: value for key, value in os.environ.items() if not key.startswith(("FASTLANE_", "DOCKER_"))},
        check=False,
    )


@pytest.mark.services
def test_prune_prints_what_went_where(tmp_path: Path, docker_engine: SharedEngine, sdk: docker.APIClient) -> None:
    host = docker_engine.url.removeprefix("tcp://")
    execution = processed(sdk)
    row = ["defunct-fastlane-job-" + execution, execution, "busybox:latest"]

    dry = prune(tmp_path, [docker_engine.url], "--dry-run")
    young = prune(tmp_path, [docker_engine.url], "--older-than", "2h")
    wet = prune(tmp_path, [docker_engine.url])
    empty = prune(tmp_path, [docker_engine.url])

    assert [each.returncode for each in (dry, young, wet, empty)] == [0, 0, 0, 0], (dry.stderr, wet.stderr)
    for done, title in ((dry, "TO REMOVE"), (wet, "REMOVED")):
        lines = done.stdout.splitlines()
        assert lines[0].split() == ["HOST", "NAME", "EXECUTION", "IMAGE"]
        assert lines[1].split() == [host, *row]
        assert title in lines[3]
        assert lines[4].split() == [host, "1"]
    assert dry.stdout.splitlines()[-1] == "Would remove 1 run on 1 host."
    assert wet.stdout.splitlines()[-1] == "Removed 1 run on 1 host."
    assert young.stdout.splitlines()[-1] == empty.stdout.splitlines()[-1] == "There is nothing to prune on 1 host."


@pytest.mark.services
def test_host_out_of_reach_is_told_and_ends_with_1(
    tmp_path: Path, docker_engine: SharedEngine, sdk: docker.APIClient
) -> None:
    execution = processed(sdk)
    dead = f"127.0.0.1:{free_port()}"

    done = prune(tmp_path, [dead, docker_engine.url], "--json", "--older-than", "0s")

    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["dryRun"], answer["removed"], answer["failedHosts"]) == (False, 1, 1)
    hosts = {each["host"]: each for each in answer["hosts"]}
    assert "refused" in hosts.pop(dead)["error"]
    (host,) = hosts.values()
    assert host["error"] is None
    (removed,) = host["removed"]
    assert (removed["name"], removed["executionId"]) == (f"defunct-fastlane-job-{execution}", execution)
    assert (removed["image"], removed["createdAt"][:2]) == ("busybox:latest", "20")


def test_runner_that_leaves_nothing_behind_has_nothing_to_prune(tmp_path: Path) -> None:
    done = prune(tmp_path, [])

    assert (done.returncode, done.stdout) == (
        0,
        "No enabled runner leaves anything behind: there is nothing to prune.\n",
    )


def test_wrong_length_of_time_is_refused(tmp_path: Path) -> None:
    done = prune(tmp_path, [], "--older-than", "90")

    assert done.returncode == 2
    assert "--older-than" in done.stderr
    assert "30s, 2m30s, 4h or 1d" in done.stderr
