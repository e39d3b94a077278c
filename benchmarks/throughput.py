"""Jobs per second through Fastlane, as a share of what the same engine does bare, in the same run.

    python -m benchmarks.throughput [--jobs 200] [--rounds 4] [--docker-host URL]

Rounds alternate: a block of `echo` containers through the SDK alone (create, start, wait, read the log, rename), with
as many threads as suits the engine best, then the same number of jobs through `fastlane dev`, from the first POST to
the last result that the API shows. Without --docker-host, DOCKER_HOST is used, else an engine is started as the tests
do. Prints jobs/s, the ratio to the bare engine's best rate, and the overhead per job in wall-clock and CPU milliseconds
of Fastlane's own process (the engine's are left out on both sides).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
from docker.types import LogConfig

from tests.end_to_end.service import Service, until

IMAGE = "busybox:latest"
COMMAND = ["echo", "hello"]
#: Marks the benchmark's containers, of both kinds: an engine that was given may hold others.
LABEL, DEPLOYMENT = "fastlane.deployment", f"benchmark-{uuid.uuid4()}"
LOG_CONFIG = LogConfig(type="local", config={"max-size": "80m", "max-file": "1", "compress": "false"})


@dataclass(frozen=True)
class Block:
    """One measured block of jobs."""

    rate: float
    cpu_ms: float


def bare(client: docker.DockerClient, jobs: int, threads: int) -> Block:
    """The block through the SDK alone."""

    def one(_: int) -> None:
        name = f"bench-{uuid.uuid4().hex}"
        container = client.containers.create(
            IMAGE, COMMAND, name=name, log_config=LOG_CONFIG, labels={LABEL: DEPLOYMENT}
        )
        container.start()
        assert container.wait()["StatusCode"] == 0
        assert container.logs() == b"hello\n"
        container.rename(f"defunct-{name}")

    cpu = time.process_time()
    begun = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(jobs)))
    seconds = time.monotonic() - begun
    return Block(rate=jobs / seconds, cpu_ms=(time.process_time() - cpu) * 1000 / jobs)


def through_fastlane(service: Service, jobs: int) -> Block:
    """The block through the API."""
    assert service.process is not None
    cpu = _cpu_seconds(service.process.pid)
    begun = time.monotonic()
    payload = {"image": IMAGE, "command": " ".join(COMMAND)}
    answers = [service.submit("bench", payload) for _ in range(jobs)]
    for answer in answers:
        # A pause that is short against the block, and long against what an answer costs.
        until("the job has ended", lambda answer=answer: _ended(service, answer), patience=600, pause=0.1)
    seconds = time.monotonic() - begun
    used = _cpu_seconds(service.process.pid) - cpu
    for answer in answers:
        assert service.get(answer["executionUrl"] + "stdout")[1] == b"hello\n"
    return Block(rate=jobs / seconds, cpu_ms=used * 1000 / jobs)


def _ended(service: Service, answer: dict[str, str]) -> bool:
    execution = service.execution(answer)
    if execution["status"] in ("enqueued", "pulling", "running"):
        return False
    if execution["status"] != "done":
        raise SystemExit(f"a job of the benchmark did not succeed: {json.dumps(execution, indent=1)}")
    return True


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def engine(url: str | None) -> Iterator[str]:
    """The engine to measure, with the image."""
    if url:
        yield url
        return
    from tests.services.docker_engine import DockerEngine

    with tempfile.TemporaryDirectory() as folder, DockerEngine(Path(folder)) as started:
        yield started.url


def main() -> int:
    """Measure and print; the exit code is 1 when the ratio is below --at-least."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--docker-host", default=os.environ.get("DOCKER_HOST"))
    parser.add_argument("--at-least", type=float, default=0.0, help="fail below this ratio")
    options = parser.parse_args()
    size = options.jobs // options.rounds
    with engine(options.docker_host) as url, tempfile.TemporaryDirectory() as folder:
        client = docker.DockerClient(base_url=url, timeout=120, max_pool_size=64)
        _clear(client)
        best_threads = max((2, 3, 4, 6), key=lambda threads: bare(client, 16, threads).rate)
        print(
            f"engine {client.version()['Version']}, {os.cpu_count()} cores, "
            f"{options.jobs} jobs in {options.rounds} rounds"
        )
        print(f"the bare engine is fastest with {best_threads} containers at a time")
        hosts = [{"match": "", "hosts": [url], "maxRunning": best_threads}]
        settings = {"RUNNERS": ["docker"], "DOCKER_HOSTS": hosts, "LEASE_SECONDS": 15.0, "DEPLOYMENT_ID": DEPLOYMENT}
        service = Service(Path(folder), settings, verbosity="")
        service.start()
        try:
            through_fastlane(service, 4)
            bares: list[Block] = []
            ours: list[Block] = []
            for number in range(options.rounds):
                _clear(client)
                bares.append(bare(client, size, best_threads))
                _clear(client)
                ours.append(through_fastlane(service, size))
                print(f"  round {number + 1}: bare {bares[-1].rate:5.2f} jobs/s   fastlane {ours[-1].rate:5.2f} jobs/s")
        finally:
            service.terminate()
            _clear(client)
    _print_summary(bares, ours)
    return 0 if _rate(ours) / _rate(bares) >= options.at_least else 1


def _rate(blocks: list[Block]) -> float:
    """Jobs per second over blocks of the same size."""
    return statistics.harmonic_mean([block.rate for block in blocks])


def _print_summary(bares: list[Block], ours: list[Block]) -> None:
    best = max(block.rate for block in bares)
    rounds = ", ".join(f"{mine.rate / floor.rate:.2f}" for mine, floor in zip(ours, bares, strict=True))
    bare_cpu, our_cpu = (statistics.mean(block.cpu_ms for block in blocks) for blocks in (bares, ours))
    print(f"bare:      {_rate(bares):5.2f} jobs/s (best round {best:.2f}), {bare_cpu:5.1f} CPU ms per job")
    print(f"fastlane:  {_rate(ours):5.2f} jobs/s, {our_cpu:5.1f} CPU ms per job")
    print(f"ratio to the bare engine: {_rate(ours) / _rate(bares):.3f} (rounds: {rounds}),", end=" ")
    print(f"to its best round: {_rate(ours) / best:.3f}")
    overhead = 1000 / _rate(ours) - 1000 / _rate(bares)
    print(f"overhead per job: {overhead:.1f} ms, {our_cpu - bare_cpu:.1f} CPU ms")


def _clear(client: docker.DockerClient) -> None:
    for container in client.containers.list(all=True, filters={"label": f"{LABEL}={DEPLOYMENT}"}):
        container.remove(force=True)


if __name__ == "__main__":
    sys.exit(main())
