"""Tasks, jobs and executions in answers: the shapes that clients of the first Fastlane know, and a little more."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

from fastlane_core.api.context import ApiContext
from fastlane_core.api.links import Links
from fastlane_core.api.outputs import read_texts
from fastlane_core.api.times import iso_time
from fastlane_core.api.waiting import WaitingReasons
from fastlane_core.engine.schedules import is_active, next_execution_id
from fastlane_core.models import Execution, Job, Json, JsonObject, RetryPolicy, Status, Stream, Task
from fastlane_core.redaction import redact

#: The payload field that says host names' addresses, in the words of the first Fastlane.
_DNS_ENTRIES = "additionalDNSEntries"
_HOST_AND_PORT = re.compile(r"(.+):([0-9]{1,5})")


def task_item(task: Task, links: Links) -> dict[str, Json]:
    """A task within a list."""
    return {
        "taskId": task.id,
        "createdAt": iso_time(task.created_at),
        "lastModifiedAt": iso_time(task.modified_at),
        "jobsCount": task.jobs_count,
        "url": links.task(task.id),
    }


def task_page(
    tasks: Sequence[Task], links: Links, *, total: int, page: int, per_page: int, urls: Sequence[str]
) -> dict[str, Json]:
    """A page of tasks; `urls` are those of the pages before and after it."""
    pages = -(-total // per_page)
    previous, following = urls
    return {
        "items": [task_item(task, links) for task in tasks],
        "total": total,
        "page": page,
        "pages": pages,
        "perPage": per_page,
        "hasNext": page < pages,
        "hasPrev": page > 1,
        "nextUrl": following if page < pages else None,
        "prevUrl": previous if page > 1 else None,
    }


def task_link(task_id: str, links: Links) -> dict[str, Json]:
    """A task that something else belongs to."""
    return {"id": task_id, "url": links.task(task_id)}


def job_link(task_id: str, job_id: str, links: Links) -> dict[str, Json]:
    """A job that something else belongs to."""
    return {"id": job_id, "url": links.job(task_id, job_id)}


def job_shape(
    context: ApiContext, job: Job, *, last: Execution | None, count: int, executions: Sequence[Json]
) -> dict[str, Json]:
    """A job with its newest executions, of which `last` is the newest and `count` the number in all."""
    return {
        "taskId": job.task_id,
        "createdAt": iso_time(job.created_at),
        "lastModifiedAt": iso_time(job.modified_at),
        "image": job.spec.image,
        "command": job.spec.command,
        "requestIPAddress": job.request_ip,
        "scheduled": is_active(job),
        "schedule": schedule_shape(job),
        "executionCount": count,
        "metadata": _job_metadata(context, job, last),
        "executions": executions,
        "status": last.status.value if last else None,
        "stopRequestedAt": iso_time(job.stop_requested_at),
        "generation": job.generation,
    }


def schedule_shape(job: Job) -> dict[str, Json] | None:
    """The job's schedule and how far it has come; None for a job that has none."""
    schedule = job.schedule
    if schedule is None:
        return None
    return {
        "cron": schedule.cron,
        "timezone": schedule.timezone,
        "misfire": schedule.misfire.value,
        "misfireCap": schedule.misfire_cap,
        "overlap": schedule.overlap.value,
        "jitter": schedule.jitter,
        "startAt": iso_time(schedule.start_at),
        "endAt": iso_time(schedule.end_at),
        "pausedAt": iso_time(schedule.paused_at),
        "nextScheduledAt": iso_time(schedule.next_tick_at) if is_active(job) else None,
        "lastScheduledAt": iso_time(schedule.last_tick_at),
        "skipped": schedule.skipped,
        "lastSkippedAt": iso_time(schedule.last_skipped_at),
        "lastSkippedWhy": schedule.last_skipped_why,
    }


def scheduled_item(context: ApiContext, job: Job, links: Links) -> dict[str, Json]:
    """A job with a schedule, within a list of those."""
    shape = job_shape(context, job, last=None, count=0, executions=[])
    for name in ("executions", "taskId", "executionCount", "status"):
        del shape[name]
    return {
        **shape,
        "nextScheduledAt": iso_time(job.due_at),
        "url": links.job(job.task_id, job.id),
        "stopUrl": links.job(job.task_id, job.id) + "stop/",
        "task": task_link(job.task_id, links),
    }


async def execution_shape(
    context: ApiContext, execution: Execution, waiting: WaitingReasons, *, log_bytes: int
) -> dict[str, Json]:
    """An execution with up to `log_bytes` of each stream. Raises StorageUnavailable.

    `log` and `error` are null until it runs; while it runs they hold what there is so far.
    """
    texts = await read_texts(context.storage, execution, limit=log_bytes)
    log, log_cut = texts[Stream.STDOUT]
    error, error_cut = texts[Stream.STDERR]
    if not error and execution.status is Status.FAILED and execution.started_at is None:
        # Nothing ran that could have told: clients look here for what went wrong.
        error = execution.message
    return {
        "executionId": execution.id,
        "createdAt": iso_time(execution.created_at),
        "startedAt": iso_time(execution.started_at),
        "finishedAt": iso_time(execution.finished_at),
        "requestIPAddress": execution.request_ip,
        "image": execution.spec.image,
        "command": execution.spec.command,
        "status": execution.status.value,
        "exitCode": execution.exit_code,
        "log": log,
        "error": error,
        "metadata": _execution_metadata(execution),
        "logTruncated": log_cut,
        "errorTruncated": error_cut,
        "outputLimitReached": execution.log_truncated,
        "reason": execution.reason.value if execution.reason else None,
        "message": execution.message,
        "waitingFor": await waiting.of(execution),
        "scheduledFor": iso_time(execution.tick),
        "attempt": execution.attempt,
        "retryOf": execution.retry_of,
        "failure": execution.failure.value if execution.failure else None,
        "nextRetryAt": iso_time(execution.retry_at),
    }


def exit_code_text(execution: Execution) -> str:
    """The exit code as headers and streams give it: decimal, or `None`."""
    return str(execution.exit_code)


def host_and_port(place: str) -> tuple[str, int | None]:
    """A place as clients know it; one that is no `host:port` (a socket on this machine) has no port."""
    found = _HOST_AND_PORT.fullmatch(place)
    return (found[1], int(found[2])) if found else (place, None)


def container_id(execution: Execution) -> Json:
    """The id of its container, where its runner's handle names one; None elsewhere."""
    return execution.handle.data.get("container") if execution.handle else None


def _job_metadata(context: ApiContext, job: Job, last: Execution | None) -> dict[str, Json]:
    words = context.general.env_blacklisted_words
    wanted = cast("JsonObject", redact(job.notifications, words))
    metadata: dict[str, Json] = {
        "retries": job.retries,
        "retry_count": last.retries_used if last else 0,
        "timeout": job.spec.timeout,
        "envs": cast("JsonObject", redact(job.spec.env, words)),
        "additional_dns_entries": _dns_entries(context, job),
        "enqueued_id": last.id if last else next_execution_id(job),
    }
    for name in ("notify", "webhooks"):
        asked = wanted.get(name)
        metadata[name] = {
            "succeeds": [],
            "fails": [],
            "finishes": [],
            **(asked if isinstance(asked, Mapping) else {}),
        }
    if job.metadata:
        metadata["custom"] = job.metadata
    optional: dict[str, Json] = {
        "cron": job.schedule.cron if job.schedule else None,
        "expiration": job.expiration,
        "queueTimeout": job.spec.queue_timeout,
        "pullTimeout": job.spec.pull_timeout,
        "retry": _retry_policy(job.retry),
    }
    metadata |= {name: value for name, value in optional.items() if value is not None}
    return metadata


def _retry_policy(policy: RetryPolicy | None) -> Json:
    """As the payload says it."""
    if policy is None:
        return None
    said: dict[str, Json] = {
        "minSeconds": policy.min_seconds,
        "factor": policy.factor,
        "maxSeconds": policy.max_seconds,
        "jitter": policy.jitter,
        "on": None if policy.on is None else list(policy.on),
    }
    return {name: value for name, value in said.items() if value is not None}


def _dns_entries(context: ApiContext, job: Job) -> list[Json]:
    """Pairs of a host name and its address."""
    for runner, options in job.spec.options.items():
        entries = options.get(context.option_aliases.get(runner, {}).get(_DNS_ENTRIES, ""))
        if isinstance(entries, Mapping):
            return [[name, address] for name, address in entries.items()]
    return []


def _execution_metadata(execution: Execution) -> dict[str, Json]:
    metadata: dict[str, Json] = {"lane": execution.lane, "place": execution.place}
    if execution.lane.partition(":")[0] == "docker" and execution.place is not None:
        metadata["docker_host"], metadata["docker_port"] = host_and_port(execution.place)
        metadata["container_id"] = container_id(execution)
    return metadata
