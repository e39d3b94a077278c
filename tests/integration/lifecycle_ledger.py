"""What must hold of jobs, attempts and leases, kept by the simplest means and apart from the engine's own code.

Every answer of the storage and of the queue is entered here in the order in which the servers gave them, whether or not
whoever asked lived to hear it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastlane_core.contracts.queue import Cancelled, Lease, QueueItem
from fastlane_core.engine.lifecycle import TRANSITIONS
from fastlane_core.models import Execution, Job

#: What may follow what, written down once more.
MOVES = {
    "enqueued": "pulling failed stopped expired",
    "pulling": "enqueued running failed timedout stopped expired",
    "running": "done failed timedout stopped",
}
FINAL = ("done", "failed", "timedout", "stopped", "expired")
#: What is tried again as long as the job has retries left, of all that can happen in a simulation.
TRIED_AGAIN = ("exit_code",)
#: Seconds; a time-out up to that passes while everything settles.
SHORT = 10.0


@dataclass(slots=True)
class Slot:
    """A lease, as the queue has granted it."""

    lease: Lease
    ends_at: float
    place: str | None = None


@dataclass(slots=True)
class JobEntry:
    """A job, and what was asked for it."""

    job: Job
    #: Whether a request to stop it, or anything of it, was ever made; and whether one stands that was answered.
    ever_stopped: bool = False
    stands_stopped: bool = False
    executions: dict[str, Execution] = field(default_factory=dict)
    #: Executions after which somebody asked for one more.
    asked_again: set[str] = field(default_factory=set)
    #: Until when all ticks have been fired, for certain.
    fired_until: float = 0.0


class Ledger:
    """Raises AssertionError as soon as something does not hold."""

    def __init__(self, clock: Callable[[], float], *, lane_capacity: int, task_capacities: dict[str, int]) -> None:
        self._clock = clock
        self._lane_capacity = lane_capacity
        self._task_capacities = task_capacities
        self.jobs: dict[str, JobEntry] = {}
        self.executions: dict[str, Execution] = {}
        self.slots: dict[str, Slot] = {}
        #: What the queue holds, leased or not.
        self._queued: set[str] = set()

    def enter(self, process: str, server: str, method: str, args: tuple[Any, ...], options: Any, answer: Any) -> None:
        """What a server has answered to a process."""
        entry = getattr(self, f"_{server}_{method}", None)
        if entry is not None:
            entry(process, answer, *args, **options)

    # Storage

    def _storage_submit(self, process: str, answer: Sequence[Any], submissions: Sequence[Any]) -> None:
        for submitted in answer:
            job = submitted.job
            if job.id in self.jobs:
                self._storage_put_job(process, job, job)
            else:
                self.jobs[job.id] = JobEntry(job)
            if submitted.execution is not None:
                self._add(submitted.execution)

    def _storage_add_executions(self, process: str, answer: None, executions: Sequence[Execution]) -> None:
        for execution in executions:
            self._add(replace(execution, revision=1))

    def _storage_put_job(self, process: str, answer: Job, job: Job) -> None:
        entry = self.jobs[answer.id]
        entry.job = answer
        entry.ever_stopped |= answer.stop_requested_at is not None
        if answer.stop_requested_at is None:
            entry.stands_stopped = False

    def _storage_put_jobs(self, process: str, answer: Sequence[Job | None], jobs: Sequence[Job]) -> None:
        for job in answer:
            if job is not None:
                self._storage_put_job(process, job, job)

    def _storage_put_execution(self, process: str, answer: Execution, execution: Execution) -> None:
        before = self.executions[execution.id]
        what = f"{process} wrote {execution.id}"
        assert execution.revision == before.revision, f"{what} from an outdated copy"
        assert answer.revision == before.revision + 1, what
        self._check_move(what, before, answer)
        assert answer.fence in (before.fence, before.fence + 1), what
        if answer.fence > before.fence:
            # The first to take it writes that with what it does about it: its place, its end, or that it waits again.
            is_first = before.lease_token is None
            assert answer.worker == process or (is_first and answer.status == "enqueued"), what
            assert answer.status == before.status or is_first, what
        elif _is_work(before, answer):
            assert before.worker == process, f"{what}, which {before.worker} has taken over"
        entry = self.jobs[answer.job_id]
        if answer.start_asked_at is not None and before.start_asked_at is None:
            assert not entry.stands_stopped, f"{what}: it is to start, but its job was stopped"
            assert answer.stop_requested_at is None, f"{what}: it is to start, but was stopped"
            assert before.due_at <= answer.start_asked_at, f"{what}: it is to start before its time"
            assert answer.expiration is None or answer.start_asked_at <= answer.expiration, f"{what}: expired"
        self._keep(answer)

    def _add(self, execution: Execution) -> None:
        known = self.executions.get(execution.id)
        if known is None:
            assert execution.status in ("enqueued", "stopped"), execution
            self._keep(execution)

    def _keep(self, execution: Execution) -> None:
        entry = self.jobs[execution.job_id]
        self.executions[execution.id] = entry.executions[execution.id] = execution

    def _check_move(self, what: str, before: Execution, after: Execution) -> None:
        if before.status in FINAL:
            unchanged = ("status", "reason", "message", "exit_code", "started_at", "finished_at", "stop_requested_at")
            for name in unchanged:
                assert getattr(after, name) == getattr(before, name), f"{what}: {name} changed after its end"
        elif after.status != before.status:
            step = f"{what}: {before.status} -> {after.status}"
            assert after.status in MOVES[before.status].split(), step
            assert after.status in TRANSITIONS[before.status], step

    # Queue

    def _queue_put(self, process: str, answer: None, items: Sequence[QueueItem]) -> None:
        self._queued.update(item.execution_id for item in items)

    def _queue_cancel(self, process: str, answer: Cancelled, execution_id: str) -> None:
        assert (answer is Cancelled.LEASED) == (execution_id in self.slots), f"{process} cancelled {execution_id}"
        if answer is Cancelled.REMOVED:
            self._queued.discard(execution_id)

    def _queue_claim(self, process: str, answer: Sequence[Lease], lane: str, **options: Any) -> None:
        now = self._clock()
        for lease in answer:
            its_id = lease.item.execution_id
            slot = self.slots.get(its_id)
            if lease.adopted:
                assert slot is not None, f"{process} adopted {its_id}, which had no slot"
                assert slot.ends_at <= now, f"{process} adopted {its_id}, whose lease lasts for {slot.ends_at - now} s"
            else:
                assert slot is None, f"{process} claimed {its_id}, which has a slot"
                assert lease.item.due_at <= now, f"{process} claimed {its_id} before its time"
            self.slots[its_id] = Slot(lease, now + options["lease_seconds"], slot.place if slot else None)
            if not lease.adopted:
                self._check_capacities(lease)

    def _check_capacities(self, lease: Lease) -> None:
        assert len(self.slots) <= self._lane_capacity, "more leases than the lane has slots"
        held = [each.lease.item for each in self.slots.values()]
        limits = {limit.key: limit.capacity for limit in lease.item.limits}
        for key, capacity in limits.items():
            its = [item for item in held if key in [limit.key for limit in item.limits]]
            assert len(its) <= capacity, f"{len(its)} leases under {key}"
        capacity = self._task_capacities.get(lease.item.task_id)
        its = [item for item in held if item.task_id == lease.item.task_id]
        assert capacity is None or len(its) <= capacity, f"{len(its)} leases of {lease.item.task_id}"

    def _queue_renew(self, process: str, answer: Any, leases: Sequence[Lease], lease_seconds: float) -> None:
        for lease in leases:
            slot = self.slots.get(lease.item.execution_id)
            holds = slot is not None and slot.lease.token == lease.token
            assert (lease.item.execution_id not in answer.lost) == holds, f"renewed {lease} of {slot}"
            if slot is not None and holds:
                slot.ends_at = self._clock() + lease_seconds

    def _queue_assign(self, process: str, answer: str | None, lease: Lease, offers: Sequence[tuple[str, int]]) -> None:
        slot = self._own_slot(process, lease)
        if slot is not None and answer is not None:
            slot.place = answer
            there = sum(each.place == answer for each in self.slots.values())
            assert there <= dict(offers)[answer], f"{there} leases on {answer}"

    def _queue_ack(self, process: str, answer: None, lease: Lease) -> None:
        if self._own_slot(process, lease) is not None:
            del self.slots[lease.item.execution_id]
            self._queued.discard(lease.item.execution_id)

    def _queue_release(self, process: str, answer: None, lease: Lease, *, delay: float) -> None:
        if self._own_slot(process, lease) is not None:
            del self.slots[lease.item.execution_id]

    def _queue_hand_over(self, process: str, answer: None, leases: Sequence[Lease]) -> None:
        for lease in leases:
            slot = self.slots.get(lease.item.execution_id)
            if slot is not None and slot.lease.token == lease.token:
                slot.ends_at = self._clock()

    def _queue_restore_leases(self, process: str, answer: None, leases: Sequence[Lease], lease_seconds: float) -> None:
        for lease in leases:
            if lease.item.execution_id not in self._queued:
                self._queued.add(lease.item.execution_id)
                self.slots[lease.item.execution_id] = Slot(lease, self._clock() + lease_seconds, lease.place)

    def _own_slot(self, process: str, lease: Lease) -> Slot | None:
        slot = self.slots.get(lease.item.execution_id)
        if slot is not None:
            assert slot.lease.token == lease.token, f"{process} had its way with a lease of {slot.lease.worker}"
        return slot

    def queue_lost(self) -> None:
        """The queue has lost its data."""
        self.slots.clear()
        self._queued.clear()

    # What was asked for, and answered

    def fired(self, now: float) -> None:
        """All that was due by now has been fired."""
        for entry in self.jobs.values():
            if not entry.ever_stopped:
                entry.fired_until = now

    def in_hand_of(self, worker: str) -> list[Execution]:
        """What it works on, or has ended and has something left to do for."""
        its = [each for each in self.executions.values() if each.worker == worker]
        return [each for each in its if each.status not in FINAL or each.owes_at is not None]

    def may_run_on(self, execution_id: str) -> bool:
        """Whether nobody is to end its run: it was not asked to stop, and has much time left."""
        execution = self.executions[execution_id]
        return execution.stop_requested_at is None and execution.spec.timeout > SHORT

    def unsettled(self) -> list[Execution | Job]:
        """What has not come to its end."""
        executions = [each for each in self.executions.values() if each.status not in FINAL or each.owes_at is not None]
        return [*executions, *(each.job for each in self.jobs.values() if each.job.due_at is not None)]


def _is_work(before: Execution, after: Execution) -> bool:
    """Whether only who holds the execution's lease may do that: a move of one that has a place or gets one."""
    if before.status in FINAL:
        return False
    moved = before.status != after.status and (before.place is not None or after.place is not None)
    return moved or before.handle != after.handle or before.start_asked_at != after.start_asked_at
