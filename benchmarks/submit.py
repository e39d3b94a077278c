"""Jobs accepted per second by one API process, as a share of what an empty endpoint answers, in the same run.

    python -m benchmarks.submit [--seconds 4] [--rounds 6] [--connections 16,64] [--stores sqlite,redis] [--at-least 0]

The floor is `benchmarks.empty`: a Quart application served by hypercorn, in a process of its own, with one POST
endpoint that reads the JSON body and answers a small JSON object. Against it stands one `fastlane api` process for each
kind of store: `sqlite` (storage and queue in one file), `redis` (SQLite and a Redis queue) and `mongo` (MongoDB and a
Redis queue; without `mongod` on the path its server is a stand-in, which is far slower than MongoDB). Every job is
stored when its answer leaves.

Rounds alternate: the same requests go to each of them in turn over so many keep-alive connections, from this process,
which says by its own CPU time how many requests per second it could make at most. Prints of each kind answers per
second, the ratio to the floor of the same round, and CPU milliseconds per request of the server process. On a machine
that others use too, rates waver with the load average beside them; CPU time wavers less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Load, request_bytes, run_load
from tests.end_to_end.service import Service, until
from tests.services.ports import free_port

BODY = json.dumps({"image": "busybox:latest", "command": "echo hello"}).encode()
STORES = ("sqlite", "redis", "mongo")
FLOOR = "floor"
#: Requests before anything is measured, for each kind.
_WARM_UP = 500


@dataclass(frozen=True)
class Server:
    """One process that is measured."""

    port: int
    pid: int

    def load(self, connections: int, *, seconds: float | None = None, requests: int | None = None) -> Load:
        """Jobs submitted to one task, each of which must be accepted."""
        request = request_bytes("POST", f"http://127.0.0.1:{self.port}/tasks/benchmark/", BODY)
        load = run_load(
            ("127.0.0.1", self.port), lambda: request, connections=connections, seconds=seconds, requests=requests
        )
        if set(load.statuses) != {200}:
            raise SystemExit(f"not every request was accepted: {dict(load.statuses)}")
        return load

    def cpu_seconds(self) -> float:
        """Taken so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Block:
    """One measured block of requests."""

    rate: float
    cpu_ms: float
    ceiling: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; the exit code is 1 when a ratio is below --at-least."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each block")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--connections", default="16,64")
    parser.add_argument("--stores", default="sqlite,redis", help=f"of {','.join(STORES)}")
    parser.add_argument("--at-least", type=float, default=0.0, help="fail below this ratio")
    options = parser.parse_args(arguments)
    stores = options.stores.split(",")
    ratios: list[float] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastlane-benchmark-")))
        servers = {FLOOR: stack.enter_context(floor(folder))}
        servers |= {store: stack.enter_context(fastlane(folder / store, store)) for store in stores}
        for server in servers.values():
            server.load(16, requests=_WARM_UP)
        for connections in map(int, options.connections.split(",")):
            print(f"{connections} connections, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}")
            blocks = measure(servers, connections, options.seconds, options.rounds)
            ratios += print_summary(blocks)
    return 0 if min(ratios) >= options.at_least else 1


def measure(
    servers: Mapping[str, Server], connections: int, seconds: float, rounds: int
) -> Mapping[str, Sequence[Block]]:
    """Blocks of each kind, in turns, each round beginning with another kind."""
    blocks: dict[str, list[Block]] = {name: [] for name in servers}
    names = list(servers)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            server = servers[name]
            before = server.cpu_seconds()
            load = server.load(connections, seconds=seconds)
            cpu_ms = (server.cpu_seconds() - before) * 1000 / len(load.latencies)
            blocks[name].append(Block(rate=load.rate, cpu_ms=cpu_ms, ceiling=load.ceiling))
        shown = "   ".join(
            f"{name} {found[-1].rate:6,.0f}/s {found[-1].cpu_ms:.2f} ms" for name, found in blocks.items()
        )
        print(f"  round {number + 1}: {shown}   load {os.getloadavg()[0]:.2f}", flush=True)
    return blocks


def print_summary(blocks: Mapping[str, Sequence[Block]]) -> Sequence[float]:
    """Print what all rounds say together; returns the ratios."""
    ceiling = min(block.ceiling for found in blocks.values() for block in found)
    print(f"the generator alone would make at least {ceiling:,.0f}/s")
    floors = blocks[FLOOR]
    floor_cpu = statistics.median(block.cpu_ms for block in floors)
    ratios: list[float] = []
    for name, found in blocks.items():
        rates, cpus = sorted(block.rate for block in found), sorted(block.cpu_ms for block in found)
        line = (
            f"{name + ':':8}{statistics.median(rates):6,.0f}/s ({rates[0]:,.0f} to {rates[-1]:,.0f}), "
            f"{statistics.median(cpus):.2f} CPU ms per request ({cpus[0]:.2f} to {cpus[-1]:.2f})"
        )
        if name != FLOOR:
            each = sorted(mine.rate / floor.rate for mine, floor in zip(found, floors, strict=True))
            ratios.append(statistics.median(each))
            line += (
                f", ratio to the floor: {ratios[-1]:.2f} ({each[0]:.2f} to {each[-1]:.2f}), "
                f"by CPU time {floor_cpu / statistics.median(cpus):.2f}"
            )
        print(line)
    return ratios


@contextmanager
def floor(folder: Path) -> Iterator[Server]:
    """The empty endpoint."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.empty", str(port)], stderr=subprocess.DEVNULL)
    server = Server(port, process.pid)

    def answers() -> bool:
        try:
            return bool(server.load(1, requests=1).statuses)
        except OSError:
            return False

    try:
        until("the empty endpoint answers", answers)
        yield server
    finally:
        process.kill()
        process.wait()


@contextmanager
def fastlane(folder: Path, store: str) -> Iterator[Server]:
    """One `fastlane api` on that kind of store."""
    from tests.services import mongodb
    from tests.services.redis_server import RedisServer

    settings: dict[str, object] = {"RUNNERS": ["process"]}
    folder.mkdir()
    with ExitStack() as stack:
        if store in ("redis", "mongo"):
            settings |= {"QUEUE": "redis", "REDIS_URL": stack.enter_context(RedisServer(folder / "redis")).url}
        if store == "mongo":
            settings |= {"STORAGE": "mongo", "MONGODB_URL": stack.enter_context(mongodb.new_server()).url}
        service = Service(folder, settings, ("api",), verbosity="")
        stack.callback(service.close)
        service.start()
        assert service.process is not None
        yield Server(service.port, service.process.pid)


if __name__ == "__main__":
    sys.exit(main())
