"""Jobs per second that `POST /tasks/<task>/bulk` accepts on SQLite, durable before each answer.

    python -m benchmarks.bulk [--jobs 10000] [--requests 24] [--clients 4] [--processes 2] [--rounds 3] [--at-least 0]

Starts `fastlane api` with so many processes on a new file. In each round so many clients send so many requests of
`--jobs` different jobs each; then what is stored is compared with what was answered. Prints the rate of each round with
the CPU time that a job took in all of Fastlane's processes, and the share of one bare loop that parses the same body
and writes an answer of the same size, which is the least that any service does. Nothing runs the jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.end_to_end.service import Service


@dataclass(frozen=True)
class Block:
    """One measured round."""

    rate: float
    cpu_us: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 when the median rate is below --at-least."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000, help="of each request")
    parser.add_argument("--requests", type=int, default=24, help="of each round")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-least", type=float, default=0.0, help="fail below so many jobs per second")
    options = parser.parse_args(arguments)
    jobs = [
        {"image": "busybox:latest", "command": f"echo {each}", "envs": {"N": str(each)}} for each in range(options.jobs)
    ]
    command = ("api", "--workers", str(options.processes)) if options.processes > 1 else ("api",)
    with tempfile.TemporaryDirectory(prefix="fastlane-benchmark-") as folder:
        service = Service(Path(folder), {}, command, verbosity="").start()
        try:
            status, answer = service.post("/tasks/benchmark/bulk", jobs[:100])
            assert status == 200, answer
            blocks = [_round(service, jobs, options, number) for number in range(options.rounds)]
            stored = service.get_json("/status/")["jobs"]["count"]
        finally:
            service.terminate()
    sent = 100 + options.jobs * options.requests * options.rounds
    if stored != sent:
        raise SystemExit(f"{sent} jobs were answered, but {stored} are stored")
    rates = [block.rate for block in blocks]
    median = statistics.median(rates)
    floor = _floor(jobs, answer["items"][0])
    print(f"{median:,.0f} jobs/s (rounds: {min(rates):,.0f} to {max(rates):,.0f}), {os.cpu_count()} cores")
    cpu_us = statistics.mean(block.cpu_us for block in blocks)
    print(f"CPU {cpu_us:.0f} us per job; bare parsing and printing {floor:.0f} us")
    return 0 if median >= options.at_least else 1


def _round(service: Service, jobs: Sequence[Mapping[str, Any]], options: argparse.Namespace, number: int) -> Block:
    # Written once, and the answer is not parsed: this process must take little of what it measures.
    body = json.dumps(jobs).encode()

    def send(_: int) -> None:
        status, answer, _ = service.send("POST", "/tasks/benchmark/bulk", body)
        assert (status, answer.count(b'"status":200')) == (200, len(jobs)), answer[:500]

    before, begun = _cpu_seconds(service), time.perf_counter()
    with ThreadPoolExecutor(options.clients) as clients:
        list(clients.map(send, range(options.requests)))
    seconds = time.perf_counter() - begun
    count = options.requests * len(jobs)
    block = Block(rate=count / seconds, cpu_us=(_cpu_seconds(service) - before) * 1e6 / count)
    print(
        f"  round {number + 1}: {block.rate:8,.0f} jobs/s {block.cpu_us:5.0f} us   load {os.getloadavg()[0]:.2f}",
        flush=True,
    )
    return block


def _floor(jobs: Sequence[Mapping[str, Any]], item: Mapping[str, Any]) -> float:
    """Microseconds that a job takes where nothing is done with it."""
    body = json.dumps(jobs)
    begun = time.process_time()
    json.dumps([item for _ in json.loads(body)])
    return (time.process_time() - begun) * 1e6 / len(jobs)


def _cpu_seconds(service: Service) -> float:
    """Taken so far by the service and its children."""
    assert service.process is not None
    pids = [service.process.pid]
    for pid in pids:
        pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
