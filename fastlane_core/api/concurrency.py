"""How many executions of a task or a job may run at a time, as payloads say it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastlane_core.api.bodies import kind_of, parse_json_object
from fastlane_core.errors import InvalidInput

_MOST = 1_000_000
AtATime = Annotated[int, Field(ge=1, le=_MOST)]

CONCURRENCY_EXPECTED = f"a whole number from 1 to {_MOST}, or an object with such numbers under task, job or both"


class ConcurrencyPayload(BaseModel):
    """Executions that may run at a time. Without `task`, its limit stays; without `job`, the job has none."""

    model_config = ConfigDict(extra="forbid", strict=True)

    task: AtATime | None = Field(default=None, description="Of all jobs of the task; the latest request counts.")
    job: AtATime | None = Field(default=None, description="Of this job.")


class TaskPayload(BaseModel):
    """What is set for a task."""

    model_config = ConfigDict(extra="forbid", strict=True)

    concurrency: AtATime | None = Field(description="Executions that may run at a time; null for any number.")


def task_and_job(asked: int | ConcurrencyPayload | None) -> tuple[int | None, int | None]:
    """What is asked for the task, and for the job."""
    if isinstance(asked, ConcurrencyPayload):
        return asked.task, asked.job
    return asked, None


def parse_task(body: bytes) -> TaskPayload:
    """What a request's body sets for a task. Raises InvalidInput."""
    document = parse_json_object(body)
    try:
        return TaskPayload.model_validate(document)
    except ValidationError as error:
        unknown = [name for name in document if name not in TaskPayload.model_fields]
        if unknown:
            raise InvalidInput(unknown[0][:100], "there is no such field; known is concurrency") from error
        expected = f"expected a whole number from 1 to {_MOST}, or null for any number"
        if "concurrency" not in document:
            raise InvalidInput("concurrency", f"is missing: {expected}") from error
        value = document["concurrency"]
        got = repr(value) if isinstance(value, int) and not isinstance(value, bool) else kind_of(value)
        raise InvalidInput("concurrency", f"{expected}, got {got}") from error
