"""A storm: jobs are submitted while, at random, everything is killed, paused and robbed of its data."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.deployment import MAX_RUNNING, Beneath, Damage, Deployment, deployed
from tests.chaos.workload import FREE, Accepted, Client, judge
from tests.end_to_end.farm_harness import containers_of, witnessed
from tests.end_to_end.service import until

#: Seconds for everything to end once nothing is hurt any more.
_CALM_PATIENCE = 420.0
_UNFINISHED = ("enqueued", "pulling", "running")


@dataclass
class Report:
    """What happened, and what of it should not have."""

    seed: int
    damages: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    repeats: int = 0
    attempts: Counter[str] = field(default_factory=Counter)
    containers: int = 0
    most_running: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        damages = [f"  {count:4} {what}" for what, count in sorted(self.damages.items())]
        attempts = [f"  {count:4} {reason}" for reason, count in sorted(self.attempts.items())]
        lines = [
            f"seed {self.seed}, {self.seconds:.0f} s",
            "damage done:",
            *damages,
            f"jobs accepted: {self.accepted}, after {self.repeats} requests that had to be repeated",
            f"attempts by how they ended ({sum(self.attempts.values())} in all):",
            *attempts,
            f"containers created: {self.containers}; most that ran at a time: {self.most_running} of {MAX_RUNNING}",
            f"problems: {len(self.problems)}",
            *(f"  {problem}" for problem in self.problems),
        ]
        return "\n".join(lines)


def storm(folder: Path, beneath: Beneath, *, seed: int, jobs: int, seconds: float) -> Report:
    """Submit so many jobs over so many seconds of damage, let everything end, and look at what became of it."""
    report = Report(seed=seed)
    begun = time.monotonic()
    with deployed(folder, beneath) as deployment:
        client = Client([api.url for api in deployment.apis], seed)
        with (
            witnessed(deployment.id, {"all": deployment.engines}) as witnesses,
            _raging(deployment, report, seed=seed, seconds=seconds) as calm,
        ):
            _submit(client, jobs, seconds)
            calm()
            _await_the_end(client)
            _look(deployment, client, report)
        # By looking: engines that are killed lose events of ends.
        report.most_running = witnesses["all"].seen_most
        if report.most_running > MAX_RUNNING:
            report.problems.append(f"{report.most_running} containers ran at a time")
    report.seconds = time.monotonic() - begun
    return report


@contextlib.contextmanager
def _raging(deployment: Deployment, report: Report, *, seed: int, seconds: float) -> Iterator[Callable[[], None]]:
    """Hurt things in the background; what is given returns when all that was hurt is well again."""
    ends_at = time.monotonic() + seconds
    errors: list[BaseException] = []
    over = threading.Event()

    def hurt(damages: Mapping[str, Damage], chance: random.Random, is_calm: threading.Event) -> None:
        names = sorted(damages)
        # Each once before any twice, so that a short storm has all of them.
        chance.shuffle(names)
        turn = 0
        try:
            while time.monotonic() < ends_at:
                time.sleep(chance.uniform(0.3, 2.0))
                name = names[turn] if turn < len(names) else chance.choice(names)
                turn += 1
                damages[name](chance)
                report.damages[name] += 1
        except BaseException as error:
            errors.append(error)
        finally:
            is_calm.set()
        # Servers that a thread has started may end with it.
        over.wait()

    calms: list[threading.Event] = []
    for number, damages in enumerate((deployment.process_damages(), deployment.server_damages())):
        calms.append(threading.Event())
        chance = random.Random(f"{seed} {number}")
        threading.Thread(target=hurt, args=(damages, chance, calms[-1]), daemon=True).start()

    def calm() -> None:
        for each in calms:
            each.wait()
        if errors:
            # What could not be repaired explains whatever else went wrong.
            raise errors[0]

    try:
        yield calm
    finally:
        try:
            calm()
        finally:
            over.set()


def _submit(client: Client, jobs: int, seconds: float) -> None:
    """Spread over the time of the storm, as far as answers come in time."""
    ends_at = time.monotonic() + seconds
    for number in range(jobs):
        client.submit(number)
        time.sleep(max(0.0, ends_at - time.monotonic()) / (jobs - number) / 2)


def _await_the_end(client: Client) -> None:
    unfinished = list(client.accepted)

    def all_ended() -> bool:
        unfinished[:] = [job for job in unfinished if not _has_ended(client, job)]
        return not unfinished

    until(lambda: f"all jobs have ended; {len(unfinished)} have not: {unfinished[:3]}", all_ended, _CALM_PATIENCE, 0.5)


def _has_ended(client: Client, job: Accepted) -> bool:
    attempts = _attempts(client, job)
    if not attempts or any(each["status"] in _UNFINISHED for each in attempts):
        return False
    return not _is_tried_again(job, attempts)


def _is_tried_again(job: Accepted, attempts: list[Any]) -> bool:
    """Whether an attempt more is to be expected."""
    last = attempts[-1]
    if last["reason"] in FREE:
        return True
    counted = sum(each["reason"] not in FREE for each in attempts)
    return last["status"] == "failed" and counted <= job.kind.retries


def _attempts(client: Client, job: Accepted) -> list[Any]:
    return list(reversed(client.get(job.path)["job"]["executions"]))


def _look(deployment: Deployment, client: Client, report: Report) -> None:
    """Compare what was accepted with what the API and the engines tell."""
    report.accepted, report.repeats = len(client.accepted), client.repeats
    known: set[str] = set()
    for job in client.accepted:
        attempts = _attempts(client, job)
        known |= {each["executionId"] for each in attempts}
        report.attempts.update(str(each["reason"]) for each in attempts)
        report.problems += judge(job, attempts)
    if len({job.path for job in client.accepted}) != len(client.accepted):
        report.problems.append("two submissions got the same job")
    containers: Counter[str] = Counter()
    for engine in deployment.engines:
        containers.update({execution: len(found) for execution, found in containers_of(deployment.id, engine).items()})
    report.containers = containers.total()
    report.problems += [f"{count} containers of execution {each}" for each, count in containers.items() if count > 1]
    report.problems += [f"a container of execution {each}, which no job has" for each in containers.keys() - known]
    lane: Any = None

    def is_free() -> bool:
        nonlocal lane
        lane = client.get("/status")["lanes"]["docker:all"]
        return lane["leased"] == lane["waiting"] == lane["delayed"] == 0

    try:
        until("no slot is taken", is_free, 60, 0.5)
    except AssertionError:
        report.problems.append(f"slots leaked: {lane}")
