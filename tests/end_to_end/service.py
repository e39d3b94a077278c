"""A real `fastlane` of the tests: started as its users start it, killed as the world kills it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.services.ports import free_port

#: Far beyond what anything takes on a busy machine; reached only when something is broken.
PATIENCE = 90.0


def until(
    what: str | Callable[[], str], condition: Callable[[], Any], patience: float = PATIENCE, pause: float = 0.02
) -> Any:
    """Wait until the condition holds and return what it gave; fails with `what` when patience runs out."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(pause)
    raise AssertionError(f"gave up waiting until {what if isinstance(what, str) else what()}")


class Service:
    """`fastlane dev` (or another command) in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, object],
        command: Sequence[str] = ("dev",),
        verbosity: str = "-vv",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """The folder is made. `environment` is added to that of the test run; paths of PYTHONPATH are put in front of
        those there."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = command
        self.verbosity = verbosity
        self.process: subprocess.Popen[bytes] | None = None
        self._environment = {**_environment(), **(environment or {})}
        paths = [(environment or {}).get("PYTHONPATH"), os.environ.get("PYTHONPATH")]
        self._environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        defaults = {"SQLITE_PATH": str(folder / "fastlane.db"), "LEASE_SECONDS": 2.0, "RECONCILE_INTERVAL_SECONDS": 1.0}
        lines = [f"{key} = {value!r}" for key, value in {**defaults, **settings}.items()]
        self.config = folder / "fastlane.conf"
        self.config.write_text("\n".join(lines) + "\n")
        self.log = folder / "fastlane.log"

    def start(self) -> Service:
        """Start it and wait until it answers."""
        arguments = [
            sys.executable,
            "-m",
            "fastlane_core",
            *self.command,
            "-c",
            str(self.config),
            *filter(None, [self.verbosity]),
        ]
        if self.command[0] in ("dev", "api"):
            arguments += ["-b", "127.0.0.1", "-p", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                arguments, cwd=self.folder, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        if self.command[0] in ("dev", "api"):
            until(lambda: f"{self.command[0]} answers; its log: {self.tail()}", self._answers)
        return self

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"it ended with {self.process.returncode}: {self.tail()}")
        try:
            return self.get("/healthcheck")[0] == 200
        except OSError:
            return False

    def tail(self, size: int = 6000) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def kill(self) -> None:
        """`kill -9`."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)

    def terminate(self) -> float:
        """SIGTERM; returns the seconds until it had exited."""
        assert self.process is not None
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)
        return time.monotonic() - begun

    def close(self) -> None:
        """End it however it is."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)

    # HTTP, as any client would

    def get(self, path: str) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body and headers of a GET."""
        return self._call(urllib.request.Request(self._absolute(path)))

    def get_json(self, path: str) -> Any:
        """The JSON of a GET that must succeed."""
        status, body, _ = self.get(path)
        assert status == 200, (status, body)
        return json.loads(body)

    def post(self, path: str, payload: object) -> tuple[int, Any]:
        """Status and JSON of a POST."""
        status, body, _ = self.request("POST", path, payload)
        return status, json.loads(body)

    def request(self, method: str, path: str, payload: object) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body and headers of any request with a JSON body."""
        return self.send(method, path, json.dumps(payload).encode())

    def send(self, method: str, path: str, body: bytes) -> tuple[int, bytes, Mapping[str, str]]:
        """Status, body and headers of any request."""
        return self._call(urllib.request.Request(self._absolute(path), body, method=method))

    def submit(self, task: str, payload: Mapping[str, object]) -> Any:
        """Submit a job that must be accepted."""
        status, answer = self.post(f"/tasks/{task}", payload)
        assert status == 200, answer
        return answer

    def execution(self, answer: Mapping[str, str]) -> Any:
        """The execution that a submission was answered with."""
        return self.get_json(answer["executionUrl"])["execution"]

    def finished(self, answer: Mapping[str, str]) -> Any:
        """The execution, once it has ended."""
        return until(lambda: f"{answer['executionUrl']} has ended; log: {self.tail()}", lambda: self._if_ended(answer))

    def _if_ended(self, answer: Mapping[str, str]) -> Any:
        execution = self.execution(answer)
        return execution if execution["status"] not in ("enqueued", "pulling", "running") else None

    def _absolute(self, path: str) -> str:
        """A path, or a URL that an answer carried, on this service's present port."""
        if path.startswith("http"):
            path = "/" + path.split("/", 3)[3]
        return self.url + path

    def _call(self, request: urllib.request.Request) -> tuple[int, bytes, Mapping[str, str]]:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), dict(error.headers)


def _environment() -> dict[str, str]:
    """The environment without settings of the machine that the tests run on."""
    settings = ("FASTLANE_", "DOCKER_", "REDIS_", "MONGODB_")
    return {key: value for key, value in os.environ.items() if not key.startswith(settings)}
