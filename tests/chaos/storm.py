"""A storm: jobs are submitted while, at random, everything is killed, paused and robbed of its data."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.chaos.deployment import MAX_RUNNING, Beneath, Damage, Deployment, InVain, deployed
from tests.chaos.judging import attempts_of, has_ended, judge
from tests.chaos.report import Report
from tests.chaos.workload import Client
from tests.end_to_end.farm_harness import witnessed
from tests.end_to_end.service import until

#: Seconds for everything to end once nothing is hurt any more.
_CALM_PATIENCE = 420.0
#: Every so many jobs there is one besides that runs by a cron schedule.
_CRON_SHARE = 30
#: How often a damage that does not come about is tried.
_TRIES = 3


def storm(folder: Path, beneath: Beneath, *, seed: int, jobs: int, seconds: float) -> Report:
    """Submit so many jobs over so many seconds of damage, let everything end, and look at what became of it."""
    report = Report(seed=seed)
    begun = time.monotonic()
    # What a storm has started again lives as long as its threads: until everything was looked at.
    with (
        deployed(folder, beneath) as deployment,
        _raging(deployment, report, seed=seed, seconds=seconds) as calm,
    ):
        client = Client([api.url for api in deployment.apis], seed)
        with witnessed(deployment.id, {"all": deployment.engines}) as witnesses:
            _submit(client, jobs, seconds)
            calm()
            with contextlib.suppress(AssertionError):
                # What has not ended is told of by the report.
                _await_the_end(client)
        witness = witnesses["all"]
        judge(deployment, client, witness, report)
        # By looking: engines that are killed lose events of ends.
        report.most_running, report.looks = witness.seen_most, witness.looks
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
        # Each once before any twice, and before the storm ends.
        first = chance.sample(names, len(names))
        try:
            while first or time.monotonic() < ends_at:
                time.sleep(chance.uniform(0.3, 2.0))
                name = first.pop() if first else chance.choice(names)
                try:
                    damages[name](chance)
                except InVain:
                    report.in_vain[name] += 1
                    if report.in_vain[name] < _TRIES and not report.damages[name]:
                        first.insert(0, name)
                else:
                    report.damages[name] += 1
        except BaseException as error:
            errors.append(error)
        finally:
            is_calm.set()
        # Servers that a thread has started may end with it.
        over.wait()

    calms: list[threading.Event] = []
    for number, damages in enumerate((deployment.process_damages(), deployment.server_damages())):
        report.damages.update(dict.fromkeys(damages, 0))
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
        if number % _CRON_SHARE == 0:
            client.submit_cron(number, seconds=ends_at - time.monotonic())
        client.submit(number)
        time.sleep(max(0.0, ends_at - time.monotonic()) / (jobs - number) / 2)


def _await_the_end(client: Client) -> None:
    unfinished = list(client.accepted)

    def all_ended() -> bool:
        unfinished[:] = [job for job in unfinished if not has_ended(job, attempts_of(client, job))]
        return not unfinished

    until("all jobs have ended", all_ended, _CALM_PATIENCE, 0.5)
