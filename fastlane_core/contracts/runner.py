"""The contract of a runner: it starts, watches, stops and cleans up runs on some engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from fastlane_core.errors import RunNotFound, Unsupported
from fastlane_core.models import JsonObject, Output, Progress, RunHandle, RunOutcome, RunRequest, RunSpec

#: Told by `prepare` how far it is; must not block.
ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Capabilities:
    """Optional abilities; core looks at these flags, never at the class."""

    #: Runs go on when the worker ends, and `wait`, `logs` and `stop` work from a handle made by another process.
    detached: bool
    #: `prune` removes what `finish` left behind.
    prune: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Lane:
    """A named pool of capacity."""

    name: str
    #: Runs at a time over all workers.
    capacity: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Availability:
    """What a worker's runner can offer in a lane right now."""

    #: Runs at a time per place (host). Empty when no place can take anything.
    places: Mapping[str, int]
    #: Why something is missing, as a sentence; "" when nothing is.
    reason: str = ""
    #: Places whose engines can be reached, also where they are offered to nothing new (blacklisted): runs that are
    #: there are looked after, and what is left there is cleaned up. None means those of `places`.
    reachable: Collection[str] | None = None

    @property
    def reached(self) -> frozenset[str]:
        """The places whose engines can be reached."""
        return frozenset(self.places if self.reachable is None else self.reachable)


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnedRun:
    """A run found on an engine that carries this deployment's id."""

    execution_id: str
    fence: int
    handle: RunHandle
    running: bool
    created_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PrunedRun:
    """What `prune` removed, or with `dry_run` would remove."""

    #: As the engine's own tools show it.
    name: str
    execution_id: str
    #: As far as the engine tells; one that has lost its tag goes by its digest or id.
    image: str | None = None
    created_at: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneReport:
    """What `prune` did on one place."""

    place: str
    runs: Sequence[PrunedRun] = ()
    #: Why the place could not be pruned, or not wholly; "" when it was.
    error: str = ""

    @property
    def removed(self) -> Sequence[str]:
        """The names of what was removed."""
        return [run.name for run in self.runs]


class Runner(ABC):
    """Runs on one kind of engine.

    `capabilities`, `lanes`, `lane_for` and `check` are pure and work on a runner that was never opened: an API process
    routes and refuses without an engine in reach. Everything else but `prune` and `list_owned` is called by workers,
    between `open` and `close`, from one event loop, many at a time; nothing may block the loop, and every call to the
    engine has a time-out.
    """

    #: The name that it is registered under.
    name: str
    capabilities: Capabilities

    @abstractmethod
    def lanes(self) -> Sequence[Lane]:
        """All lanes that the settings give this runner; names start with the runner's own (`docker:gpu`)."""

    @abstractmethod
    def lane_for(self, task_id: str) -> str | None:
        """The lane that runs of this task go to, or None where no lane takes it."""

    def routing_help(self) -> str:
        """One sentence that tells which tasks the lanes take, for the refusal of a task that none takes."""
        return ""

    def check(self, lane: str, spec: RunSpec) -> None:  # noqa: B027
        """Refuse a job for `lane` that could never run there, or that asks for what the lane does not allow.

        Its options were validated by the runner's model before. Raises InvalidInput, which names the field of the job.
        """

    async def open(self) -> None:  # noqa: B027
        """Make ready to run. An engine that is out of reach is no error here: `availability` tells of it.

        Raises SettingsError for a set-up that can never work.
        """

    async def close(self) -> None:  # noqa: B027
        """Let go of connections and threads; runs go on where `capabilities.detached`."""

    async def availability(self, lane: str) -> Availability:
        """What `lane` offers at the moment. Answers from what is known, at once; asks no engine.

        A place that comes among the reachable ones is swept: what was given up while it was away is ended there.
        """
        capacity = next(each.capacity for each in self.lanes() if each.name == lane)
        return Availability(places={self.name: capacity})

    async def rank(self, lane: str, image: str, loads: Mapping[str, int]) -> Sequence[str]:
        """Places for a new run, best first. `loads` has the runs that each place holds now (absent means 0)."""
        return sorted((await self.availability(lane)).places, key=lambda place: loads.get(place, 0))

    async def is_offered(self, lane: str, place: str) -> bool:
        """Whether `place` may still be given a new run, with all that operators have said up to this moment.

        Asked last before a start, as preparing may take minutes.
        """
        return place in (await self.availability(lane)).places

    def is_prepared(self, request: RunRequest) -> bool:
        """Whether `prepare` would have nothing to do, as far as is known; asks no engine.

        True spares core a step. `start` must then get along where it was wrong.
        """
        return False

    @abstractmethod
    async def prepare(self, request: RunRequest, progress: ProgressCallback) -> None:
        """Get what the run needs onto `request.place` (pull the image). Idempotent.

        Raises ImageNotFound, PullFailed, EngineUnavailable, StartRejected.
        """

    @abstractmethod
    async def start(self, request: RunRequest) -> RunHandle:
        """Start the run on `request.place` and return at once.

        Idempotent on the execution id: called again, by any process, it returns the handle of the same run, be that
        running or ended, and starts one that was created but never started. It does so even if what the caller saw
        of an earlier call was an error. The handle of a run that had begun before tells when (`started_at`, by the
        engine's clock: core takes it for a time between its own first question and the answer).

        Raises ImageNotFound, PullFailed, StartRejected, StartLost; EngineUnavailable (then whether the run exists is
        unknown, and the same is asked again).
        """

    @abstractmethod
    async def wait(self, handle: RunHandle) -> RunOutcome:
        """Return when the run has ended; at once if it had already. May be cancelled and called again.

        Raises EngineUnavailable, RunNotFound. `EngineUnavailable.had_answered` should tell whether the engine had said
        within this call that the run goes on: short troubles, with good hours between, are no long one.
        """

    @abstractmethod
    async def stop(self, handle: RunHandle, grace: float) -> None:
        """Ask the run to end, kill it after `grace` seconds, and return when it is dead. No error if it was.

        Raises EngineUnavailable, RunNotFound.
        """

    @abstractmethod
    def logs(self, handle: RunHandle, *, after: str | None, follow: bool) -> AsyncIterator[Output]:
        """Everything that the run wrote beyond position `after` (None: from the start), in order per stream.

        Bytes are exact. With `follow` it goes on until the run has ended and all was read; without, it ends at what
        is there now. Resuming from the position of any chunk neither repeats nor skips a byte.

        Raises EngineUnavailable, RunNotFound.
        """

    @abstractmethod
    async def finish(self, handle: RunHandle) -> None:
        """The results are stored: mark the run as processed, or remove it. Idempotent; no error if it is gone.

        Raises EngineUnavailable.
        """

    async def discard(self, handle: RunHandle) -> None:
        """Nobody wants the run any more, as another has taken its place: end it at once, and leave nothing of it.

        Idempotent; no error if it is gone, or if another worker is at it. Raises EngineUnavailable, and RunnerError for
        an engine that answers but cannot end this one: it is asked again later.
        """
        try:
            await self.stop(handle, 0.0)
            await self.finish(handle)
        except RunNotFound:
            return

    @abstractmethod
    def list_owned(self, place: str) -> AsyncIterator[OwnedRun]:
        """Runs on `place` that carry the deployment's id and were not finished, running or ended.

        The command line calls it, too, on a runner that it does not `open`. Raises EngineUnavailable.
        """

    async def prune(self, *, older_than: float, dry_run: bool) -> Sequence[PruneReport]:
        """Remove what `finish` left behind of runs that ended at least `older_than` seconds ago, on every place.

        Never touches runs that were not finished, nor another deployment's. One report per place; a place in trouble
        neither stops the rest nor costs more than a bounded time. With `dry_run` it only tells what it would remove.

        The command line calls it, too, on a runner that it does not `open`: it is no worker, and must not act as one.
        `close` follows. Raises Unsupported unless `capabilities.prune`.
        """
        raise Unsupported(f"the runner {self.name} has nothing to prune")

    async def health(self) -> JsonObject:
        """What `/status` shows of it under `hosts`: `{"hosts": [{"host", "port", "available", "error", ...}]}`."""
        return {"hosts": []}
