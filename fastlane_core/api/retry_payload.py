"""`retry` of a job payload: how its retries are made, and after what."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fastlane_core.errors import InvalidInput
from fastlane_core.models import Reason, RetryPolicy

#: Longest wait that a job may ask for: thirty days, in seconds.
_LONGEST = 30 * 86_400.0

#: What can be tried again; what succeeded, was stopped or has expired cannot.
RetriedReason = Literal[
    "exit_code",
    "signal",
    "out_of_memory",
    "command_not_found",
    "command_not_executable",
    "image_not_found",
    "pull_failed",
    "pull_timed_out",
    "start_rejected",
    "engine_lost",
    "drained",
    "run_lost",
    "timed_out",
    "internal_error",
]


class RetryPayload(BaseModel):
    """How retries are made. What is not given is as the operator has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    minSeconds: float | None = Field(  # noqa: N815 - as the rest of the payload
        default=None, ge=0, le=_LONGEST, description="Wait before the first retry, and least before any, in seconds."
    )
    factor: float | None = Field(
        default=None, ge=1, le=100, description="What the longest wait is multiplied by with each further retry."
    )
    maxSeconds: float | None = Field(  # noqa: N815
        default=None, ge=0, le=_LONGEST, description="Highest that the wait grows, in seconds."
    )
    jitter: float | None = Field(
        default=None, ge=0, le=1, description="Share of the wait that is drawn at random; never below minSeconds."
    )
    on: list[RetriedReason] | None = Field(
        default=None,
        description="The reason codes that are tried again, in place of the usual ones, which are all but "
        "image_not_found, start_rejected, timed_out and internal_error. Trouble of an engine (engine_lost, drained) "
        "always is, and uses up no retry; only a job that has lost eleven engines in a row is not tried again.",
    )


def retry_policy(payload: RetryPayload | None) -> RetryPolicy | None:
    """The policy that is asked for. Raises InvalidInput."""
    if payload is None:
        return None
    if payload.minSeconds is not None and payload.maxSeconds is not None and payload.maxSeconds < payload.minSeconds:
        raise InvalidInput("retry.maxSeconds", "is less than minSeconds")
    return RetryPolicy(
        min_seconds=payload.minSeconds,
        factor=payload.factor,
        max_seconds=payload.maxSeconds,
        jitter=payload.jitter,
        on=None if payload.on is None else tuple(dict.fromkeys(Reason(each) for each in payload.on)),
    )
