"""What a worker's loops work with."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.storage import Storage
from fastlane_core.engine.backoff import Backoff
from fastlane_core.engine.faultpoints import Reach, pass_by
from fastlane_core.engine.presence import Identity
from fastlane_core.engine.routing import Routing
from fastlane_core.engine.trouble import PlaceTrouble
from fastlane_core.models import Event, Mending


@dataclass(frozen=True, kw_only=True, slots=True)
class Duties:
    """What a worker does; each may be left to others."""

    #: Fires schedules and claims new executions. Without it, it only takes over those whose worker is gone.
    jobs: bool = True
    #: Compares storage, queue and engines, and mends what does not fit. Without it and without jobs it takes nothing.
    monitor: bool = True
    #: Delivers what notifiers owe: to people, and to addresses on the web.
    notify: bool = True
    webhooks: bool = True

    @property
    def left_out(self) -> Sequence[str]:
        """The names of those that it does not do."""
        return [each.name for each in fields(self) if not getattr(self, each.name)]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """How a worker behaves; durations in seconds."""

    #: How long a claim lasts without being renewed, and so how soon after a crash others adopt.
    lease_seconds: float = 15.0
    #: Executions of each lane that one worker looks after at a time.
    concurrency: int = 64
    #: Executions that may hold a slot at a time, over all lanes and workers; None for as many as the lanes have.
    max_running: int | None = None
    #: Lanes to claim from; None for all.
    lanes: frozenset[str] | None = None
    duties: Duties = field(default_factory=Duties)
    #: Longest wait between two looks at the queue, should a wake-up be lost.
    poll_seconds: float = 1.0
    #: Between asking a run to end and killing it.
    stop_grace_seconds: float = 10.0
    #: Longest that a run may take now, whatever limit it was stored with.
    hard_timeout_seconds: float = math.inf
    #: Output kept per execution, over both streams.
    max_log_bytes: int = 64 * 1024 * 1024
    reconcile_interval_seconds: float = 10.0
    #: How long a run on an engine that is out of reach is waited for.
    engine_lost_after_seconds: float = 300.0
    #: After which an execution that has ended is removed with its log; None keeps all.
    keep_finished_seconds: float | None = None
    retry_backoff: Backoff = field(default_factory=lambda: Backoff(first=1.0))
    #: For engines, storages and queues that are out of reach.
    trouble_backoff: Backoff = field(default_factory=lambda: Backoff(first=0.25, cap=5.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerContext:
    """Shared by the loops of one worker; they share no other mutable state than through storage and queue."""

    worker: str
    deployment_id: str
    storage: Storage
    queue: Queue
    routing: Routing
    options: EngineOptions
    #: Now, as Unix time in seconds.
    clock: Callable[[], float]
    #: Tells observers; returns at once.
    emit: Callable[[Event], None]
    #: Takes unexpected errors to the error reporters; returns at once.
    report: Callable[[BaseException, Event], None]
    reach: Reach = pass_by
    identity: Identity = field(default_factory=Identity)
    #: How often this worker has put what right.
    mended: Counter[Mending] = field(default_factory=Counter)
    trouble: PlaceTrouble = field(default_factory=PlaceTrouble)
    #: By lane, held while an execution is given its place: the next one is placed by the load that this one adds.
    placing: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))
