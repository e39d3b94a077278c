"""How soon clients are answered about running jobs while the engine that runs them hangs.

    python -m benchmarks.hung_engine [--jobs 24] [--docker-host URL] [--at-most-ms 0]

One `fastlane dev` runs so many containers on an engine (its own, or the one given) behind a proxy; the proxy then lets
nothing through. Meanwhile jobs are stopped, run again (refused; by force; many at once) and put, one request at a time,
each on a new connection. The floor is a GET of the list of tasks, which has nothing to do with engines.

Prints p50 and the longest of each in milliseconds, and the ratio of p50 to the floor. With --at-most-ms the exit code
is 1 when one took longer. In the end the engine is back, and all containers must go.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker

from benchmarks.throughput import DEPLOYMENT, IMAGE, LABEL, started
from tests.end_to_end.service import Service, until
from tests.services.tcp_proxy import TcpProxy

FLOOR = "list of tasks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=24)
    parser.add_argument("--docker-host", help="tcp://NAME:PORT of an engine to use")
    parser.add_argument("--at-most-ms", type=float, default=0.0, help="fail where an answer takes longer")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fl")))
        url = options.docker_host or stack.enter_context(started(1, folder))[0]
        host = urlsplit(url)
        proxy = stack.enter_context(TcpProxy((host.hostname or "", host.port or 2375)))
        service = stack.enter_context(fastlane(folder / "fastlane", proxy, options.jobs))
        seconds = measure(service, proxy, options.jobs)
        until("all containers are gone", lambda: not running(url))
    longest = print_summary(seconds)
    return 1 if options.at_most_ms and longest * 1000 > options.at_most_ms else 0


def measure(service: Service, proxy: TcpProxy, jobs: int) -> Mapping[str, Sequence[float]]:
    """Seconds of each request, by what it asks for."""
    payload = {"image": IMAGE, "command": ["sleep", "600"], "retries": 2}
    answers = [service.submit("hung", payload) for _ in range(jobs)]
    for answer in answers:
        until("it runs", partial(has_started, service, answer))
    seconds: dict[str, list[float]] = defaultdict(list)

    def ask(what: str, expected: int, method: str, path: str, body: object = None) -> None:
        begun = time.perf_counter()
        status = service.get(path)[0] if method == "GET" else service.request(method, path, body or {})[0]
        seconds[what].append(time.perf_counter() - begun)
        if status != expected:
            raise SystemExit(f"{what}: the answer was {status}, not {expected}")

    proxy.hang()
    try:
        for number, answer in enumerate(answers):
            job = answer["jobUrl"]
            ask(FLOOR, 200, "GET", "/tasks/")
            ask("job", 200, "GET", job)
            ask("retry, refused", 409, "POST", f"{job}retry/")
            if number % 3 == 0:
                ask("retry by force", 200, "POST", f"{job}retry/?force=true")
            elif number % 3 == 1:
                ask("stop of an execution", 200, "POST", f"{answer['executionUrl']}stop/")
            ask("retry of many", 200, "POST", "/tasks/hung/retry/")
            ask("put", 200, "PUT", job, {**payload, "startIn": "1h"})
            ask("stop of a job", 200, "POST", f"{job}stop/")
    finally:
        proxy.pass_on()
    return seconds


def print_summary(seconds: Mapping[str, Sequence[float]]) -> float:
    """Print what was seen; returns the longest."""
    floor = statistics.median(seconds[FLOOR])
    for what, found in seconds.items():
        middle = statistics.median(found)
        times = f"p50 {middle * 1000:5.1f} ms, longest {max(found) * 1000:6.1f} ms"
        print(f"{what + ':':22}{times}, ratio of p50 to the floor: {middle / floor:.1f}")
    longest = max(map(max, seconds.values()))
    print(f"longest of all: {longest * 1000:.1f} ms")
    return longest


@contextmanager
def fastlane(folder: Path, proxy: TcpProxy, jobs: int) -> Iterator[Service]:
    """One `fastlane dev` with the engine behind the proxy as its only host."""
    farm = {"hosts": [f"127.0.0.1:{proxy.port}"], "maxRunning": jobs}
    settings: dict[str, Any] = {
        "RUNNERS": ["docker"],
        "DOCKER_HOSTS": [farm],
        "DEPLOYMENT_ID": DEPLOYMENT,
        "STOP_GRACE_SECONDS": 0.0,
    }
    service = Service(folder, settings, verbosity="")
    try:
        yield service.start()
    finally:
        service.close()


def has_started(service: Service, answer: Mapping[str, str]) -> bool:
    """Whether the execution that a submission was answered with runs."""
    return bool(service.execution(answer)["status"] == "running")


def running(url: str) -> Sequence[str]:
    """Names of the benchmark's containers that run."""
    client = docker.DockerClient(base_url=url)
    try:
        return [str(each.name) for each in client.containers.list(filters={"label": f"{LABEL}={DEPLOYMENT}"})]
    finally:
        client.close()


if __name__ == "__main__":
    sys.exit(main())
