"""The one maker of ids."""

from __future__ import annotations

import os
import secrets
import threading
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
    """So many as `new_id` gives."""
    drawn = _reserve.draw(_RANDOM_BYTES * count)
    for first in range(0, len(drawn), 2 * _RANDOM_BYTES):
        bits = drawn[first : first + 2 * _RANDOM_BYTES]
        at = f"{time.time_ns() // 1_000_000:012x}"
        # Six bits say the version, 7, and the variant; the others are random.
        yield f"{at[:8]}-{at[8:]}-7{bits[1:4]}-{_VARIANTS[bits[4]]}{bits[5:8]}-{bits[8:]}"


class _Reserve:
    """Random bytes of the system, fetched many at a time: asking it costs more than all else, and lets threads switch.

    A process that is forked begins its own, or both would draw the same.
    """

    _FETCHED = 4_096

    def __init__(self) -> None:
        self._digits = ""
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def draw(self, count: int) -> str:
        """So many bytes, each as two hexadecimal digits, that nobody gets again."""
        with self._lock:
            if len(self._digits) < 2 * count:
                self._digits = secrets.token_bytes(max(count, self._FETCHED)).hex()
            drawn, self._digits = self._digits[: 2 * count], self._digits[2 * count :]
        return drawn

    def _forget(self) -> None:
        self._digits = ""
        # The parent's may be held at the moment.
        self._lock = threading.Lock()


_reserve = _Reserve()


def retry_id(execution_id: str) -> str:
    """The id of the attempt that follows an execution; always the same one, so that it is made at most once."""
    return str(uuid.uuid5(_NAMESPACE, f"retry:{execution_id}"))


def replacement_id(task_id: str, job_id: str, generation: int) -> str:
    """The id of the first execution of a job that its caller put there, or put anew."""
    return str(uuid.uuid5(_NAMESPACE, f"put:{generation}:{job_id}:{task_id}"))


def tick_id(task_id: str, job_id: str, generation: int, tick: float) -> str:
    """The id of the execution that a job's schedule makes for a tick, whoever makes it and however often."""
    return str(uuid.uuid5(_NAMESPACE, f"tick:{[task_id, job_id, generation, tick]!r}"))
