"""The benchmarks run, so that they can be trusted to run when they are needed."""

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


def run(module: str, *arguments: str) -> str:
    """What a benchmark that ends well prints."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("workers", [0, 2])
def test_throughput_is_measured_against_the_bare_engine(docker_engine: SharedEngine, workers: int) -> None:
    short = ["--jobs", "4", "--rounds", "2", "--threads", "2", "--idle-seconds", "0.1", "--workers", str(workers)]

    done = run("benchmarks.throughput", "--docker-host", docker_engine.url, *short)

    assert len(re.findall(r"^  round \d: bare +[\d.]+ jobs/s .* fastlane +[\d.]+ jobs/s", done, re.M)) == 2
    assert re.search(r"^ratio to the bare engines: [\d.]+ ", done, re.M), done
    assert re.search(r"^overhead per job: -?[\d.]+ ms, -?[\d.]+ CPU ms$", done, re.M), done
    containers = docker.DockerClient(base_url=docker_engine.url).containers.list(all=True)
    assert not [each for each in containers if each.labels.get("fastlane.deployment", "").startswith("benchmark-")]


def test_submitting_is_measured_against_an_empty_endpoint() -> None:
    short = ["--seconds", "0.3", "--rounds", "2", "--connections", "2,4", "--stores", "sqlite,redis"]

    done = run("benchmarks.submit", *short)

    assert len(re.findall(r"^  round \d: floor +[\d,]+/s .* sqlite .* redis ", done, re.M)) == 4
    assert len(re.findall(r"^(?:sqlite|redis): .* ratio to the floor: [\d.]+ ", done, re.M)) == 4, done


def test_answers_while_an_engine_hangs_are_measured_against_one_that_needs_no_engine(
    docker_engine: SharedEngine,
) -> None:
    done = run("benchmarks.hung_engine", "--jobs", "3", "--docker-host", docker_engine.url)

    kinds = re.findall(r"^(.+?): +p50 .* ms, longest .* ms, ratio of p50 to the floor: [\d.]+$", done, re.M)
    assert kinds[0] == "list of tasks"
    assert {"retry, refused", "retry by force", "retry of many", "put", "stop of a job"} < set(kinds)
    assert re.search(r"^longest of all: [\d.]+ ms$", done, re.M), done


def test_a_long_history_is_measured_against_a_short_one() -> None:
    done = run("benchmarks.history", "--executions", "400", "--pages", "20", "--requests", "10", "--rounds", "2")

    kinds = re.findall(r"^(.+): +p50 .* ms, ratio [\d.]+; p99 .* ms, ratio [\d.]+$", done, re.M)
    assert kinds == ["submit", "job page", "task list", "status"]
    assert re.search(r"^highest ratio of p99: [\d.]+ ", done, re.M), done


def test_the_queues_are_measured_with_few_and_with_many_waiting() -> None:
    done = run("benchmarks.queue", "--waiting", "2000", "--steps", "64", "--rounds", "2")

    assert [name for name in ("sqlite", "redis") if re.search(rf"^{name}: ", done, re.M)] == ["sqlite", "redis"]
    assert len(re.findall(r"^  ratio [\d.]+ \(limit 1.5\)$", done, re.M)) == 2, done


def test_bulk_submitting_is_measured_and_counted() -> None:
    done = run("benchmarks.bulk", "--jobs", "200", "--requests", "2", "--rounds", "2")

    assert len(re.findall(r"^  round \d: +[\d,]+ jobs/s +\d+ us ", done, re.M)) == 2
    assert re.search(r"^[\d,]+ jobs/s \(rounds: ", done, re.M), done
