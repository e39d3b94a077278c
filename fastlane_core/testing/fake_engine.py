"""An engine in memory: it outlives the runners that use it, does what tests script, and counts what it did."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastlane_core.contracts.runner import ProgressCallback
from fastlane_core.errors import EngineUnavailable, ImageNotFound, RunnerError, RunNotFound, StartRejected
from fastlane_core.models import Progress, Reason, RunOutcome, RunRequest, Stream
from fastlane_core.testing.runner_commands import ShellCommands


@dataclass(slots=True)
class FakeRun:
    """A run in the engine's memory."""

    request: RunRequest
    created_at: float
    ignores_stop: bool = False
    outcome: RunOutcome | None = None
    finished_at: float | None = None
    output: dict[Stream, bytearray] = field(default_factory=lambda: {each: bytearray() for each in Stream})
    #: Set, and replaced by a new one, whenever something about the run changes.
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    script: asyncio.Task[None] | None = None


class FakePull:
    """A pull of an image that lasts as long as a test wants, and tells what the test says."""

    def __init__(self) -> None:
        self._listeners: list[ProgressCallback] = []
        self._over = asyncio.Event()
        self._error: RunnerError | None = None

    @property
    def waiting(self) -> int:
        """How many runs wait for it."""
        return len(self._listeners)

    def tell(self, message: str) -> None:
        """Tell all who wait how far it is."""
        for listener in self._listeners:
            listener(Progress(message=message))

    def end(self) -> None:
        """Let them go on."""
        self._over.set()

    def fail(self, error: RunnerError) -> None:
        """Let it fail for all who wait."""
        self._error = error
        self._over.set()

    async def join(self, progress: ProgressCallback) -> None:
        """Wait for its end."""
        self._listeners.append(progress)
        try:
            await self._over.wait()
        finally:
            self._listeners.remove(progress)
        if self._error is not None:
            raise self._error


class FakeEngine:
    """Runs scripts instead of containers. All workers of a test share one; it lives within one event loop.

    The command of a run is one of

        true | exit CODE | echo WORDS | sleep SECONDS    what they do in a shell; an empty command is `true`
        hang | hang-deaf                                 write the line `ready`, and go on until stopped (or killed)
        write STDOUT STDERR                              bytes, in hexadecimal
        repeat TEXT TIMES                                to stdout, without a newline
        count LINES LINES | count-slowly LINES PAUSE     the numbers from 1, to stdout (and stderr)
        arguments WORDS | environment                    a NUL behind each
        reject                                           makes `start` raise StartRejected

    and any other fails with 127, `not-executable` with 126. Besides, a test writes and ends by `write` and `end`.
    """

    def __init__(
        self,
        *,
        places: Mapping[str, int] | None = None,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`places` gives the runs at a time per place; all time passes by `clock` and `sleep`."""
        self.places = dict(places if places is not None else {"fake-host": 4})
        self.clock = clock
        self._sleep = sleep
        #: By execution id, with those that were finished and not pruned.
        self.runs: dict[str, FakeRun] = {}
        #: How often the command of each execution began: more than once is a broken promise.
        self.starts: Counter[str] = Counter()
        #: Names that cannot be pulled.
        self.missing_images: set[str] = set()
        #: Places that take nothing new; runs that are there go on.
        self.cordoned: set[str] = set()
        self.is_down = False
        self._open_gate: asyncio.Event | None = None
        self._start_failures: list[tuple[RunnerError, bool]] = []
        self._pull_failures: list[RunnerError] = []
        self._pulls: dict[str, FakePull] = {}

    # What a test does

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Out of reach within the block: every call, also those under way, raises EngineUnavailable. Runs go on."""
        self.is_down = True
        self._notify_all()
        try:
            yield
        finally:
            self.is_down = False

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """New calls get no answer before the end of the block."""
        self._open_gate = asyncio.Event()
        try:
            yield
        finally:
            self._open_gate.set()
            self._open_gate = None

    @contextmanager
    def pulling(self, image: str) -> Iterator[FakePull]:
        """Within the block, runs of the image wait for it to be pulled."""
        pull = self._pulls[image] = FakePull()
        try:
            yield pull
        finally:
            del self._pulls[image]
            pull.end()

    def fail_next_pull(self, error: RunnerError) -> None:
        """Make the next call of `prepare` raise `error`."""
        self._pull_failures.append(error)

    def fail_next_start(self, error: RunnerError, *, after_starting: bool = False) -> None:
        """Make the next call of `start` raise `error`, before or after the run has begun."""
        self._start_failures.append((error, after_starting))

    def write(self, execution_id: str, stdout: bytes = b"", stderr: bytes = b"") -> None:
        """Let a run write."""
        run = self.run(execution_id)
        run.output[Stream.STDOUT] += stdout
        run.output[Stream.STDERR] += stderr
        self._notify(run)

    def end(self, execution_id: str, outcome: RunOutcome | None = None) -> None:
        """Let a run end, by default with success."""
        run = self.run(execution_id)
        self._end(run, outcome or _exited(0))

    def lose(self, execution_id: str) -> None:
        """Let a run vanish, as if somebody had removed it behind Fastlane's back."""
        run = self.runs.pop(execution_id)
        if run.script is not None:
            run.script.cancel()
        self._notify(run)

    @property
    def running(self) -> Sequence[str]:
        """Executions that run now."""
        return [id_ for id_, run in self.runs.items() if run.outcome is None]

    # What a runner does

    async def reach(self) -> None:
        """Every call begins with it. Raises EngineUnavailable during an outage; waits while the engine hangs."""
        if self._open_gate is not None:
            await self._open_gate.wait()
        self.check()

    def check(self, *, had_answered: bool = False) -> None:
        """Raise EngineUnavailable during an outage."""
        if self.is_down:
            raise EngineUnavailable("the fake engine is down: a test says so", had_answered=had_answered)

    async def pull(self, image: str, progress: ProgressCallback) -> None:
        """Return when the image is there. Raises ImageNotFound, and what `fail_next_pull` was told."""
        if self._pull_failures:
            raise self._pull_failures.pop(0)
        if image in self.missing_images:
            raise ImageNotFound(f"the fake engine has no image {image}")
        if image in self._pulls:
            await self._pulls[image].join(progress)
        progress(Progress(message=f"pulled {image}", current=1, total=1))

    def run(self, execution_id: str) -> FakeRun:
        """A run. Raises RunNotFound."""
        try:
            return self.runs[execution_id]
        except KeyError:
            raise RunNotFound(f"the fake engine has no run of execution {execution_id}") from None

    def start(self, request: RunRequest) -> None:
        """Begin a run, unless there is one. Raises StartRejected, and what `fail_next_start` was told."""
        failure, after_starting = self._start_failures.pop(0) if self._start_failures else (None, False)
        if failure is not None and not after_starting:
            raise failure
        if request.execution_id not in self.runs:
            if request.argv[:1] == ("reject",):
                raise StartRejected("the fake engine rejects this command")
            run = FakeRun(request=request, created_at=self.clock())
            self.runs[request.execution_id] = run
            self.starts[request.execution_id] += 1
            self._begin(run, request.argv or ("true",))
        if failure is not None:
            raise failure

    async def stop(self, run: FakeRun, grace: float) -> None:
        """End a run: at once when it heeds being asked, else after `grace` seconds."""
        if run.outcome is None and not run.ignores_stop and grace > 0:
            self._end(run, _killed(143, "SIGTERM"))
        elif run.outcome is None and grace > 0:
            tasks = [asyncio.ensure_future(self._until_ended(run)), asyncio.ensure_future(self._sleep(grace))]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        self._end(run, _killed(137, "SIGKILL"))

    def remove(self, execution_ids: Sequence[str]) -> None:
        """Forget finished runs."""
        for execution_id in execution_ids:
            del self.runs[execution_id]

    # How runs go

    def _begin(self, run: FakeRun, argv: Sequence[str]) -> None:
        stdout, stderr = run.output[Stream.STDOUT], run.output[Stream.STDERR]
        outcome = _exited(0)
        match list(argv):
            case ["true"]:
                pass
            case ["exit", code]:
                outcome = _exited(int(code))
            case ["echo", *words]:
                stdout += " ".join(words).encode() + b"\n"
            case ["write", out, err]:
                stdout += bytes.fromhex(out)
                stderr += bytes.fromhex(err)
            case ["repeat", text, times]:
                stdout += text.encode() * int(times)
            case ["count", out, err]:
                stdout += b"".join(b"%d\n" % number for number in range(1, int(out) + 1))
                stderr += b"".join(b"%d\n" % number for number in range(1, int(err) + 1))
            case ["arguments", *words]:
                stdout += "".join(f"{word}\0" for word in words).encode()
            case ["environment"]:
                stdout += "".join(f"{name}={value}\0" for name, value in run.request.spec.env.items()).encode()
            case ["hang" | "hang-deaf" as how]:
                run.ignores_stop = how == "hang-deaf"
                stdout += b"ready\n"
                return
            case ["sleep", seconds]:
                run.script = asyncio.create_task(self._count_slowly(run, 0, float(seconds)))
                return
            case ["count-slowly", lines, pause]:
                run.script = asyncio.create_task(self._count_slowly(run, int(lines), float(pause)))
                return
            case ["not-executable", *_]:
                outcome = RunOutcome(
                    exit_code=126, reason=Reason.COMMAND_NOT_EXECUTABLE, message="the file is not executable"
                )
            case _:
                outcome = RunOutcome(
                    exit_code=127, reason=Reason.COMMAND_NOT_FOUND, message=f"the fake engine has no {argv[0]!r}"
                )
        self._end(run, outcome)

    async def _count_slowly(self, run: FakeRun, lines: int, pause: float) -> None:
        for number in range(1, lines + 1):
            await self._sleep(pause)
            run.output[Stream.STDOUT] += b"%d\n" % number
            self._notify(run)
        if not lines:
            await self._sleep(pause)
        self._end(run, _exited(0))

    async def _until_ended(self, run: FakeRun) -> None:
        while run.outcome is None:
            await run.changed.wait()

    def _end(self, run: FakeRun, outcome: RunOutcome) -> None:
        if run.outcome is not None:
            return
        run.outcome = RunOutcome(
            exit_code=outcome.exit_code,
            reason=outcome.reason,
            message=outcome.message,
            started_at=run.created_at,
            finished_at=self.clock(),
        )
        if run.script is not None:
            run.script.cancel()
        self._notify(run)

    def _notify(self, run: FakeRun) -> None:
        changed, run.changed = run.changed, asyncio.Event()
        changed.set()

    def _notify_all(self) -> None:
        for run in self.runs.values():
            self._notify(run)


class FakeCommands(ShellCommands):
    """The suite's behaviours in the language of `FakeEngine`."""

    def write(self, stdout: bytes = b"", stderr: bytes = b"") -> str:
        return f"write '{stdout.hex()}' '{stderr.hex()}'"

    def exit_with(self, code: int) -> str:
        return f"exit {code}"

    def long_line(self, size: int) -> str:
        return f"repeat x {size}"

    def count(self, stdout: int, stderr: int) -> str:
        return f"count {stdout} {stderr}"

    def count_slowly(self, lines: int, pause: float) -> str:
        return f"count-slowly {lines} {pause}"

    def wait_for_stop(self) -> str:
        return "hang"

    def ignore_stop(self) -> str:
        return "hang-deaf"

    def print_arguments(self, arguments: Sequence[str]) -> str:
        return shlex.join(["arguments", *arguments])

    def print_environment(self) -> str:
        return "environment"

    def missing(self) -> str:
        return "no-such-command"

    def not_executable(self) -> str:
        return "not-executable"


def _exited(code: int) -> RunOutcome:
    return RunOutcome(exit_code=code, reason=Reason.EXIT_CODE if code else Reason.SUCCEEDED)


def _killed(code: int, name: str) -> RunOutcome:
    return RunOutcome(exit_code=code, reason=Reason.SIGNAL, message=f"killed by {name}")
