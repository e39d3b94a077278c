"""The one maker of ids."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Iterator

_RANDOM_BYTES = 10
#: A hexadecimal digit with its upper two bits made those of the variant.
_VARIANTS = {f"{digit:x}": f"{8 | digit & 3:x}" for digit in range(16)}
#: Namespace of ids that are derived, so that making one twice gives the same.
_NAMESPACE = uuid.UUID("5f0d2c1e-6f3b-4b5c-9a53-7c1f8f0c9a11")


def new_id() -> str:
    """A new UUID of version 7 (RFC 9562) in its canonical form: milliseconds of Unix time, then 74 random bits.

    Ids made one after another lie side by side in the stores' indexes, which matters when these outgrow the memory.
    """
    return next(new_ids(1))


def new_ids(count: int) -> Iterator[str]:
    """So many as `new_id` gives, for one call to the system, which costs more than all else."""
    drawn = secrets.token_bytes(_RANDOM_BYTES * count).hex()
    for first in range(0, len(drawn), 2 * _RANDOM_BYTES):
        bits = drawn[first : first + 2 * _RANDOM_BYTES]
        at = f"{time.time_ns() // 1_000_000:012x}"
        # Six bits say the version, 7, and the variant; the others are random.
        yield f"{at[:8]}-{at[8:]}-7{bits[1:4]}-{_VARIANTS[bits[4]]}{bits[5:8]}-{bits[8:]}"


def retry_id(execution_id: str) -> str:
    """The id of the attempt that follows an execution; always the same one, so that it is made at most once."""
    return str(uuid.uuid5(_NAMESPACE, f"retry:{execution_id}"))


def replacement_id(task_id: str, job_id: str, generation: int) -> str:
    """The id of the first execution of a job that its caller put there, or put anew."""
    return str(uuid.uuid5(_NAMESPACE, f"put:{generation}:{job_id}:{task_id}"))


def tick_id(task_id: str, job_id: str, generation: int, tick: float) -> str:
    """The id of the execution that a job's schedule makes for a tick, whoever makes it and however often."""
    return str(uuid.uuid5(_NAMESPACE, f"tick:{[task_id, job_id, generation, tick]!r}"))
