"""Changing an execution's record: read, step, compare-and-set, and again if somebody else was first."""

from __future__ import annotations

from collections.abc import Callable

from fastlane_core.contracts.storage import Storage
from fastlane_core.errors import FastlaneError, RevisionConflict
from fastlane_core.models import Execution, RunRequest

#: Writers of one record are its worker and a few requests; more conflicts in a row than this are a defect.
_TRIES = 50


class Fenced(FastlaneError):
    """Another worker has taken the execution over: this one must leave it alone."""


class StopWanted(FastlaneError):
    """Somebody wants the execution to end, and nothing of it runs yet."""


async def confirm_start(storage: Storage, request: RunRequest) -> None:
    """Return if the run may be started: its execution has not ended, and is the asking worker's still.

    A run is removed from its engine only once its execution has ended. So a worker that was held up, and creates anew
    what is gone, finds out here, as long as it asks after creating. Raises Fenced, StopWanted, StorageUnavailable.
    """
    stored = await storage.get_execution(request.execution_id)
    if stored is None:
        raise Fenced(f"execution {request.execution_id} is not in the storage any more")
    if stored.status.is_final:
        raise Fenced(f"execution {stored.id} has ended: {stored.status}")
    if stored.fence != request.fence:
        raise Fenced(f"execution {stored.id} was taken over by worker {stored.worker}")
    if stored.stop_requested_at is not None:
        raise StopWanted(f"execution {stored.id} was asked to stop before it was started")


async def change_execution(
    storage: Storage, execution: Execution, step: Callable[[Execution], Execution], *, fenced: bool
) -> Execution:
    """Apply `step` to the record, from the copy in hand if it is still the stored one, else to the stored one.

    With `fenced`, the stored one must be of the same fencing number and lease: two workers may have counted from the
    same number. Raises Fenced otherwise, and for a record that is gone.
    A step that returns the record it was given writes nothing. Raises StorageUnavailable.
    """
    held = (execution.fence, execution.lease_token)
    for _ in range(_TRIES):
        changed = step(execution)
        if changed is execution:
            return execution
        try:
            return await storage.put_execution(changed)
        except RevisionConflict:
            stored = await storage.get_execution(execution.id)
            if stored is None:
                raise Fenced(f"execution {execution.id} is not in the storage any more") from None
            if fenced and (stored.fence, stored.lease_token) != held:
                raise Fenced(f"execution {stored.id} was taken over by worker {stored.worker}") from None
            execution = stored
    raise RevisionConflict(f"execution {execution.id} kept changing: gave up after {_TRIES} tries")
