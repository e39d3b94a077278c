"""The benchmark runs, so that it can be trusted to run when it is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from tests.services.fixtures import SharedEngine

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_throughput_is_measured_against_the_bare_engine(docker_engine: SharedEngine, workers: int) -> None:
    short = ["--jobs", "4", "--rounds", "2", "--threads", "2", "--idle-seconds", "0.1", "--workers", str(workers)]
    command = [sys.executable, "-m", "benchmarks.throughput", "--docker-host", docker_engine.url, *short]

    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^  round \d: bare +[\d.]+ jobs/s .* fastlane +[\d.]+ jobs/s", done.stdout, re.M)) == 2
    assert re.search(r"^ratio to the bare engines: [\d.]+ ", done.stdout, re.M), done.stdout
    assert re.search(r"^overhead per job: -?[\d.]+ ms, -?[\d.]+ CPU ms$", done.stdout, re.M), done.stdout
    containers = docker.DockerClient(base_url=docker_engine.url).containers.list(all=True)
    assert not [each for each in containers if each.labels.get("fastlane.deployment", "").startswith("benchmark-")]
