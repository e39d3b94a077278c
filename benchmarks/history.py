"""What requests cost on a store with a long history, against the same on one that is all but empty, in the same run.

    python -m benchmarks.history [--executions 1000000] [--pages 5000] [--requests 400] [--rounds 5] [--at-most 0]

Fills the SQLite storage of one `fastlane api` with jobs that have ended, an execution each, through the storage's
contract, spread over as many tasks as make so many pages of the task list. Another `fastlane api` has one page of tasks
with a job each. Then the same requests go to the two in turns, one at a time: submitting a job, the page of a job that
is picked at random from all, the last page of the task list, and `/status`.

Prints p50 and p99 of each request in milliseconds, and the ratios of the long history to the short one. On a machine
that others use too, p99 is mostly theirs: see how p50 compares.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import request_bytes, run_load
from fastlane_core.builtin.sqlite.storage import SqliteStorage
from fastlane_core.contracts.storage import Submission
from fastlane_core.engine.identifiers import new_id
from fastlane_core.models import Execution, Job, Reason, RunSpec, Status
from tests.end_to_end.service import Service

PER_PAGE = 10
SPEC = RunSpec(image="busybox:latest", command="echo hello", timeout=60.0)
BODY = json.dumps({"image": SPEC.image, "command": SPEC.command}).encode()
#: Jobs stored by one call.
_BATCH = 1_000
#: Requests of each kind before anything is measured.
_WARM_UP = 20


@dataclass(frozen=True, kw_only=True)
class History:
    """One API over jobs that have ended."""

    port: int
    pages: int
    #: Task and id of some of the jobs, picked at random from all.
    jobs: Sequence[tuple[str, str]]

    def requests(self) -> Mapping[str, Callable[[], bytes]]:
        """What makes the next request of each kind."""

        def request(method: str, path: str, body: bytes = b"") -> bytes:
            return request_bytes(method, f"http://127.0.0.1:{self.port}{path}", body)

        def job_page() -> bytes:
            task, job = random.choice(self.jobs)
            return request("GET", f"/tasks/{task}/jobs/{job}/")

        return {
            "submit": lambda: request("POST", f"/tasks/{random.choice(self.jobs)[0]}/", BODY),
            "job page": job_page,
            "task list": lambda: request("GET", f"/tasks/?page={self.pages}"),
            "status": lambda: request("GET", "/status/"),
        }

    def latencies(self, kind: str, requests: int) -> Sequence[float]:
        """Seconds that each of so many requests took."""
        load = run_load(("127.0.0.1", self.port), self.requests()[kind], connections=1, requests=requests)
        if set(load.statuses) != {200}:
            raise SystemExit(f"{kind}: not every request was answered well: {dict(load.statuses)}")
        return load.latencies


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 when a ratio is above --at-most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=1_000_000)
    parser.add_argument("--pages", type=int, default=5_000, help=f"of {PER_PAGE} tasks each")
    parser.add_argument("--requests", type=int, default=400, help="of each kind and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-most", type=float, default=0.0, help="fail above this ratio of a p99; 0 never does")
    options = parser.parse_args(arguments)
    random.seed(options.seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastlane-benchmark-")))
        short = stack.enter_context(opened(folder / "short", PER_PAGE, pages=1))
        long = stack.enter_context(opened(folder / "long", options.executions, pages=options.pages))
        found = measure({"short": short, "long": long}, options.requests, options.rounds)
    ratio = print_summary(found)
    return 0 if not options.at_most or ratio <= options.at_most else 1


@contextmanager
def opened(folder: Path, executions: int, *, pages: int) -> Iterator[History]:
    """An API over so many executions."""
    folder.mkdir()
    settings = {"RUNNERS": ["process"], "SQLITE_PATH": str(folder / "fastlane.db"), "PAGINATION_PER_PAGE": PER_PAGE}
    begun = time.perf_counter()
    jobs = asyncio.run(fill(folder / "fastlane.db", executions, tasks=pages * PER_PAGE))
    seconds = time.perf_counter() - begun
    size = (folder / "fastlane.db").stat().st_size / 1024**2
    print(
        f"{executions:,} executions on {pages:,} pages of tasks: {size:,.0f} MiB, filled in {seconds:.1f} s", flush=True
    )
    service = Service(folder, settings, ("api",), verbosity="").start()
    try:
        yield History(port=service.port, pages=pages, jobs=random.sample(jobs, min(len(jobs), 10_000)))
    finally:
        service.close()


async def fill(path: Path, executions: int, *, tasks: int) -> Sequence[tuple[str, str]]:
    """Store jobs that have ended; task and id of each."""
    storage = SqliteStorage(path)
    await storage.open()
    jobs: list[tuple[str, str]] = []
    try:
        for start in range(0, executions, _BATCH):
            numbers = range(start, min(start + _BATCH, executions))
            submissions = [ended(f"task-{number % tasks}", time.time()) for number in numbers]
            await storage.submit(submissions)
            jobs += [(each.job.task_id, each.job.id) for each in submissions]
    finally:
        await storage.close()
    return jobs


def ended(task_id: str, now: float) -> Submission:
    """A job whose one execution has succeeded."""
    job = Job(id=new_id(), task_id=task_id, spec=SPEC, created_at=now, modified_at=now)
    execution = Execution(
        id=new_id(),
        job_id=job.id,
        task_id=task_id,
        spec=SPEC,
        lane="process:local",
        status=Status.DONE,
        created_at=now,
        updated_at=now,
        started_at=now,
        finished_at=now,
        exit_code=0,
        reason=Reason.SUCCEEDED,
    )
    return Submission(job=job, execution=execution)


def measure(
    histories: Mapping[str, History], requests: int, rounds: int
) -> Mapping[str, Mapping[str, Sequence[float]]]:
    """Seconds by kind of request and by history, which are asked in turns."""
    kinds = list(histories["short"].requests())
    found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in histories} for kind in kinds}
    for kind in kinds:
        for history in histories.values():
            history.latencies(kind, _WARM_UP)
    for number in range(rounds):
        names = list(histories)[:: 1 if number % 2 == 0 else -1]
        for kind in kinds:
            for name in names:
                found[kind][name] += histories[name].latencies(kind, requests)
        print(f"  round {number + 1} done, load {os.getloadavg()[0]:.2f}", flush=True)
    return found


def print_summary(found: Mapping[str, Mapping[str, Sequence[float]]]) -> float:
    """Print what was found of each kind; returns the highest ratio of a p99."""
    ratios = []
    for kind, by_history in found.items():
        (p50, p99), (long_p50, long_p99) = (percentiles(by_history[name]) for name in ("short", "long"))
        ratios.append(long_p99 / p99)
        print(
            f"{kind + ':':11} p50 {p50:6.2f} and {long_p50:6.2f} ms, ratio {long_p50 / p50:.2f}; "
            f"p99 {p99:6.2f} and {long_p99:6.2f} ms, ratio {ratios[-1]:.2f}"
        )
    print(f"highest ratio of p99: {max(ratios):.2f} (limit 2)")
    return max(ratios)


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return cuts[49] * 1000, cuts[98] * 1000


if __name__ == "__main__":
    sys.exit(main())
