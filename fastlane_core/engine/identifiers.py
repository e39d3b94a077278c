"""The one maker of ids."""

from __future__ import annotations

import uuid

#: Namespace of ids that are derived, so that making one twice gives the same.
_NAMESPACE = uuid.UUID("5f0d2c1e-6f3b-4b5c-9a53-7c1f8f0c9a11")


def new_id() -> str:
    """A new random UUID in its canonical form."""
    return str(uuid.uuid4())


def retry_id(execution_id: str) -> str:
    """The id of the attempt that follows an execution; always the same one, so that it is made at most once."""
    return str(uuid.uuid5(_NAMESPACE, f"retry:{execution_id}"))


def replacement_id(task_id: str, job_id: str, generation: int) -> str:
    """The id of the first execution of a job that its caller put there, or put anew."""
    return str(uuid.uuid5(_NAMESPACE, f"put:{generation}:{job_id}:{task_id}"))
