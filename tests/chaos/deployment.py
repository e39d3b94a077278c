"""Two API processes and three workers over two Docker engines, and the servers beneath, all of which can be hurt."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.end_to_end.farm_harness import engines_of
from tests.end_to_end.service import Service, until
from tests.services.docker_engine import DockerEngine

LEASE_SECONDS = 2.0
#: So few that the storm fills them.
MAX_RUNNING = 4

#: Does some damage, waits, and repairs it.
Damage = Callable[[random.Random], None]


class InVain(Exception):
    """What was meant to be the damage did not come about; everything is repaired."""


@dataclass
class Beneath:
    """Storage and queue."""

    settings: Mapping[str, object]
    damages: Mapping[str, Damage] = field(default_factory=dict)


@dataclass
class Deployment:
    """Everything that runs."""

    apis: Sequence[Service]
    workers: Sequence[Service]
    engines: Sequence[DockerEngine]
    beneath: Beneath
    id: str

    def process_damages(self) -> Mapping[str, Damage]:
        """What can be done to Fastlane's own processes."""

        def kill(services: Sequence[Service], chance: random.Random) -> None:
            service = chance.choice(services)
            service.kill()
            time.sleep(chance.uniform(0.2, 3.0))
            _start_until_it_stays(service)

        def pause(chance: random.Random) -> None:
            service = chance.choice(self.workers)
            assert service.process is not None
            os.kill(service.process.pid, signal.SIGSTOP)
            time.sleep(LEASE_SECONDS * chance.uniform(1.5, 3.0))
            os.kill(service.process.pid, signal.SIGCONT)

        return {
            "kill -9 of a worker": lambda chance: kill(self.workers, chance),
            "kill -9 of an API": lambda chance: kill(self.apis, chance),
            "pause of a worker for longer than its lease": pause,
        }

    def server_damages(self) -> Mapping[str, Damage]:
        """What can be done to the servers that it uses."""

        def kill_engine(chance: random.Random) -> None:
            engine = chance.choice(self.engines)
            engine.kill()
            time.sleep(chance.uniform(0.5, 4.0))
            engine.start()

        return {**self.beneath.damages, "kill -9 of a Docker engine": kill_engine}


@contextlib.contextmanager
def deployed(folder: Path, beneath: Beneath) -> Iterator[Deployment]:
    """A deployment that runs, and ends with the block."""
    with ExitStack() as stack:
        engines = stack.enter_context(engines_of(2))
        settings: dict[str, object] = {
            "RUNNERS": ["docker"],
            "DOCKER_HOSTS": [{"name": "all", "hosts": [each.url for each in engines], "maxRunning": MAX_RUNNING}],
            "DOCKER_TIMEOUT_SECONDS": 10.0,
            "DOCKER_PING_SECONDS": 1.0,
            "DOCKER_CIRCUIT_BREAKER_RESET_TIMEOUT_SECONDS": 2.0,
            "EXPONENTIAL_BACKOFF_MIN_MS": 100,
            "LEASE_SECONDS": LEASE_SECONDS,
            "DEPLOYMENT_ID": f"chaos-{folder.name}",
            **beneath.settings,
        }

        def service(name: str, *command: str) -> Service:
            started = Service(folder / name, settings, command=command, verbosity="-v").start()
            stack.callback(started.close)
            return started

        yield Deployment(
            apis=[service(f"api{number}", "api") for number in range(2)],
            workers=[service(f"worker{number}", "worker", "-i", f"worker{number}") for number in range(3)],
            engines=engines,
            beneath=beneath,
            id=str(settings["DEPLOYMENT_ID"]),
        )


def _start_until_it_stays(service: Service) -> None:
    """As restart policies do: a process that begins while its servers are away ends again, and says why."""

    def stays() -> bool:
        service.close()
        return _starts(service)

    until(lambda: f"{service.command} stays up; its log: {service.tail()}", stays, pause=0.5)


def _starts(service: Service) -> bool:
    def times_ready() -> int:
        return service.log.read_text(errors="replace").count("worker is ready")

    before = times_ready()
    try:
        # An API is waited for.
        service.start()
    except AssertionError:
        return False
    process = service.process
    assert process is not None
    if "worker" in service.command:
        until("it is ready, or ends", lambda: times_ready() > before or process.poll() is not None)
    return process.poll() is None
