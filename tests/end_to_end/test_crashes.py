"""Workers killed at any instant: nothing is lost, nothing runs twice. On the process runner: no engine is needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastlane_core.engine.faultpoints import FaultPoint
from tests.end_to_end.service import PATIENCE, Service, until

#: Everything a job does leaves a trace: a line in a file per run, and output on both streams.
SCRIPT = "echo run >> {trace}; echo begin; echo oops >&2; sleep 0.3; printf end; exit {code}"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """An API without a worker; each test brings its own."""
    settings = {"RUNNERS": ["process"], "PROCESS_FOLDER": str(tmp_path / "engine"), "LEASE_SECONDS": 1.0}
    service = Service(tmp_path, {**settings, "EXPONENTIAL_BACKOFF_MIN_MS": 100}, ("api",)).start()
    yield service
    service.close()


def submit(service: Service, trace: Path, *, code: int = 0, retries: int = 0) -> Any:
    script = SCRIPT.format(trace=trace, code=code)
    command = ["sh", "-c", script]
    return service.submit("crashes", {"image": "none", "command": command, "retries": retries})


def worker(service: Service, point: str) -> subprocess.Popen[bytes]:
    with service.log.open("ab") as log:
        arguments = [sys.executable, "-m", "tests.end_to_end.mortal_worker", str(service.config), point]
        return subprocess.Popen(arguments, stdout=log, stderr=log)


#: Those on the way of an execution; `tests/integration/test_engine_schedules.py` has those of schedules.
POINTS = [point for point in FaultPoint if not point.startswith("ticks_")]


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_at_any_step_loses_and_doubles_nothing(
    service: Service, tmp_path: Path, point: FaultPoint
) -> None:
    trace = tmp_path / "trace"
    needs_retry = point is FaultPoint.RETRY_ADDED
    answer = submit(service, trace, code=7 if needs_retry else 0, retries=1 if needs_retry else 0)
    victim = worker(service, point)
    assert victim.wait(PATIENCE) == -9, f"it never reached {point}: {service.tail()}"
    heir = worker(service, "none")
    try:
        execution = service.finished(answer)
        assert execution["status"] == ("failed" if needs_retry else "done")
        assert execution["exitCode"] == (7 if needs_retry else 0)
        assert service.get(answer["executionUrl"] + "stdout")[1] == b"begin\nend"
        assert service.get(answer["executionUrl"] + "stderr")[1] == b"oops\n"
        runs = 2 if needs_retry else 1
        if needs_retry:
            until("the retry has ended", lambda: _all_ended(service, answer, runs))
        until("the queue is empty", lambda: _queue_is_empty(service))
        assert trace.read_text() == "run\n" * runs
        assert service.get_json(answer["jobUrl"])["job"]["executionCount"] == runs
        until("the run is cleaned up", lambda: not list((tmp_path / "engine/runs").iterdir()))
    finally:
        heir.terminate()
        heir.wait(PATIENCE)


def _all_ended(service: Service, answer: Any, count: int) -> bool:
    executions = service.get_json(answer["jobUrl"])["job"]["executions"]
    return len(executions) == count and all(each["status"] == "failed" for each in executions)


def _queue_is_empty(service: Service) -> bool:
    return bool(service.get_json("/status/")["queues"]["jobs"]["length"] == 0)
