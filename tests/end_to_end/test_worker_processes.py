"""`fastlane worker` as operators start it: its options, its place in `/status`, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fastlane_core import __version__
from tests.end_to_end.service import PATIENCE, Service, until


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """An API without a worker."""
    settings = {"RUNNERS": ["process"], "PROCESS_FOLDER": str(tmp_path / "engine")}
    service = Service(tmp_path, settings, ("api",)).start()
    yield service
    service.close()


def command(service: Service, *options: str) -> list[str]:
    return [sys.executable, "-m", "fastlane_core", "worker", "-c", str(service.config), *options]


class Worker:
    """A worker beside the API, ended at the end of the block."""

    def __init__(self, service: Service, *options: str) -> None:
        self._command, self._log = command(service, *options), service.log

    def __enter__(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        return self._process

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)


def refused(service: Service, *options: str) -> tuple[int, str]:
    """Exit code and stderr of a worker that does not come to work."""
    done = subprocess.run(command(service, *options), check=False, capture_output=True, text=True, timeout=PATIENCE)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def listed(service: Service, worker: str) -> Any:
    """The worker in `/status`, once it has reported its hosts."""

    def found() -> Any:
        workers = service.get_json("/status/")["workers"]
        return next((each for each in workers if each["worker"] == worker and each["lanes"]), None)

    return until(lambda: f"{worker} is listed; log: {service.tail()}", found)


def test_workers_are_listed_with_what_they_are_and_do(service: Service) -> None:
    with Worker(service, "-i", "w1", "--lanes", "process:*", "--concurrency", "7", "-n", "-w") as process:
        worker = listed(service, "w1")
        (api,) = service.get_json("/status/")["apis"]

    assert worker["pid"] == process.pid
    assert worker["version"] == __version__
    assert list(worker["lanes"]) == ["process:local"]
    assert (worker["running"], worker["concurrency"], worker["leftOut"]) == (0, 7, ["notify", "webhooks"])
    assert datetime.fromisoformat(worker["heartbeat"])
    assert "machine" not in worker
    assert service.process is not None
    assert (api["pid"], api["bind"], api["version"]) == (service.process.pid, f"127.0.0.1:{service.port}", __version__)
    assert service.get_json("/status/")["workers"] == []


def test_a_name_is_taken_as_long_as_its_worker_lives_and_free_once_it_was_killed(service: Service) -> None:
    with Worker(service, "-i", "w1") as process:
        listed(service, "w1")
        code, words = refused(service, "-i", "w1")
        assert code == 2
        assert f"the worker w1 (process {process.pid} on" in words
        process.kill()
        process.wait(PATIENCE)
        with Worker(service, "-i", "w1") as heir:
            until("the heir is listed", lambda: listed(service, "w1")["pid"] == heir.pid)


def test_what_a_worker_cannot_do_is_refused(service: Service) -> None:
    code, words = refused(service, "--lanes", "docker:gpu,process:local")
    assert (code, "there is no lane 'docker:gpu'; there are: process:local" in words) == (2, True)
    code, words = refused(service, "-j", "-m", "-n", "-w")
    assert (code, "nothing to do" in words) == (1, True)
    code, words = refused(service, "--concurrency", "0")
    assert (code, "--concurrency" in words) == (2, True)


def test_the_process_runner_refuses_an_api_of_another_process_that_others_reach(service: Service) -> None:
    service.terminate()
    with Worker(service, "-i", "w1"):
        # It came first, and takes nothing from an API that others reach: what that accepts waits, and says why.
        until("the worker is there", lambda: "worker is ready" in service.log.read_text())
        assert service.process is not None
        arguments = [sys.executable, "-m", "fastlane_core", "api", "-c", str(service.config)]
        with service.log.open("ab") as log:
            api = subprocess.Popen([*arguments, "-b", "0.0.0.0", "-p", str(service.port)], stdout=log, stderr=log)
        try:
            until("the API answers", lambda: _answers(service))
            answer = service.submit("t", {"image": "none", "command": "true"})
            until("it waits", lambda: "bound to 0.0.0.0" in str(service.execution(answer)["waitingFor"]))
            assert service.execution(answer)["status"] == "enqueued"
            code, words = refused(service, "-i", "w2")
            assert (code, f"bound to 0.0.0.0:{service.port}" in words) == (2, True)
        finally:
            api.terminate()
            api.wait(PATIENCE)
        service.start()
        assert service.finished(answer)["status"] == "done"


def _answers(service: Service) -> bool:
    try:
        return service.get("/healthcheck")[0] == 200
    except OSError:
        return False
