"""The words of Fastlane as data: frozen, typed, without I/O.

Times are Unix time in seconds (UTC) as `float`; durations are seconds; sizes are bytes.
A record's `revision` is 0 until it is stored and grows by one with every write; storages compare it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import TypeAlias

from typing_extensions import TypeAliasType

from fastlane_core.quick_dataclass import quick_dataclass

#: What JSON can carry.
Json = TypeAliasType("Json", "Mapping[str, Json] | Sequence[Json] | str | int | float | bool | None")
JsonObject: TypeAlias = Mapping[str, Json]


class Status(StrEnum):
    """Where an execution is in its life; `fastlane_core.engine.lifecycle` has the transitions."""

    ENQUEUED = "enqueued"
    PULLING = "pulling"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    TIMEDOUT = "timedout"
    STOPPED = "stopped"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether an execution in this status has ended."""
        return self not in (Status.ENQUEUED, Status.PULLING, Status.RUNNING)


class Reason(StrEnum):
    """Why an execution ended as it did: what programs test for, next to a sentence for people."""

    SUCCEEDED = "succeeded"
    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    OUT_OF_MEMORY = "out_of_memory"
    COMMAND_NOT_FOUND = "command_not_found"
    COMMAND_NOT_EXECUTABLE = "command_not_executable"
    IMAGE_NOT_FOUND = "image_not_found"
    PULL_FAILED = "pull_failed"
    START_REJECTED = "start_rejected"
    ENGINE_LOST = "engine_lost"
    DRAINED = "drained"
    RUN_LOST = "run_lost"
    TIMED_OUT = "timed_out"
    PULL_TIMED_OUT = "pull_timed_out"
    STOPPED = "stopped"
    EXPIRED = "expired"
    INTERNAL_ERROR = "internal_error"


class Failure(StrEnum):
    """What was made of an execution that failed for good: that is not tried again by itself."""

    #: Nobody has looked at it yet.
    OPEN = "open"
    #: Somebody had it run once more.
    REPLAYED = "replayed"
    DISMISSED = "dismissed"


class Stream(StrEnum):
    """One of the two streams that a run writes to."""

    STDOUT = "stdout"
    STDERR = "stderr"


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class RunSpec:
    """What to run. A job holds one, and each of its executions a copy of the one it was made with."""

    #: Image reference, as the caller wrote it.
    image: str
    #: Command line in POSIX shell quoting, split into arguments without a shell; "" runs the image's own.
    command: str
    #: Environment of the run.
    env: Mapping[str, str] = field(default_factory=dict)
    #: Options of runners, by runner name: `{"docker": {"memory": "1g"}}`; validated by that runner's model.
    options: Mapping[str, JsonObject] = field(default_factory=dict)
    #: Seconds that the run may take, counted from its start.
    timeout: float
    #: Seconds that it may wait from the moment it is due until its preparation begins; None for any time.
    queue_timeout: float | None = None
    #: Seconds that its preparation (a pull) may take; None for any time.
    pull_timeout: float | None = None


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """When a job's retries are made, and after which endings. What is None is as the settings have it."""

    #: Wait before the first retry, in seconds, and least before any.
    min_seconds: float | None = None
    #: What the longest wait is multiplied by with each further retry.
    factor: float | None = None
    #: Highest that the wait grows, in seconds.
    max_seconds: float | None = None
    #: Share of the wait that is drawn at random, 0 to 1.
    jitter: float | None = None
    #: The reasons that are tried again; None for the usual ones. Trouble of an engine always is.
    on: tuple[Reason, ...] | None = None


class Misfire(StrEnum):
    """What becomes of ticks that could not fire in time because no worker was there."""

    #: One run makes up for all of them.
    RUN_ONCE = "run_once"
    SKIP = "skip"
    #: Each runs, the newest ones up to the schedule's cap.
    RUN_ALL = "run_all"


class Overlap(StrEnum):
    """What becomes of a tick while an earlier execution of the job has not ended, its retries included."""

    ALLOW = "allow"
    SKIP = "skip"
    #: It waits for the earlier one.
    QUEUE = "queue"
    #: The earlier one is stopped.
    REPLACE = "replace"


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """When a job runs again and again, and how far that has come."""

    #: Five fields, or a name such as `@hourly`.
    cron: str
    #: IANA name of the time zone that the fields are read in.
    timezone: str = "UTC"
    misfire: Misfire = Misfire.RUN_ONCE
    #: Missed ticks that `RUN_ALL` makes up for at most.
    misfire_cap: int = 100
    overlap: Overlap = Overlap.ALLOW
    #: Longest that a run is put off beyond its tick, in seconds; how long is drawn anew for each tick.
    jitter: float = 0.0
    #: Ticks before the one and after the other do not fire.
    start_at: float | None = None
    end_at: float | None = None
    #: Since when nothing fires until it is resumed.
    paused_at: float | None = None
    #: The tick that fires next; None when there is none any more.
    next_tick_at: float | None = None
    #: The newest tick that has fired.
    last_tick_at: float | None = None
    #: Ticks that did not fire, when the newest of them was due, and why it did not.
    skipped: int = 0
    last_skipped_at: float | None = None
    last_skipped_why: str | None = None


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A name that groups jobs; farms and limits match on it."""

    id: str
    created_at: float
    #: When a job was last submitted to it.
    modified_at: float
    jobs_count: int = 0
    #: Executions of it that may hold a slot at a time, as callers have said; None for any number.
    concurrency: int | None = None


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What was asked for; has many executions."""

    id: str
    task_id: str
    spec: RunSpec
    created_at: float
    modified_at: float
    #: Address that the request came from.
    request_ip: str | None = None
    #: The caller's own data, kept and given back as it came.
    metadata: JsonObject = field(default_factory=dict)
    #: Further attempts after a failed one.
    retries: int = 0
    #: How they are made; None as the settings have it.
    retry: RetryPolicy | None = None
    #: Time of the first start; None starts at once.
    start_at: float | None = None
    #: When it runs again and again; None runs it once.
    schedule: Schedule | None = None
    #: When a scheduler must next look at it; None when it has nothing to fire: no schedule, paused, ended or stopped.
    #: One that is stopped has it until all its executions were told.
    due_at: float | None = None
    #: Time after which it must not start any more.
    expiration: float | None = None
    #: 0 to 9; higher starts earlier within its lane.
    priority: int = 0
    #: Executions of it that may hold a slot at a time; None for any number.
    concurrency: int | None = None
    #: What notifier plugins were asked for, by payload field; validated by their models.
    notifications: JsonObject = field(default_factory=dict)
    #: The caller's key that makes a repeated submission harmless, unique within the task.
    idempotency_key: str | None = None
    #: Digest of the submission that came with the key.
    request_digest: str | None = None
    #: When stopping was asked for: no attempt starts afterwards.
    stop_requested_at: float | None = None
    #: Grows with every replacement of the job by its caller.
    generation: int = 0
    #: The caller's key and the digest of the newest replacement, which make repeating it harmless.
    replacement_key: str | None = None
    replacement_digest: str | None = None
    revision: int = 0

    @property
    def most_running(self) -> int | None:
        """Executions of it that may hold a slot at a time, with what its schedule says; None for any number."""
        if self.schedule is not None and self.schedule.overlap in (Overlap.QUEUE, Overlap.REPLACE):
            return 1
        return self.concurrency


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class RunHandle:
    """What a runner needs to pick a run up again, in any process. Opaque to core."""

    #: Name of the runner that made it.
    runner: str
    #: Version of the format of `data`.
    version: int
    data: JsonObject
    #: When the run began, told by a `start` that found it rather than made it; its time-out counts from then.
    started_at: float | None = None


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """One notification owed to one target, kept until it is delivered or given up on."""

    #: Stable, so that a receiver can drop repeats.
    id: str
    #: Name of the notifier that makes it.
    notifier: str
    #: What the notifier needs to make it; only that notifier reads it.
    target: JsonObject
    state: DeliveryState = DeliveryState.PENDING
    #: Tries made so far.
    attempts: int = 0
    #: Time of the next try while pending.
    due_at: float = 0.0
    last_error: str | None = None


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """One attempt at running a job."""

    id: str
    job_id: str
    task_id: str
    spec: RunSpec
    lane: str
    status: Status
    created_at: float
    updated_at: float
    priority: int = 0
    #: Executions of its job that may hold a slot at a time, this one included; None for any number.
    job_concurrency: int | None = None
    #: 1 for the first attempt.
    attempt: int = 1
    #: Failed attempts before this one that count against the job's `retries`.
    retries_used: int = 0
    #: Attempts in a row, right before this one, that lost their engine.
    engines_lost: int = 0
    #: The execution that this one tries again.
    retry_of: str | None = None
    #: Whether it starts only when what its job was to stop before it has ended.
    takes_over: bool = False
    #: The job's when it was made: it must not start once the job has been replaced.
    generation: int = 0
    #: Due time of the schedule's firing that made it.
    tick: float | None = None
    #: Time before which it must not start, and after which it must not start any more.
    due_at: float = 0.0
    expiration: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    request_ip: str | None = None
    exit_code: int | None = None
    reason: Reason | None = None
    #: One sentence for people that goes with the reason.
    message: str | None = None
    #: Why it has not started yet, where that is known.
    waiting_for: str | None = None
    stop_requested_at: float | None = None
    #: Who works on it; `fence` grows with every taking-over.
    worker: str | None = None
    fence: int = 0
    #: Token of the queue's lease that the worker holds.
    lease_token: str | None = None
    #: Where within the lane it runs (a host), written before the run is started.
    place: str | None = None
    #: When that was decided, and its preparation began.
    placed_at: float | None = None
    #: When a runner was first asked to start it on `place`: from then on a run may exist there.
    start_asked_at: float | None = None
    handle: RunHandle | None = None
    #: Bytes of output kept, per stream.
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    #: Whether output beyond the size limit was dropped.
    log_truncated: bool = False
    #: The attempt that follows this one, and when it is due; decided with the final status.
    retry_id: str | None = None
    retry_at: float | None = None
    #: Set where it ended badly and nothing follows by itself.
    failure: Failure | None = None
    deliveries: tuple[Delivery, ...] = ()
    #: When something is next owed for it after its end (clean-up, a retry, a delivery); None when nothing is.
    owes_at: float | None = None
    revision: int = 0


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """What core asks a runner to start."""

    execution_id: str
    job_id: str
    task_id: str
    spec: RunSpec
    #: Arguments of the command; empty runs the image's own.
    argv: tuple[str, ...]
    lane: str
    place: str
    #: Distinguishes this start from one by a worker that lost its lease; higher is newer.
    fence: int
    #: Two Fastlanes can share an engine: each owns only the runs that carry its id.
    deployment_id: str
    #: Output that core will keep, bytes over both streams; the engine must hold at least that much.
    max_log_bytes: int
    #: Whether a start was asked for before, so that the run may exist or may even have been processed. False spares
    #: looking for it: who comes too late is told by `confirm_start`.
    may_exist: bool = True


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class RunOutcome:
    """How a run ended, as its engine tells it."""

    exit_code: int | None
    reason: Reason
    #: One sentence for people; "" when the exit code says all.
    message: str = ""
    #: By the engine's clock.
    started_at: float | None = None
    finished_at: float | None = None


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """A stretch of what a run wrote, as a runner reads it."""

    stream: Stream
    data: bytes
    #: Where reading goes on after this stretch. Opaque to core; any process may resume from it.
    position: str


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class LogChunk:
    """A stretch of output as it is stored: chunks of an execution are numbered from 1 without gaps."""

    sequence: int
    stream: Stream
    #: Bytes of the same stream before this chunk.
    offset: int
    data: bytes
    #: The runner's position after this chunk.
    position: str


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far the preparation of a run (a pull) has come."""

    message: str
    #: Units done and in all, where they are known.
    current: int | None = None
    total: int | None = None


class EventKind(StrEnum):
    """What an event tells."""

    EXECUTION_CHANGED = "execution_changed"
    EXECUTION_PROGRESS = "execution_progress"
    EXECUTION_ADOPTED = "execution_adopted"
    EXECUTION_MENDED = "execution_mended"
    ENGINE_TROUBLE = "engine_trouble"
    CIRCUIT_CHANGED = "circuit_changed"
    LOOP_CRASHED = "loop_crashed"


class Mending(StrEnum):
    """What was found not to fit between storage, queue and engines, and put right."""

    #: The queue had lost its data; everything was put back.
    QUEUE_REBUILT = "queue_rebuilt"
    #: The queue missed an execution that has not ended.
    MISSING_IN_QUEUE = "missing_in_queue"
    #: The queue held an execution that the storage does not know.
    UNKNOWN_IN_QUEUE = "unknown_in_queue"
    #: The queue still held an execution that has ended.
    ENDED_IN_QUEUE = "ended_in_queue"
    #: It waited in a lane that no runner offers any more, and was routed anew.
    LANE_CLOSED = "lane_closed"
    #: Its time to start had passed while it waited, or it had waited for longer than it may.
    EXPIRED_WAITING = "expired_waiting"
    #: It was asked to stop, and whoever works on it had not heard.
    STOP_UNHEARD = "stop_unheard"
    #: The attempt after it had not been made.
    RETRY_OWED = "retry_owed"
    #: A worker had not renewed its lease, and another adopted the execution.
    LEASE_ORPHANED = "lease_orphaned"
    #: An engine held a run that no unfinished execution has there.
    LEFTOVER_RUN = "leftover_run"


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened, for observers; carries no secrets."""

    kind: EventKind
    at: float
    task_id: str | None = None
    job_id: str | None = None
    execution_id: str | None = None
    lane: str | None = None
    #: Host, for what happened to one.
    place: str | None = None
    worker: str | None = None
    status: Status | None = None
    reason: Reason | None = None
    #: What was put right, for `EXECUTION_MENDED`.
    mending: Mending | None = None
    message: str = ""
