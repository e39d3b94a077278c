"""An API, two workers and farms of real engines, and what the engines themselves say of who ran where and when."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import requests
from docker.errors import DockerException

from tests.end_to_end.service import Service, until
from tests.services.docker_engine import DockerEngine

LABEL = "fastlane.deployment"
#: Seconds between two looks of the sampler.
_SAMPLE_SECONDS = 0.05
#: Seconds for which events are followed in one request.
_FOLLOW_SECONDS = 2.0
#: What the SDK raises for an engine that a test has killed.
_DOWN = (requests.RequestException, DockerException)


class Fastlane:
    """`fastlane api` and two `fastlane worker`, over one database."""

    def __init__(self, folder: Path, farms: Sequence[Mapping[str, object]], **settings: object) -> None:
        self.deployment = f"test-{folder.name}"
        shared = {
            "SQLITE_PATH": str(folder / "fastlane.db"),
            "RUNNERS": ["docker"],
            "DOCKER_HOSTS": list(farms),
            "DEPLOYMENT_ID": self.deployment,
            "DOCKER_CIRCUIT_BREAKER_RESET_TIMEOUT_SECONDS": 2.0,
            "EXPONENTIAL_BACKOFF_MIN_MS": 100,
            **settings,
        }
        self._hosts = sum(len(hosts) for each in farms if isinstance(hosts := each["hosts"], Sequence))
        self.api = Service(folder / "api", shared, command=("api",))
        self.workers = [
            Service(folder / name, shared, command=("worker", "-i", name)) for name in ("worker1", "worker2")
        ]

    def __enter__(self) -> Fastlane:
        self.api.start()
        for worker in self.workers:
            worker.start()
        until(lambda: f"both workers offer all hosts, not {self.status()['workers']}; {self.tails()}", self._is_ready)
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self.workers, self.api):
            process.close()

    def status(self) -> Any:
        return self.api.get_json("/status")

    def host(self, port: int) -> Any:
        """What `/status` says of the host on this port; None before a worker told of it."""
        return next((host for host in self.status()["hosts"] if host["port"] == port), None)

    def submit(self, task: str, script: str, count: int = 1, **payload: object) -> list[Any]:
        """So many jobs that run a shell script."""
        job = {"image": "busybox", "command": ["sh", "-c", script], **payload}
        return [self.api.submit(task, job) for _ in range(count)]

    def attempts(self, answer: Mapping[str, str]) -> list[Any]:
        """The executions of a job, first one first."""
        return list(reversed(self.api.get_json(answer["jobUrl"])["job"]["executions"]))

    def done(self, answer: Mapping[str, str]) -> list[Any]:
        """The executions of a job once the last of them is done."""

        def what() -> str:
            return f"{answer['jobUrl']} is done, not {self.attempts(answer)}; {self.tails()}"

        return until(what, lambda: self._if_done(answer), patience=180, pause=0.1)

    def blacklist(self, method: str, body: Mapping[str, object]) -> None:
        status, answer, _ = self.api.request(method, "/docker-executor/blacklist", body)
        assert status == 200, answer

    def tails(self) -> str:
        return "\n".join(process.tail(3000) for process in (self.api, *self.workers))

    def _is_ready(self) -> bool:
        """Whether each worker has reached each host: jobs go by the others where it has not."""
        lanes = [lane for worker in self.status()["workers"] for lane in worker["lanes"].values()]
        return sum(len(lane["places"]) for lane in lanes) == len(self.workers) * self._hosts

    def _if_done(self, answer: Mapping[str, str]) -> list[Any] | None:
        attempts = self.attempts(answer)
        return attempts if attempts[-1]["status"] == "done" else None


@dataclass
class Witness:
    """What the engines of one farm tell of a deployment's containers, all the time."""

    #: Most containers that `docker ps` showed at a time.
    seen_most: int = 0
    looks: int = 0
    #: Executions by engine, moment, action and container. One that is killed may not tell of its last.
    events: dict[tuple[int, int, str, str], str] = field(default_factory=dict)

    def count(self, action: str) -> Counter[str]:
        """How often that happened to containers of each execution."""
        return Counter(execution for (_, _, what, _), execution in self.events.items() if what == action)

    @property
    def executions(self) -> frozenset[str]:
        """Those of which there were containers."""
        return frozenset(self.events.values())

    def containers(self, execution: str) -> frozenset[tuple[int, str]]:
        """Those that the execution ever had: the engine's number, and the id."""
        return frozenset((number, found) for (number, _, _, found), whose in self.events.items() if whose == execution)

    def was_started(self, container: tuple[int, str]) -> bool:
        """Whether an event tells of its start."""
        return any((number, found) == container and what == "start" for number, _, what, found in self.events)

    def most(self) -> int:
        """Most containers that ran at a time, by the events."""
        running = most = 0
        for _, action in sorted((at, action) for (_, at, action, _) in self.events):
            running += {"start": 1, "die": -1}.get(action, 0)
            most = max(most, running)
        return most


@contextlib.contextmanager
def witnessed(deployment: str, farms: Mapping[str, Sequence[DockerEngine]]) -> Iterator[dict[str, Witness]]:
    """Watch the farms from the outside while the block runs; what was seen, by farm."""
    found = {name: Witness() for name in farms}
    stop = threading.Event()
    label = f"{LABEL}={deployment}"
    watchers: list[threading.Thread] = []
    for name, engines in farms.items():
        watchers.append(threading.Thread(target=_sample, args=(label, engines, found[name], stop), daemon=True))
        for number, engine in enumerate(engines):
            events = (label, engine, number, found[name].events, stop)
            watchers.append(threading.Thread(target=_note_events, args=events, daemon=True))
    for watcher in watchers:
        watcher.start()
    try:
        yield found
    finally:
        stop.set()
        for watcher in watchers:
            watcher.join(60)


def _sample(label: str, engines: Sequence[DockerEngine], witness: Witness, stop: threading.Event) -> None:
    """Engines are asked one after the other: what runs in two looks at all of them ran at a time, between the two."""
    before: set[str] = set()
    while not stop.wait(_SAMPLE_SECONDS):
        running: set[str] = set()
        for engine in engines:
            # One that a test has killed tells nothing meanwhile.
            with contextlib.suppress(*_DOWN), contextlib.closing(sdk(engine)) as client:
                running |= {each["Id"] for each in client.containers(filters={"label": label}, quiet=True)}
        witness.seen_most = max(witness.seen_most, len(running & before))
        witness.looks += 1
        before = running


def _note_events(
    label: str, engine: DockerEngine, number: int, events: dict[tuple[int, int, str, str], str], stop: threading.Event
) -> None:
    """Follow the engine's events, again and again: it ends each following by itself, and may be killed meanwhile."""
    filters = {"type": ["container"], "event": ["create", "start", "die", "destroy"], "label": [label]}
    since = time.time()
    ends = False
    while not ends:
        ends = stop.is_set()
        until = time.time() + (0.0 if ends else _FOLLOW_SECONDS)
        with contextlib.suppress(*_DOWN), contextlib.closing(sdk(engine)) as client:
            followed = client.events(since=f"{since:.6f}", until=f"{until:.6f}", filters=filters, decode=True)
            for event in followed:
                key = (number, event["timeNano"], event["Action"], event["id"])
                events[key] = event["Actor"]["Attributes"]["fastlane.execution"]
            since = until - 1.0
            continue
        stop.wait(_SAMPLE_SECONDS)


def sdk(engine: DockerEngine) -> docker.APIClient:
    """The engine as its operator sees it; over TCP, as the SDK leaves Unix sockets open that it could not connect."""
    return docker.APIClient(base_url=engine.url, version="1.41", timeout=60)


def containers_of(deployment: str, engine: DockerEngine) -> Mapping[str, Sequence[Any]]:
    """Containers of the deployment on the engine by execution, running or not."""
    found: dict[str, list[Any]] = defaultdict(list)
    with contextlib.closing(sdk(engine)) as client:
        for each in client.containers(all=True, filters={"label": f"{LABEL}={deployment}"}):
            found[each["Labels"]["fastlane.execution"]].append(each)
    return found


def clear(engine: DockerEngine) -> None:
    """Remove all its containers."""
    with contextlib.closing(sdk(engine)) as client:
        for each in client.containers(all=True, quiet=True):
            client.remove_container(each["Id"], force=True, v=True)


@contextlib.contextmanager
def engines_of(count: int) -> Iterator[list[DockerEngine]]:
    """So many engines with busybox, side by side."""
    from tests.services.fixtures import started_engine

    # Engines listen on sockets in their folders, whose paths must be short.
    with tempfile.TemporaryDirectory(prefix="fl") as folder, ExitStack() as stack:
        yield [stack.enter_context(started_engine(Path(folder) / str(number))) for number in range(count)]
