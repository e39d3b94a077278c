"""Records to test with: valid ones that say only what a test is about, and text that breaks careless code."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from fastlane_core.contracts.queue import Limit, QueueItem
from fastlane_core.contracts.storage import Submission
from fastlane_core.models import (
    Delivery,
    DeliveryState,
    Execution,
    Job,
    JsonObject,
    LogChunk,
    Misfire,
    Overlap,
    Reason,
    RetryPolicy,
    RunHandle,
    RunSpec,
    Schedule,
    Status,
    Stream,
)

#: The time at which example records were made.
CREATED_AT: Final = 1_700_000_000.5

#: Text that has a meaning somewhere: in SQL, shells, patterns, paths, keys of Redis and MongoDB, JSON, terminals.
ODD_TEXTS: Final[Sequence[str]] = (
    "nul \x00 within",
    "\x00",
    "quotes ' \" ` ; -- /* */ \\",
    "%s {0} {lane} ${HOME} $(id) {{x}}",
    "$where",
    "dotted.$key.path",
    "*?[a-z]^|.+",
    "../../etc/passwd",
    "line\nbreak\r\n\ttab\x1b[31m",
    "\u65e5\u672c\u8a9e \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "emoji \U0001f389 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "caf\u00e9 composed",
    "cafe\u0301 composed",
    "\u202eright to left\u202c \ufeff\u200b \uffff \U0010ffff",
    "null",
    "0",
    " spaces at both ends ",
    "long " + "\u00e4\u00df\u6f22\U0001f600x" * 400,
)


def new_id() -> str:
    """An id that nothing else has."""
    return str(uuid.uuid4())


def a_spec(
    *,
    image: str = "ubuntu",
    command: str = "echo hello",
    env: Mapping[str, str] | None = None,
    options: Mapping[str, JsonObject] | None = None,
) -> RunSpec:
    """What to run."""
    return RunSpec(image=image, command=command, env=env or {}, options=options or {}, timeout=60.0)


def a_job(
    task_id: str = "task",
    job_id: str | None = None,
    *,
    created_at: float = CREATED_AT,
    modified_at: float | None = None,
    idempotency_key: str | None = None,
    due_at: float | None = None,
) -> Job:
    """A job that was never stored."""
    return Job(
        id=new_id() if job_id is None else job_id,
        task_id=task_id,
        spec=a_spec(),
        created_at=created_at,
        modified_at=created_at if modified_at is None else modified_at,
        idempotency_key=idempotency_key,
        due_at=due_at,
    )


def an_execution(
    job: Job,
    execution_id: str | None = None,
    *,
    status: Status = Status.ENQUEUED,
    created_at: float = CREATED_AT,
    finished_at: float | None = None,
    owes_at: float | None = None,
) -> Execution:
    """An execution of the job that was never stored."""
    return Execution(
        id=new_id() if execution_id is None else execution_id,
        job_id=job.id,
        task_id=job.task_id,
        spec=job.spec,
        lane="lane",
        status=status,
        created_at=created_at,
        updated_at=created_at,
        finished_at=finished_at,
        owes_at=owes_at,
    )


def a_submission(task_id: str = "task", *, idempotency_key: str | None = None) -> Submission:
    """A new job with its first execution."""
    job = a_job(task_id, idempotency_key=idempotency_key)
    return Submission(job=job, execution=an_execution(job))


def a_full_job(text: str, task_id: str = "task") -> Job:
    """A job with a value in every field, and `text` wherever text may stand."""
    return Job(
        id=new_id(),
        task_id=task_id,
        spec=a_full_spec(text),
        created_at=CREATED_AT,
        modified_at=CREATED_AT + 0.000_001,
        request_ip=text,
        metadata={text: {"nested": [text, 1, -2.5, True, False, None, {}]}, "": [], "big": 2**53},
        retries=3,
        retry=RetryPolicy(
            min_seconds=0.25, factor=1.5, max_seconds=90.0, jitter=0.5, on=(Reason.TIMED_OUT, Reason.EXIT_CODE)
        ),
        start_at=CREATED_AT + 60,
        schedule=Schedule(
            cron="*/5 6-18 * * mon-fri",
            timezone="Europe/Berlin",
            misfire=Misfire.RUN_ALL,
            misfire_cap=7,
            overlap=Overlap.REPLACE,
            jitter=2.5,
            start_at=CREATED_AT + 60,
            end_at=CREATED_AT + 9_000,
            paused_at=CREATED_AT + 70,
            next_tick_at=CREATED_AT + 300,
            last_tick_at=CREATED_AT + 200,
            skipped=3,
            last_skipped_at=CREATED_AT + 100,
            last_skipped_why=text,
        ),
        due_at=CREATED_AT + 300,
        expiration=CREATED_AT + 120.25,
        priority=9,
        notifications={"notify": {"succeed": [{"to": text}]}},
        idempotency_key=text,
        request_digest=text,
        stop_requested_at=CREATED_AT + 1,
        generation=4,
        replacement_key=text,
        replacement_digest=text,
    )


def a_full_spec(text: str) -> RunSpec:
    """A spec with a value in every field, and `text` wherever text may stand."""
    return RunSpec(
        image=text,
        command=text,
        env={text: text},
        options={"runner": {text: [text]}},
        timeout=0.5,
        queue_timeout=7.5,
        pull_timeout=30.0,
    )


def a_full_execution(job: Job, text: str) -> Execution:
    """An execution with a value in every field, and `text` wherever text may stand."""
    return Execution(
        id=new_id(),
        job_id=job.id,
        task_id=job.task_id,
        spec=a_full_spec(text),
        lane=text,
        status=Status.FAILED,
        created_at=CREATED_AT,
        updated_at=CREATED_AT + 10,
        priority=9,
        attempt=2,
        retries_used=1,
        engines_lost=2,
        retry_of=text,
        takes_over=True,
        generation=4,
        tick=CREATED_AT + 2,
        due_at=CREATED_AT + 3,
        expiration=CREATED_AT + 100,
        started_at=CREATED_AT + 4,
        finished_at=CREATED_AT + 9.75,
        request_ip=text,
        exit_code=-9,
        reason=Reason.OUT_OF_MEMORY,
        message=text,
        waiting_for=text,
        stop_requested_at=CREATED_AT + 8,
        worker=text,
        fence=7,
        place=text,
        placed_at=CREATED_AT + 3.5,
        handle=RunHandle(runner=text, version=3, data={text: {"nested": [text]}}),
        stdout_bytes=2**40,
        stderr_bytes=12,
        log_truncated=True,
        retry_id=text,
        retry_at=CREATED_AT + 20,
        deliveries=(
            Delivery(
                id=text,
                notifier=text,
                target={text: text},
                state=DeliveryState.GIVEN_UP,
                attempts=4,
                due_at=CREATED_AT + 30,
                last_error=text,
            ),
            Delivery(id="second", notifier="mail", target={}),
        ),
        owes_at=CREATED_AT + 40,
    )


def a_chunk(
    sequence: int, data: bytes = b"x", *, stream: Stream = Stream.STDOUT, offset: int = 0, position: str = ""
) -> LogChunk:
    """A stretch of a log."""
    return LogChunk(sequence=sequence, stream=stream, offset=offset, data=data, position=position)


def an_item(
    execution_id: str | None = None,
    *,
    lane: str = "lane",
    task_id: str = "task",
    priority: int = 0,
    due_at: float = 0.0,
    limits: tuple[Limit, ...] = (),
) -> QueueItem:
    """An item to put in a queue."""
    return QueueItem(
        execution_id=new_id() if execution_id is None else execution_id,
        task_id=task_id,
        lane=lane,
        priority=priority,
        due_at=due_at,
        limits=limits,
    )
