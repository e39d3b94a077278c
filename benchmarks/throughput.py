"""Jobs per second through Fastlane, as a share of what the same engines do bare, in the same run.

    python -m benchmarks.throughput [--jobs 240] [--rounds 4] [--engines 3] [--docker-host URL]... [--workers 0]

Rounds alternate: a block of `echo` containers through the SDK alone (create, start, wait, read the log, rename) spread
over the engines, with as many threads as suits them best, then the same number of jobs through Fastlane, as one farm
of these engines, from the first POST to the last result that the API shows. Both make their containers with the same
options: those that Fastlane gives to its own.

Engines are started as the tests do, unless --docker-host (once for each) or DOCKER_HOST names some. Fastlane is
`fastlane dev`, or with --workers `fastlane api` and so many of `fastlane worker`.

Prints jobs/s, the ratio to the bare engines' rate, and the overhead per job in wall-clock and CPU milliseconds: the CPU
time is that of Fastlane's own processes, less what the bare loop spends in the SDK; the engines are left out on both
sides. On a machine that others use too, the ratio wavers with the load average beside it; CPU time wavers less.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker

from tests.end_to_end.service import Service, until

IMAGE = "busybox:latest"
COMMAND = ["echo", "hello"]
OUTPUT = b"hello\n"
#: Marks the benchmark's containers, of both kinds: an engine that was given may hold others.
LABEL, DEPLOYMENT = "fastlane.deployment", f"benchmark-{uuid.uuid4()}"
#: Containers at a time, over all engines, of which the best is taken.
THREADS = (2, 3, 4, 6, 9, 12)
#: Far beyond what a block takes.
PATIENCE = 1800.0


@dataclass(frozen=True)
class Block:
    """One measured block of jobs."""

    rate: float
    cpu_ms: float


@dataclass(frozen=True)
class Overhead:
    """What Fastlane adds to a job."""

    ms: float
    cpu_ms: float


class Engines:
    """The engines, as the SDK sees them."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = urls
        self._clients = [docker.APIClient(base_url=url, version="auto", timeout=120) for url in urls]

    def version(self) -> str:
        """Of the first one."""
        return str(self._clients[0].version()["Version"])

    def host_config(self) -> Mapping[str, Any]:
        """The options of one of Fastlane's own containers."""
        for client in self._clients:
            for each in client.containers(all=True, limit=1, filters={"label": f"{LABEL}={DEPLOYMENT}"}):
                found: Mapping[str, Any] = client.inspect_container(each["Id"])["HostConfig"]
                return found
        raise SystemExit("none of Fastlane's containers is on the engines")

    def run(self, jobs: int, threads: int, host_config: Mapping[str, Any]) -> Block:
        """A block through the SDK alone."""
        config = {"Image": IMAGE, "Cmd": COMMAND, "Labels": {LABEL: DEPLOYMENT}, "HostConfig": host_config}

        def one(number: int) -> None:
            client = self._clients[number % len(self._clients)]
            name = f"bench-{uuid.uuid4().hex}"
            container = client.create_container_from_config(config, name)["Id"]
            client.start(container)
            assert client.wait(container)["StatusCode"] == 0
            assert client.logs(container) == OUTPUT
            client.rename(container, f"defunct-{name}")

        cpu, begun = time.process_time(), time.monotonic()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, range(jobs)))
        seconds = time.monotonic() - begun
        return Block(rate=jobs / seconds, cpu_ms=(time.process_time() - cpu) * 1000 / jobs)

    def clear(self) -> None:
        """Remove the benchmark's containers."""
        for client in self._clients:
            for each in client.containers(all=True, filters={"label": f"{LABEL}={DEPLOYMENT}"}):
                client.remove_container(each["Id"], force=True)

    def close(self) -> None:
        """Leave nothing of the benchmark behind."""
        self.clear()
        for client in self._clients:
            client.close()


class Fastlane:
    """`fastlane dev`, or an API and workers, with one farm of all engines."""

    def __init__(self, folder: Path, urls: Sequence[str], *, running: int, workers: int) -> None:
        settings = {
            "RUNNERS": ["docker"],
            "DOCKER_HOSTS": [{"match": "", "hosts": list(urls), "maxRunning": running}],
            "SQLITE_PATH": str(folder / "fastlane.db"),
            "LEASE_SECONDS": 15.0,
            "RECONCILE_INTERVAL_SECONDS": 10.0,
            "DEPLOYMENT_ID": DEPLOYMENT,
        }
        names = ["api", *(f"worker{number}" for number in range(workers))] if workers else ["dev"]
        self._services: list[Service] = []
        for name in names:
            command = ("worker",) if name.startswith("worker") else (name,)
            self._services.append(Service(folder / name, settings, command, verbosity=""))
        self._api = self._services[0]

    def __enter__(self) -> Fastlane:
        for service in self._services:
            service.start()
        return self

    def __exit__(self, *_: object) -> None:
        for service in self._services:
            service.close()

    def run(self, jobs: int) -> Block:
        """A block through the API."""
        cpu, begun = self._cpu_seconds(), time.monotonic()
        payload = {"image": IMAGE, "command": " ".join(COMMAND)}
        answers = [self._api.submit("bench", payload) for _ in range(jobs)]
        # First in, first out: the answer ends with the last job's end, and costs no polling.
        self._api.get(answers[-1]["executionUrl"] + "follow/")
        for answer in answers:
            until("the job has ended", lambda answer=answer: self._has_ended(answer), PATIENCE, pause=0.05)
        seconds = time.monotonic() - begun
        used = self._cpu_seconds() - cpu
        for answer in answers:
            assert self._api.get(answer["executionUrl"] + "stdout")[1] == OUTPUT
        return Block(rate=jobs / seconds, cpu_ms=used * 1000 / jobs)

    def idle_cpu_ms(self, seconds: float) -> float:
        """CPU milliseconds per second that it takes while there is nothing to do."""
        cpu, begun = self._cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        return (self._cpu_seconds() - cpu) * 1000 / (time.monotonic() - begun)

    def _has_ended(self, answer: dict[str, str]) -> bool:
        execution = self._api.execution(answer)
        if execution["status"] in ("enqueued", "pulling", "running"):
            return False
        if execution["status"] != "done":
            raise SystemExit(f"a job of the benchmark did not succeed: {json.dumps(execution, indent=1)}")
        return True

    def _cpu_seconds(self) -> float:
        ticks = 0
        for service in self._services:
            assert service.process is not None
            fields = Path(f"/proc/{service.process.pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 when the ratio or the overhead is not within its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=240, help="in all rounds together")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--engines", type=int, default=3, help="engines to start where none is given")
    parser.add_argument("--docker-host", action="append", help="an engine to use; once for each")
    parser.add_argument("--workers", type=int, default=0, help="worker processes beside one API; 0: `fastlane dev`")
    parser.add_argument("--threads", type=int, help="containers at a time; measured where it is not given")
    parser.add_argument("--idle-seconds", type=float, default=5.0, help="time in which idling is measured")
    parser.add_argument("--at-least", type=float, default=0.0, help="fail below this ratio")
    parser.add_argument("--most-ms", type=float, default=math.inf, help="fail above so many milliseconds per job")
    parser.add_argument("--most-cpu-ms", type=float, default=math.inf, help="fail above so much CPU time per job")
    options = parser.parse_args(arguments)
    given = options.docker_host or list(filter(None, [os.environ.get("DOCKER_HOST")]))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines = Engines(given or stack.enter_context(started(options.engines, folder)))
        stack.callback(engines.close)
        host_config = options_of_fastlane(folder, engines)
        threads = options.threads or best_threads(engines, host_config)
        print(f"{len(engines.urls)} engines {engines.version()}, {os.cpu_count()} cores, load {load()}")
        print(f"{options.jobs} jobs in {options.rounds} rounds, {threads} containers at a time")
        with Fastlane(folder / "measured", engines.urls, running=threads, workers=options.workers) as fastlane:
            fastlane.run(len(engines.urls))
            print(f"idle fastlane: {fastlane.idle_cpu_ms(options.idle_seconds):.1f} CPU ms per second")
            bares, ours = measure(engines, fastlane, options.jobs // options.rounds, options.rounds, threads)
    ratio, overhead = print_summary(bares, ours)
    kept = ratio >= options.at_least and overhead.ms <= options.most_ms and overhead.cpu_ms <= options.most_cpu_ms
    return 0 if kept else 1


def measure(
    engines: Engines, fastlane: Fastlane, size: int, rounds: int, threads: int
) -> tuple[Sequence[Block], Sequence[Block]]:
    """Blocks of `size` jobs of both kinds, in turn, each round beginning with the other kind."""
    host_config = engines.host_config()
    bares: list[Block] = []
    ours: list[Block] = []
    for number in range(rounds):
        for kind in ("bare", "fastlane") if number % 2 == 0 else ("fastlane", "bare"):
            engines.clear()
            if kind == "bare":
                bares.append(engines.run(size, threads, host_config))
            else:
                ours.append(fastlane.run(size))
        print(
            f"  round {number + 1}: bare {bares[-1].rate:5.2f} jobs/s {bares[-1].cpu_ms:5.1f} CPU ms"
            f"   fastlane {ours[-1].rate:5.2f} jobs/s {ours[-1].cpu_ms:5.1f} CPU ms   load {load()}",
            flush=True,
        )
    return bares, ours


def options_of_fastlane(folder: Path, engines: Engines) -> Mapping[str, Any]:
    """The options with which Fastlane makes a container."""
    with Fastlane(folder / "first", engines.urls, running=1, workers=0) as fastlane:
        fastlane.run(1)
    return engines.host_config()


def best_threads(engines: Engines, host_config: Mapping[str, Any]) -> int:
    """As many containers at a time as the engines do most jobs per second with."""
    return max(THREADS, key=lambda threads: engines.run(6 * threads, threads, host_config).rate)


@contextmanager
def started(count: int, folder: Path) -> Iterator[Sequence[str]]:
    """Engines of the benchmark's own, with the image; their URLs."""
    from tests.services.docker_engine import DockerEngine
    from tests.services.images import add_busybox

    with ExitStack() as stack:
        urls = []
        for number in range(count):
            engine = stack.enter_context(DockerEngine(folder / f"engine{number}"))
            add_busybox(engine.url)
            urls.append(engine.url)
        yield urls


def print_summary(bares: Sequence[Block], ours: Sequence[Block]) -> tuple[float, Overhead]:
    """Print what all rounds say together; returns the ratio and what a job costs more."""
    bare_rate, our_rate = (statistics.harmonic_mean([block.rate for block in blocks]) for blocks in (bares, ours))
    bare_cpu, our_cpu = (statistics.mean(block.cpu_ms for block in blocks) for blocks in (bares, ours))
    best = max(block.rate for block in bares)
    ratios = sorted(mine.rate / floor.rate for mine, floor in zip(ours, bares, strict=True))
    cpus = sorted(block.cpu_ms for block in ours)
    print(f"bare:      {bare_rate:5.2f} jobs/s (best round {best:.2f}), {bare_cpu:5.1f} CPU ms per job")
    print(f"fastlane:  {our_rate:5.2f} jobs/s, {our_cpu:5.1f} CPU ms per job (rounds: {cpus[0]:.1f} to {cpus[-1]:.1f})")
    print(
        f"ratio to the bare engines: {our_rate / bare_rate:.3f} (rounds: {ratios[0]:.2f} to {ratios[-1]:.2f}), "
        f"to their best round: {our_rate / best:.3f}"
    )
    overhead = Overhead(ms=1000 / our_rate - 1000 / bare_rate, cpu_ms=our_cpu - bare_cpu)
    print(f"overhead per job: {overhead.ms:.1f} ms, {overhead.cpu_ms:.1f} CPU ms")
    return our_rate / bare_rate, overhead


def load() -> str:
    """The machine's load average of the last minute."""
    return f"{os.getloadavg()[0]:.2f}"


if __name__ == "__main__":
    sys.exit(main())
