"""A deployment in simulated time: workers and an API over real storage and queue, and an engine in memory."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar, cast

from fastlane_core.contracts.queue import Queue
from fastlane_core.contracts.storage import Storage
from fastlane_core.engine.backoff import Backoff
from fastlane_core.engine.claiming import ClaimLoop
from fastlane_core.engine.context import EngineOptions, WorkerContext
from fastlane_core.engine.leases import LeaseKeeper
from fastlane_core.engine.reconciling import Reconciler
from fastlane_core.engine.retrying import Retrying
from fastlane_core.engine.routing import Routing, TaskLimit
from fastlane_core.engine.scheduling import Scheduler
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import JobOrder, JobSubmission
from fastlane_core.engine.sweeping import Sweeper
from fastlane_core.errors import Conflict, InvalidInput
from fastlane_core.models import Execution
from fastlane_core.testing.fake_engine import FakeEngine
from fastlane_core.testing.fake_runner import FakeRunner
from tests.integration.lifecycle_closing import check_job
from tests.integration.lifecycle_ledger import JobEntry, Ledger
from tests.integration.simulated_loop import SimulatedLoop
from tests.integration.simulated_processes import Call, Fate, Killed, Process, Remote, RemoteEngine, Traffic
from tests.integration.simulated_servers import RealTime, Servers

T = TypeVar("T")
#: A whole minute.
BEGIN = 1_800_000_000.0
LANE = "fake:default"
LANES = {LANE: 3}
PLACES = {"one": 2, "two": 2}
NARROW, WIDE = "narrow", "wide"
TASK_CAPACITIES = {NARROW: 1}
OPTIONS = EngineOptions(
    lease_seconds=15.0,
    stop_grace_seconds=2.0,
    retry_backoff=Backoff(first=10.0, jitter=0.0),
    trouble_backoff=Backoff(first=0.25, cap=1.0, jitter=0.0),
)
#: What passes with each step: enough for the pauses that the engine makes on its own way.
MOMENT = 0.25
#: Rounds within which everything settles, unless something is lost.
_ROUNDS = 200


class World:
    """Everything of one simulation."""

    def __init__(self, servers: Servers, real_time: RealTime, seed: int) -> None:
        self.servers = servers
        self._real_time = real_time
        self._traffic = Traffic(self._perform, random.Random(seed))
        self.loop = SimulatedLoop(self._traffic.step)
        self.ledger = Ledger(self.clock, lane_capacity=LANES[LANE], task_capacities=TASK_CAPACITIES)
        self.engine = FakeEngine(places=PLACES, clock=self.clock)
        self.reports: list[BaseException] = []
        self._names = 0
        self.workers: list[SimulatedWorker] = []
        real_time.run(servers.begin(self.clock))
        self.api = self.process("api")
        self.workers = [SimulatedWorker(self) for _ in range(3)]

    def begin(self) -> None:
        """Let the new queue grant."""
        self.workers[0].reconcile()

    def clock(self) -> float:
        """Now, in the simulation."""
        return BEGIN + self.loop.time()

    def process(self, kind: str) -> Process:
        """A new one."""
        self._names += 1
        return Process(f"{kind}-{self._names}", self._traffic)

    def remotes(self, process: Process) -> tuple[Storage, Queue]:
        """Storage and queue as it reaches them."""
        reach = partial(Remote, self._traffic, process)
        return cast(Storage, reach("storage")), cast(Queue, reach("queue"))

    def routing(self, process: Process) -> Routing:
        """Routing over a runner of its own."""
        engine = cast(FakeEngine, RemoteEngine(self._traffic, process, self.engine))
        runner = FakeRunner(engine, deployment_id="simulated", lanes=LANES)
        return Routing([runner], [TaskLimit(pattern=re.compile(NARROW), capacity=TASK_CAPACITIES[NARROW])])

    # Steps

    def advance(self, seconds: float = MOMENT) -> None:
        """Let time pass; processes that died meanwhile have successors then."""
        self.loop.advance(seconds)
        self.workers = [each if each.process.alive else SimulatedWorker(self) for each in self.workers]
        if not self.api.alive:
            self.api = self.process("api")
        assert self.reports == [], f"crashed: {self.reports!r}"

    def wake(self) -> None:
        """Whoever is held up goes on."""
        for process in (self.api, *(each.process for each in self.workers)):
            process.paused = False
        self.advance()

    def run(self, process: Process, coroutine: Coroutine[Any, Any, T]) -> T | None:
        """What a process does now; None where it died over it or is held up."""
        task = self.loop.begin(process, coroutine)
        self.advance()
        if not task.done():
            return None
        try:
            return task.result()
        except (Killed, asyncio.CancelledError):
            return None

    def submit(self, order: JobOrder) -> None:
        """Ask the API for a job."""
        storage, queue = self.remotes(self.api)
        submission = JobSubmission(storage, queue, self.routing(self.api), self.clock)

        async def submit() -> None:
            await submission.submit(order)
            await submission.settled()

        self.run(self.api, submit())

    def stop_job(self, entry: JobEntry) -> None:
        """Ask the API to stop a job."""
        entry.ever_stopped = True
        storage, queue = self.remotes(self.api)
        if self.run(self.api, Stopping(storage, queue, self.clock).stop_job(entry.job.task_id, entry.job.id)):
            entry.stands_stopped = True

    def stop_execution(self, execution: Execution) -> None:
        """Ask the API to stop an execution."""
        storage, queue = self.remotes(self.api)
        stopping = Stopping(storage, queue, self.clock)
        self.run(self.api, stopping.stop_execution(execution.task_id, execution.job_id, execution.id))

    def retry(self, entry: JobEntry, *, force: bool) -> None:
        """Ask the API to run a job again."""
        newest = max((each.created_at for each in entry.executions.values()), default=0.0)
        asked_again = {each.id for each in entry.executions.values() if each.created_at == newest}
        entry.ever_stopped |= force
        storage, queue = self.remotes(self.api)
        stopping = Stopping(storage, queue, self.clock)
        retrying = Retrying(storage, queue, self.routing(self.api), stopping, self.clock)
        entry.asked_again |= asked_again
        with suppress(Conflict, InvalidInput):
            self.run(self.api, retrying.retry_job(entry.job.task_id, entry.job.id, force=force))

    def lose_queue(self) -> None:
        """Let the queue lose its data."""
        self._real_time.run(self.servers.lose_queue())
        self.ledger.queue_lost()

    # What must hold

    def check(self) -> None:
        """Raise AssertionError if something does not hold at this moment."""
        assert len(self.engine.running) <= LANES[LANE], f"{len(self.engine.running)} runs at a time"
        assert max(self.engine.starts.values(), default=0) <= 1, f"runs that began twice: {self.engine.starts}"
        stats = self._real_time.run(self.servers.queue.stats()).get(LANE)
        leased = 0 if stats is None else stats.leased
        assert leased == len(self.ledger.slots), f"the queue counts {leased} leases, and gave {self.ledger.slots}"

    def settle(self) -> None:
        """Let everything come to its end, and check what has become of every job."""
        for process in (self.api, *(each.process for each in self.workers)):
            process.doom(Fate.DIES, None)
        self.wake()
        for worker in self.workers:
            worker.process.kill()
        self.advance(OPTIONS.lease_seconds)
        last = self.workers[0]
        for _ in range(_ROUNDS):
            last.fire()
            last.reconcile()
            last.claim()
            for execution_id in self.engine.running:
                if self.ledger.may_run_on(execution_id):
                    self.engine.end(execution_id)
            self.advance(10.0)
            last.renew()
            self.check()
            if self._is_settled():
                break
        else:
            raise AssertionError(f"unsettled: {self.ledger.unsettled()}, {self.ledger.slots}")
        storage = self.servers.storage
        for entry in self.ledger.jobs.values():
            page = self._real_time.run(
                storage.list_executions(entry.job.id, task_id=entry.job.task_id, cursor=None, limit=1000)
            )
            check_job(entry, page.items, self.engine)

    def close(self) -> None:
        """Let go of everything."""
        for process in (self.api, *(each.process for each in self.workers)):
            process.kill()
        self.loop.advance(0.0)
        self.loop.close()
        self._real_time.run(self.servers.end())

    def _is_settled(self) -> bool:
        leftovers = [run for run in self.engine.runs.values() if run.finished_at is None]
        return not leftovers and not self.ledger.slots and not self.ledger.unsettled()

    def _perform(self, call: Call) -> Any:
        if call.server == "engine":
            return None
        answer = self._real_time.run(self._answer(call))
        self.ledger.enter(call.process.name, call.server, call.method, call.args, call.options, answer)
        return answer

    async def _answer(self, call: Call) -> Any:
        await self.servers.before_call()
        return await getattr(getattr(self.servers, call.server), call.method)(*call.args, **call.options)


class SimulatedWorker:
    """A worker's parts, each of which does its work when it is told to."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.process = world.process("worker")
        storage, queue = world.remotes(self.process)
        self._context = WorkerContext(
            worker=self.process.name,
            deployment_id="simulated",
            storage=storage,
            queue=queue,
            routing=world.routing(self.process),
            options=OPTIONS,
            clock=world.clock,
            emit=lambda event: None,
            report=lambda error, event: world.reports.append(error),
            reach=self.process.reach,
        )
        self.keeper = LeaseKeeper(self._context)
        self._reconciler = Reconciler(self._context, self.keeper)
        self._sweeper = Sweeper(self._context, self.keeper)

    def claim(self) -> None:
        """Claim all that there is room for."""
        (lane,) = self._context.routing.lanes()
        self._drive(ClaimLoop(self._context, lane, self._context.routing.runners[0], self.keeper).run())

    def renew(self) -> None:
        """Renew its leases, and heed the stops that are told of with them."""
        self._world.run(self.process, self.keeper.renew())
        if not self.process.paused:
            self._drive(self.keeper.heed_stops())

    def reconcile(self) -> None:
        """One pass, and a sweep of what is left on the engine."""
        self._world.run(self.process, self._mend())

    def fire(self) -> None:
        """Fire what is due."""
        now = self._world.clock()
        if self._world.run(self.process, self._fire_all(now)):
            self._world.ledger.fired(now)

    def hand_over(self) -> None:
        """Be told to stop."""
        self._world.run(self.process, self.keeper.hand_over())
        self.process.kill()
        self._world.advance()

    def _drive(self, loop: Coroutine[object, object, None]) -> None:
        """Let a loop do what there is to do at this moment."""
        task = self._world.loop.begin(self.process, loop)
        self._world.advance()
        if not self.process.paused:
            task.cancel()
            self._world.advance()

    async def _mend(self) -> None:
        await self._reconciler.reconcile()
        await self._sweeper.sweep()

    async def _fire_all(self, now: float) -> bool:
        scheduler = Scheduler(self._context)
        while await scheduler.fire(until=now):
            pass
        return True
