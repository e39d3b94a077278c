"""Jobs of every kind, submitted by a client that does not give up, and what must have become of each."""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

#: Seconds that one request may take, and that a client goes on asking.
_REQUEST_SECONDS = 15.0
_PATIENCE = 90.0


#: Endings that are not the job's, and use up no retry.
FREE = ("engine_lost", "drained")


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


def _counting(lines: int, pause: str) -> tuple[str, str]:
    script = f"for i in $(seq 1 {lines}); do echo $i; sleep {pause}; done"
    return script, "".join(f"{number}\n" for number in range(1, lines + 1))


_LONG = _counting(40, "0.15")
_WIDE = "seq 1 9000; seq 1 300 >&2", "".join(f"{number}\n" for number in range(1, 9_001))
KINDS = (
    Kind(name="short", script="echo short; echo aside >&2", exit_code=0, stdout="short\n", stderr="aside\n"),
    Kind(name="long", script=_LONG[0], exit_code=0, stdout=_LONG[1]),
    Kind(
        name="wordy",
        script=_WIDE[0],
        exit_code=0,
        stdout=_WIDE[1],
        stderr="".join(f"{number}\n" for number in range(1, 301)),
    ),
    Kind(name="failing", script="echo no; exit 3", exit_code=3, stdout="no\n"),
    Kind(name="retried", script="echo again; exit 4", exit_code=4, stdout="again\n", retries=2),
    Kind(name="scheduled", script="echo later", exit_code=0, stdout="later\n", start_in="4s"),
)


@dataclass(frozen=True)
class Accepted:
    """A job that was accepted."""

    kind: Kind
    path: str


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
        payload: dict[str, object] = {
            "image": "busybox",
            "command": ["sh", "-c", kind.script],
            "retries": kind.retries,
        }
        if kind.start_in:
            payload["startIn"] = kind.start_in
        key = f"chaos-{self._seed}-{number}"
        answer = self._until_answered(f"/tasks/chaos-{kind.name}", json.dumps(payload).encode(), key)
        self.accepted.append(Accepted(kind=kind, path="/" + str(answer["jobUrl"]).split("/", 3)[3]))

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


def judge(job: Accepted, attempts: Sequence[Any]) -> list[str]:
    """What is wrong with an ended job, from its executions, oldest first."""
    kind, problems = job.kind, []
    reasons = [each["reason"] for each in attempts]
    counted = [each for each in attempts if each["reason"] not in FREE]
    last = attempts[-1]
    expected = "done" if kind.exit_code == 0 else "failed"
    if (last["status"], last["exitCode"]) != (expected, kind.exit_code):
        problems.append(f"ended as {last['status']} ({last['exitCode']}, {last['reason']}: {last['message']})")
    wanted = 1 if kind.exit_code == 0 else 1 + kind.retries
    if len(counted) != wanted:
        problems.append(f"took {len(counted)} attempts that count, not {wanted}: {reasons}")
    for each in counted:
        # An engine that is dead when a run ends does not keep what it wrote last, which Fastlane then says.
        if "output may be missing" in str(each["message"]):
            continue
        for stream, text, whole in (("stdout", each["log"], kind.stdout), ("stderr", each["error"], kind.stderr)):
            if text != whole:
                length = len(text or "")
                problems.append(f"{stream} of attempt {each['attempt']} has {length} of {len(whole)} characters")
    return [f"{kind.name} {job.path}: {problem}" for problem in problems]
