"""A state machine over the life cycle: whatever is asked for, whoever dies, and whenever."""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fastlane_core.engine.faultpoints import FaultPoint
from fastlane_core.engine.submission import JobOrder
from fastlane_core.models import Execution, Misfire, Reason, RunOutcome, RunSpec, Schedule
from tests.integration.lifecycle_ledger import FINAL
from tests.integration.lifecycle_world import NARROW, OPTIONS, WIDE, SimulatedWorker, World
from tests.integration.simulated_processes import Fate
from tests.integration.simulated_servers import RealTime, Servers

_NEEDED = {
    "command": st.sampled_from(["exit 3", "hang", "true", "hang-deaf", "sleep 5", "exit 3"]),
    "retries": st.integers(min_value=0, max_value=2),
}
_LIMITS = {"task_id": st.just(NARROW), "timeout": st.just(4.0), "job_concurrency": st.just(1), "priority": st.just(1)}
_LATER = {"minutes": st.integers(min_value=1, max_value=3), "delay": st.just(20.0), "expires_after": st.just(12.0)}
#: What is asked for; times are seconds from then on. With `minutes` it is a schedule's, which ticks for so long.
ORDERS = st.fixed_dictionaries(_NEEDED, optional=_LIMITS | _LATER)
#: What can be claimed at once, and is tried again.
WORK = st.fixed_dictionaries(_NEEDED | {"retries": st.integers(min_value=1, max_value=2)}, optional=_LIMITS)
#: Jobs of one simulation; each may take a few rounds to settle.
MOST_JOBS = 12
#: Executions are picked by their place, those that have not ended first, round and round.
PICKED = st.integers(min_value=0, max_value=7)
WORKER = st.integers(min_value=0, max_value=2)


def _dooms(points: list[FaultPoint], calls: int) -> st.SearchStrategy[Doom | None]:
    """What befalls a worker: nothing, or it dies or is held up at a point, or after so many calls to servers."""
    where = st.integers(min_value=1, max_value=calls)
    return st.one_of(
        st.none(),
        st.tuples(st.sampled_from(Fate), st.sampled_from(points) if points else where),
        st.tuples(st.sampled_from(Fate), where),
    )


Order: TypeAlias = dict[str, Any]
Doom: TypeAlias = tuple[Fate, FaultPoint | int]
TICK_POINTS = [each for each in FaultPoint if each.startswith("ticks_")]
RUN_POINTS = [each for each in FaultPoint if each not in TICK_POINTS]
RUN_POINT = st.sampled_from(RUN_POINTS)
CLAIM_DOOM = _dooms(RUN_POINTS, 20)
TICK_DOOM = _dooms(TICK_POINTS, 4)
OTHER_DOOM = _dooms([], 12)
#: More often between an end and what it owes, for most lies between those two.
INTERRUPTED = st.sampled_from([*RUN_POINTS, *[FaultPoint.RECORDED_ENDED] * 5])
#: What somebody asks for, of that which a worker has in hand, while that is held up.
REQUESTS = ["stop", "stop job", "retry", "lose queue"]
#: The API dies after so many calls, or never.
API_DOOM = st.one_of(st.none(), st.none(), st.integers(min_value=1, max_value=6))


class LifecycleMachine(RuleBasedStateMachine):
    """Steps of callers, workers, runs and time, and everything that can befall a process."""

    def __init__(self, servers: Servers, real_time: RealTime) -> None:
        super().__init__()
        self._servers = servers
        self._real_time = real_time
        self._world: World | None = None
        self._jobs = 0

    @initialize(seed=st.integers(min_value=0, max_value=2**16), orders=st.lists(ORDERS, min_size=2, max_size=5))
    def begin(self, seed: int, orders: list[Order]) -> None:
        """`seed` draws in which order calls that are under way at the same time happen."""
        self._world = World(self._servers, self._real_time, seed)
        self._world.begin()
        for order in orders:
            self._submit(order)

    @property
    def world(self) -> World:
        """The simulation."""
        assert self._world is not None
        return self._world

    # Callers

    @rule(order=ORDERS, doom=API_DOOM)
    def submit(self, order: Order, doom: int | None) -> None:
        self._doom_api(doom)
        self._submit(order)

    def _submit(self, order: Order) -> None:
        if self._jobs < MOST_JOBS:
            self._jobs += 1
            self.world.submit(_order(f"job-{self._jobs}", self.world.clock(), **order))

    @precondition(lambda self: self.world.ledger.executions)
    @rule(picked=PICKED, whole_job=st.booleans(), doom=API_DOOM)
    def stop(self, picked: int, whole_job: bool, doom: int | None) -> None:
        execution = self._picked_execution(picked)
        self._doom_api(doom)
        if whole_job:
            self.world.stop_job(self.world.ledger.jobs[execution.job_id])
        else:
            self.world.stop_execution(execution)

    @precondition(lambda self: self.world.ledger.executions)
    @rule(picked=PICKED, force=st.booleans(), doom=API_DOOM)
    def retry(self, picked: int, force: bool, doom: int | None) -> None:
        entry = self.world.ledger.jobs[self._picked_execution(picked).job_id]
        self._doom_api(doom)
        self.world.retry(entry, force=force)

    def _picked_execution(self, picked: int) -> Execution:
        executions = sorted(self.world.ledger.executions.values(), key=lambda each: each.status in FINAL)
        return executions[picked % len(executions)]

    def _doom_api(self, doom: int | None) -> None:
        self.world.api.doom(Fate.DIES, doom)

    # Workers

    @rule(number=WORKER, doom=CLAIM_DOOM)
    def claim(self, number: int, doom: Doom | None) -> None:
        self._worker(number, doom).claim()

    @rule(number=WORKER, doom=CLAIM_DOOM)
    def adopt(self, number: int, doom: Doom | None) -> None:
        """Nobody has renewed for long enough."""
        self.world.advance(OPTIONS.lease_seconds)
        self._worker(number, doom).claim()

    @rule(number=WORKER, work=WORK, where=RUN_POINT, doom=CLAIM_DOOM)
    def overtake(self, number: int, work: Order, where: FaultPoint, doom: Doom | None) -> None:
        """A worker is held up for so long that another adopts what it has; then it goes on."""
        self._submit(work)
        self._worker(number, (Fate.PAUSES, where)).claim()
        self.adopt((number + 1) % len(self.world.workers), doom)
        self.world.wake()

    @rule(
        number=WORKER,
        work=WORK,
        fate=st.sampled_from(Fate),
        where=INTERRUPTED,
        meanwhile=st.sampled_from(REQUESTS),
        picked=PICKED,
    )
    def interrupt(self, number: int, work: Order, fate: Fate, where: FaultPoint, meanwhile: str, picked: int) -> None:
        """A worker is held up over what it claims, or dies; somebody asks for something; who was held up goes on."""
        self._submit(work)
        worker = self._worker(number, (fate, where))
        worker.claim()
        its = self.world.ledger.in_hand_of(worker.process.name)
        if meanwhile == "lose queue":
            self.reconcile((number + 1) % len(self.world.workers), True, None)
        elif its:
            execution = its[picked % len(its)]
            entry = self.world.ledger.jobs[execution.job_id]
            if meanwhile == "stop job":
                self.world.stop_job(entry)
            elif meanwhile == "stop":
                self.world.stop_execution(execution)
            else:
                self.world.retry(entry, force=False)
        self.world.wake()

    @precondition(lambda self: self.world.ledger.slots)
    @rule(number=WORKER, doom=OTHER_DOOM)
    def renew(self, number: int, doom: Doom | None) -> None:
        self._worker(number, doom).renew()

    @rule(number=WORKER, lost=st.booleans(), doom=OTHER_DOOM)
    def reconcile(self, number: int, lost: bool, doom: Doom | None) -> None:
        """With `lost`, the queue has lost its data."""
        if lost:
            self.world.lose_queue()
        self._worker(number, doom).reconcile()

    @rule(number=WORKER, doom=TICK_DOOM, seconds=st.sampled_from([60.0, 0.0, 150.0]))
    def tick(self, number: int, doom: Doom | None, seconds: float) -> None:
        self.world.advance(seconds)
        self._worker(number, doom).fire()

    @precondition(lambda self: self.world.ledger.slots)
    @rule(number=WORKER, handing_over=st.booleans())
    def crash(self, number: int, handing_over: bool) -> None:
        """It is killed, or told to stop."""
        if handing_over:
            self._worker(number).hand_over()
        else:
            self._worker(number).process.kill()
            self.world.advance()

    def _worker(self, number: int, doom: Doom | None = None) -> SimulatedWorker:
        worker = self.world.workers[number]
        worker.process.doom(*(doom or (Fate.DIES, None)))
        return worker

    # Runs, servers and time

    @precondition(lambda self: self.world.engine.running)
    @rule(picked=PICKED, code=st.sampled_from([0, 3]))
    def end_run(self, picked: int, code: int) -> None:
        running = self.world.engine.running
        reason = Reason.EXIT_CODE if code else Reason.SUCCEEDED
        self.world.engine.end(running[picked % len(running)], RunOutcome(exit_code=code, reason=reason))
        self.world.advance()

    @rule(seconds=st.sampled_from([4.0, 10.0, 60.0]), waking=st.booleans())
    def advance(self, seconds: float, waking: bool) -> None:
        if waking:
            self.world.wake()
        self.world.advance(seconds)

    # What must hold

    @invariant()
    def holds(self) -> None:
        if self._world is not None:
            self._world.check()

    def teardown(self) -> None:
        """Let everything settle, unless something has failed."""
        if self._world is None:
            return
        try:
            if sys.exc_info()[0] is None:
                self._world.settle()
        finally:
            self._world.close()


def _order(
    job_id: str,
    now: float,
    *,
    command: str,
    task_id: str = WIDE,
    minutes: int | None = None,
    delay: float | None = None,
    timeout: float = 1e6,
    expires_after: float | None = None,
    **options: Any,
) -> JobOrder:
    schedule = None
    if minutes is not None:
        delay = expires_after = None
        end_at = now + 60.0 * minutes
        schedule = Schedule(cron="* * * * *", misfire=Misfire.RUN_ALL, misfire_cap=1000, end_at=end_at)
    return JobOrder(
        task_id=task_id,
        job_id=job_id,
        spec=RunSpec(image="image", command=command, timeout=timeout),
        start_at=None if delay is None else now + delay,
        expiration=None if expires_after is None else now + expires_after,
        schedule=schedule,
        **options,
    )
