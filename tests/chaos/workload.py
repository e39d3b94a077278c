"""Jobs of every kind, submitted by a client that does not give up, and what must have become of each."""

from __future__ import annotations

import json
import math
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

#: Seconds that one request may take, and that a client goes on asking.
_REQUEST_SECONDS = 15.0
_PATIENCE = 90.0
#: Seconds between a cron job and its first tick, so that it is stored by then whatever dies meanwhile.
_CRON_NOTICE = 15.0


@dataclass(frozen=True)
class Kind:
    """One kind of job."""

    name: str
    script: str
    exit_code: int
    stdout: str
    stderr: str = ""
    retries: int = 0
    start_in: str | None = None
    #: Whether it runs at each minute for a while.
    cron: bool = False


def _numbered(last: int) -> str:
    return "".join(f"{number}\n" for number in range(1, last + 1))


def _counting(last: int, pause: str) -> str:
    return f"for i in $(seq 1 {last}); do echo $i; sleep {pause}; done"


#: Each writes numbered lines, so that nothing can be missing or double unseen.
KINDS = (
    Kind(name="short", script="seq 1 3; seq 1 2 >&2", exit_code=0, stdout=_numbered(3), stderr=_numbered(2)),
    Kind(name="long", script=_counting(50, "0.2"), exit_code=0, stdout=_numbered(50)),
    Kind(
        name="wordy",
        script="seq 1 9000; seq 1 300 >&2",
        exit_code=0,
        stdout=_numbered(9_000),
        stderr=_numbered(300),
    ),
    Kind(name="failing", script="seq 1 5; exit 3", exit_code=3, stdout=_numbered(5)),
    Kind(name="retried", script="seq 1 7; exit 4", exit_code=4, stdout=_numbered(7), retries=2),
    Kind(name="scheduled", script="seq 1 4", exit_code=0, stdout=_numbered(4), start_in="4s"),
)
CRON = Kind(name="cron", script="seq 1 6", exit_code=0, stdout=_numbered(6), cron=True)


def task_of(kind: Kind) -> str:
    """The task of all jobs of a kind."""
    return f"chaos-{kind.name}"


@dataclass(frozen=True)
class Accepted:
    """A job that was accepted."""

    kind: Kind
    path: str
    #: When it must have run, by Unix time; once each.
    ticks: Sequence[int] = ()


class Client:
    """Submits jobs to whichever API answers, with an idempotency key each, until they are accepted."""

    def __init__(self, urls: Sequence[str], seed: int) -> None:
        self._urls = urls
        self._random = random.Random(seed)
        self._seed = seed
        self.accepted: list[Accepted] = []
        #: Requests that had to be repeated.
        self.repeats = 0

    def submit(self, number: int) -> None:
        """One more job."""
        kind = KINDS[number % len(KINDS)]
        self._submit(kind, f"{number}", {"startIn": kind.start_in} if kind.start_in else {})

    def submit_cron(self, number: int, *, seconds: float) -> None:
        """A job that runs at each whole minute of so many seconds, and at one at least."""
        now = time.time()
        first = math.ceil((now + _CRON_NOTICE) / 60) * 60
        ticks = range(first, max(first, int(now + seconds)) + 1, 60)
        schedule = {"cron": "* * * * *", "startAt": first - 1, "endAt": ticks[-1] + 1, "misfire": "run_all"}
        self._submit(CRON, f"cron-{number}", schedule, ticks)

    def _submit(self, kind: Kind, number: str, when: Mapping[str, object], ticks: Sequence[int] = ()) -> None:
        job = {"image": "busybox", "command": ["sh", "-c", kind.script], "retries": kind.retries, **when}
        key = f"chaos-{self._seed}-{number}"
        answer = self._until_answered(f"/tasks/{task_of(kind)}/", json.dumps(job).encode(), key)
        self.accepted.append(Accepted(kind=kind, path=_path(answer["jobUrl"]), ticks=ticks))

    def jobs_of(self, task: str) -> Sequence[str]:
        """The paths of all jobs of a task."""
        found: list[str] = []
        page: str | None = f"/tasks/{task}/"
        while page:
            answer = self.get(page)
            found += [_path(job["url"]) for job in answer["jobs"]]
            page = answer["nextUrl"] and _path(answer["nextUrl"])
        return found

    def get(self, path: str) -> Any:
        """The JSON at a path, from whichever API answers."""
        return self._until_answered(path, None, "")

    def _until_answered(self, path: str, body: bytes | None, key: str) -> Any:
        deadline = time.monotonic() + _PATIENCE
        while True:
            request = urllib.request.Request(self._random.choice(self._urls) + path, body)
            if key:
                request.add_header("Idempotency-Key", key)
            try:
                with urllib.request.urlopen(request, timeout=_REQUEST_SECONDS) as answer:
                    return json.loads(answer.read())
            except urllib.error.HTTPError as error:
                with error:
                    told = error.read().decode(errors="replace")
                if error.code < 500:
                    raise AssertionError(f"{path} was refused with {error.code}: {told}") from error
            except (OSError, HTTPException, ValueError):
                # No API there, or one that died while it answered.
                told = "no answer"
            self.repeats += 1
            if time.monotonic() > deadline:
                raise AssertionError(f"{path} got no answer for {_PATIENCE:g} s: {told}")
            time.sleep(0.1)


def _path(url: str) -> str:
    """What follows the API's address: another one may be asked."""
    return "/" + url.split("/", 3)[3]
