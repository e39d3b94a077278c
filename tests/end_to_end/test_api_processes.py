"""`fastlane api --workers N`: real processes behind one socket, killed one by one, together, and without their head."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.end_to_end.service import PATIENCE, Service, until

#: Seconds in which everything has to be gone: the grace that a process gets, and room for a busy machine.
SECONDS_TO_END = 30.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path, {"RUNNERS": ["process"]}, ("api", "--workers", "3"))
    service.start()
    pids = all_children(service)
    yield service
    # Whatever the test found out, nothing of it goes on.
    for pid in pids | children(service):
        if is_of(service, pid):
            os.kill(pid, signal.SIGKILL)
    service.close()


def children(service: Service) -> set[int]:
    """The processes that the service's own process has started to serve; what its imports start is none."""
    assert service.process is not None
    pid = service.process.pid
    try:
        return {
            child
            for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            if b"--supervised" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        }
    except (FileNotFoundError, ProcessLookupError):
        return set()


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def is_of(service: Service, pid: int) -> bool:
    """Whether the process is still one of the service's: ids are used again."""
    try:
        return str(service.config).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def all_children(service: Service) -> set[int]:
    """The children, once all three are there."""
    found: set[int] = until("three processes serve", lambda: _three(service))
    return found


def _three(service: Service) -> set[int] | None:
    ready = service.log.read_text().count("serving")
    found = children(service)
    return found if len(found) == 3 and ready >= 3 else None


def serving_pid(service: Service) -> int:
    """Which process answers a request."""
    return int(service.get_json("/status/")["fastlane"]["pid"])


def port_is_free(service: Service) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", service.port))
        except OSError:
            return False
    return True


def test_each_process_serves_requests_also_while_the_others_are_stuck(service: Service) -> None:
    pids = all_children(service)
    served = set()
    for _ in pids:
        pid = serving_pid(service)
        served.add(pid)
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)

    assert served == pids
    assert service.process is not None
    assert service.process.pid not in served


def test_a_killed_process_is_replaced_and_requests_go_on_being_answered(service: Service) -> None:
    pids = all_children(service)
    answered, resets = [0], [0]
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            try:
                assert service.get("/healthcheck")[0] == 200
                answered[0] += 1
            except (OSError, HTTPException):
                # The one that was killed may have been in the middle of its answer.
                resets[0] += 1

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        for count, pid in enumerate(sorted(pids), start=1):
            before = answered[0]
            os.kill(pid, signal.SIGKILL)
            until("it is replaced", lambda pid=pid: len(children(service) - {pid}) == 3)
            until("the new one serves", lambda count=count: service.log.read_text().count("serving") >= 3 + count)
            until("requests are answered", lambda before=before: answered[0] > before + 10)
    finally:
        done.set()
        for client in clients:
            client.join(PATIENCE)

    assert not children(service) & pids
    # Each kill costs at most the requests that the killed process had in hand.
    assert resets[0] <= 3 * len(clients)


def test_when_the_supervisor_is_killed_every_process_ends_and_the_port_is_free(service: Service) -> None:
    pids = all_children(service)
    service.kill()

    until("no process is left", lambda: all(map(is_gone, pids)), SECONDS_TO_END)
    assert port_is_free(service)


def test_sigterm_ends_all_in_seconds_even_one_that_hangs(service: Service) -> None:
    pids = all_children(service)
    os.kill(min(pids), signal.SIGSTOP)
    seconds = service.terminate()

    assert service.process is not None
    assert service.process.returncode == 0
    assert all(map(is_gone, pids))
    assert port_is_free(service)
    assert seconds < SECONDS_TO_END


def test_interrupting_while_the_first_process_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    service = Service(tmp_path, {"RUNNERS": ["process"]}, ("api", "--workers", "2"))
    command = [sys.executable, "-m", "fastlane_core", *service.command, "-p", str(service.port), "-c", service.config]
    process = service.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=tmp_path)
    (pid,) = until("a child is there", lambda: children(service))
    process.send_signal(signal.SIGINT)

    assert process.wait(PATIENCE) == 0
    assert is_gone(pid)
    assert port_is_free(service)


@pytest.mark.parametrize(
    ("settings", "words", "code"),
    [
        ('STORAGE = "sqlight"', "did you mean sqlite?", 2),
        ('SQLITE_PATH = "/proc/none/fastlane.db"', "cannot be opened for writing", 1),
    ],
)
def test_what_the_first_process_refuses_is_said_once_and_ends_all(
    tmp_path: Path, settings: str, words: str, code: int
) -> None:
    config = tmp_path / "bad.conf"
    config.write_text(settings + "\n")
    command = [sys.executable, "-m", "fastlane_core", "api", "--workers", "3", "-p", "0", "-c", str(config)]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)

    assert done.returncode == code
    assert done.stderr.count(words) == 1
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_refused_before_any_process_is_started(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "fastlane_core", "api", "--workers", "2", "-p", str(port)]
        done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)

    assert done.returncode == 2
    assert done.stderr.count(f"cannot listen on 127.0.0.1:{port}") == 1
    assert not list(tmp_path.iterdir())


def test_a_free_port_of_ipv6_is_shared_by_all(tmp_path: Path) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("this machine has no IPv6")
    service = Service(tmp_path, {"RUNNERS": ["process"]})
    command = ["api", "--workers", "2", "-b", "::1", "-p", "0", "-c", str(service.config)]
    with service.log.open("ab") as log:
        process = service.process = subprocess.Popen(
            [sys.executable, "-m", "fastlane_core", *command], cwd=tmp_path, stderr=log
        )
    try:
        until("both serve", lambda: service.log.read_text().count("http://[::1]:") == 2)
        urls = {each.split('"')[0] for each in service.log.read_text().split('"url": "')[1:]}
        assert len(urls) == 1
        service.url = urls.pop()
        assert serving_pid(service) in children(service)
    finally:
        service.terminate()
    assert process.returncode == 0
