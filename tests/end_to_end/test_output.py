"""Output through real processes: exact to the byte whatever is written, and read and served in bounded memory."""

from __future__ import annotations

import contextlib
import hashlib
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.end_to_end.service import PATIENCE, Service, until
from tests.services.fixtures import SharedEngine

pytestmark = pytest.mark.services

MIB = 1024 * 1024
#: What neither a worker nor an API may use more of, however much their runs write.
MOST_MEMORY = 200 * MIB
#: Far beyond what writing and reading the most that a test writes takes.
LONG_PATIENCE = 900.0


class Fastlane:
    """An API and a worker as two processes, with one engine."""

    def __init__(self, folder: Path, engine: SharedEngine, *, running: int) -> None:
        self.deployment = f"test-{folder.name}"
        self.engine = engine
        settings = {
            "RUNNERS": ["docker"],
            "DOCKER_HOSTS": [{"match": "", "hosts": [engine.url], "maxRunning": running}],
            "SQLITE_PATH": str(folder / "fastlane.db"),
            "MAX_LOG_BYTES": 300 * MIB,
            "LEASE_SECONDS": 15.0,
            "DEPLOYMENT_ID": self.deployment,
        }
        self.api = Service(folder / "api", settings, command=("api",))
        self.worker = Service(folder / "worker", settings, command=("worker",))

    def __enter__(self) -> Fastlane:
        self.api.start()
        self.worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.close()
        self.api.close()
        with contextlib.closing(docker.DockerClient(base_url=self.engine.url, timeout=60)) as client:
            for each in client.containers.list(all=True, filters={"label": f"fastlane.deployment={self.deployment}"}):
                each.remove(force=True, v=True)

    def submit(self, script: str) -> Any:
        """A job that runs a shell script."""
        return self.api.submit("output", {"image": "busybox", "command": ["sh", "-c", script]})

    def done(self, answer: Mapping[str, str]) -> Any:
        """The execution, once it has ended well."""

        def ended() -> Any:
            execution = self.api.execution(answer)
            return execution if execution["status"] not in ("enqueued", "pulling", "running") else None

        execution = until(
            f"{answer['executionUrl']} has ended; log: {self.worker.tail()}", ended, LONG_PATIENCE, pause=0.2
        )
        assert (execution["status"], execution["exitCode"], execution["outputLimitReached"]) == ("done", 0, False)
        return execution

    def digest(self, answer: Mapping[str, str], stream: str) -> tuple[int, str]:
        """Length and SHA-256 of what `/stdout` or `/stderr` gives."""
        digest, size = hashlib.sha256(), 0
        path = answer["executionUrl"].split("/", 3)[3]
        with urllib.request.urlopen(f"{self.api.url}/{path}{stream}", timeout=PATIENCE) as body:
            while data := body.read(MIB):
                digest.update(data)
                size += len(data)
        return size, digest.hexdigest()

    def told(self, answer: Mapping[str, str]) -> tuple[int, str]:
        """Length and SHA-256 of its stdout, as a script that was `hashed` tells on stderr."""
        size, digest, *_ = self.api.get(answer["executionUrl"] + "stderr")[1].decode().split()
        return int(size), digest


def hashed(script: str) -> str:
    """The script, but its output is written at full speed, after length and SHA-256 of it on stderr."""
    return f"{{ {script}; }} >/tmp/it; stat -c %s /tmp/it >&2; sha256sum </tmp/it >&2; exec cat /tmp/it"


def of(data: bytes) -> tuple[int, str]:
    """Length and SHA-256."""
    return len(data), hashlib.sha256(data).hexdigest()


def numbers(count: int) -> bytes:
    """The lines `1` to `count`."""
    return b"".join(b"%d\n" % number for number in range(1, count + 1))


def most_memory(service: Service) -> int:
    """The most bytes that the process has had in memory so far."""
    assert service.process is not None
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.fixture(scope="module")
def fastlane(tmp_path_factory: pytest.TempPathFactory, docker_engine: SharedEngine) -> Iterator[Fastlane]:
    with Fastlane(tmp_path_factory.mktemp("output"), docker_engine, running=4) as fastlane:
        yield fastlane


@pytest.mark.parametrize(
    ("script", "stdout", "stderr"),
    [
        ("true", b"", b""),
        ("printf 'one\\nno newline at the end'; printf also >&2", b"one\nno newline at the end", b"also"),
        ("seq 100000 & seq 1000 >&2; wait", numbers(100_000), numbers(1_000)),
        (f"head -c {5 * MIB} /dev/zero | tr '\\0' x; echo", b"x" * 5 * MIB + b"\n", b""),
        (f"head -c {5 * MIB + 1} /dev/zero", b"\0" * (5 * MIB + 1), b""),
        (
            'i=0; while [ $i -lt 256 ]; do printf "\\\\$(printf %03o $i)"; i=$((i + 1)); done',
            bytes(range(256)),
            b"",
        ),
    ],
    ids=["nothing", "no final newline", "100k and 1k lines", "5 MiB line", "5 MiB of zeros", "every byte"],
)
def test_output_is_exact_to_the_byte(fastlane: Fastlane, script: str, stdout: bytes, stderr: bytes) -> None:
    answer = fastlane.submit(script)
    fastlane.done(answer)
    assert fastlane.digest(answer, "stdout") == of(stdout)
    assert fastlane.digest(answer, "stderr") == of(stderr)


def test_random_bytes_are_exact(fastlane: Fastlane) -> None:
    answer = fastlane.submit(hashed(f"head -c {16 * MIB} /dev/urandom"))
    fastlane.done(answer)
    assert fastlane.digest(answer, "stdout") == fastlane.told(answer)


def test_256_mib_at_full_speed_are_exact_and_served_in_bounded_memory(fastlane: Fastlane) -> None:
    answer = fastlane.submit(hashed(f"head -c {192 * MIB} /dev/urandom | base64 -w 1000"))
    fastlane.done(answer)
    size, digest = fastlane.digest(answer, "stdout")
    assert size > 256 * MIB
    assert (size, digest) == fastlane.told(answer)
    assert most_memory(fastlane.api) < MOST_MEMORY
    assert most_memory(fastlane.worker) < MOST_MEMORY


@pytest.mark.parametrize("mib", [5, pytest.param(50, marks=pytest.mark.long)])
def test_20_containers_write_at_full_speed_in_bounded_memory(
    tmp_path: Path, docker_engine: SharedEngine, mib: int
) -> None:
    with Fastlane(tmp_path, docker_engine, running=20) as fastlane:
        answers = [fastlane.submit(hashed(f"head -c {mib * MIB} /dev/urandom")) for _ in range(20)]
        for answer in answers:
            fastlane.done(answer)
        for answer in answers:
            assert fastlane.digest(answer, "stdout") == fastlane.told(answer)
        assert most_memory(fastlane.worker) < MOST_MEMORY
        assert most_memory(fastlane.api) < MOST_MEMORY
