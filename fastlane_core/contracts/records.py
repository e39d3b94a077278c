"""Records as JSON, for storages: one codec, so that every store reads what another Fastlane of its kind wrote.

Fields that are missing take their defaults and unknown ones are dropped, so records of neighbouring versions load.
"""

from __future__ import annotations

from pydantic import TypeAdapter

from fastlane_core.models import Execution, Job

_job = TypeAdapter(Job)
_execution = TypeAdapter(Execution)


def encode_job(job: Job) -> bytes:
    """The job as UTF-8 JSON."""
    return _job.dump_json(job)


def decode_job(data: bytes | str) -> Job:
    """The job that `encode_job` wrote; ValueError for anything else."""
    return _job.validate_json(data)


def encode_execution(execution: Execution) -> bytes:
    """The execution as UTF-8 JSON."""
    return _execution.dump_json(execution)


def decode_execution(data: bytes | str) -> Execution:
    """The execution that `encode_execution` wrote; ValueError for anything else."""
    return _execution.validate_json(data)
