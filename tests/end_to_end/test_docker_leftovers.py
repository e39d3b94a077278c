"""What is left on engines: of workers that were held up or died, and of two Fastlanes that share an engine."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest

from fastlane_core.app import Application, engine_options, open_application
from fastlane_core.contracts.runner import Runner
from fastlane_core.engine.context import WorkerContext
from fastlane_core.engine.leases import LeaseKeeper
from fastlane_core.engine.stopping import Stopping
from fastlane_core.engine.submission import JobOrder, JobSubmission
from fastlane_core.engine.supervision import Supervision
from fastlane_core.engine.sweeping import Sweeper
from fastlane_core.models import Execution, RunSpec, Status
from fastlane_core.settings import WorkerSettings
from tests.services.fixtures import SharedEngine
from tests.services.http_proxy import HttpProxy

pytestmark = pytest.mark.services

PATIENCE = 60.0
LANE = "docker:0"


class Process:
    """One worker's process, whose steps a test takes by hand."""

    def __init__(self, application: Application, name: str) -> None:
        self.application = application
        self.context = WorkerContext(
            worker=name,
            deployment_id=application.context.deployment_id,
            storage=application.storage,
            queue=application.queue,
            routing=application.routing,
            options=engine_options(application.settings.section(WorkerSettings)),
            clock=time.time,
            emit=lambda event: None,
            report=lambda error, event: None,
        )

    @property
    def runner(self) -> Runner:
        return self.application.routing.runners[0]

    async def submit(self, command: str, task: str = "test") -> Execution:
        """Submit a job; its first execution."""
        submission = JobSubmission(
            self.application.storage, self.application.queue, self.application.routing, time.time
        )
        order = JobOrder(task_id=task, spec=RunSpec(image="busybox:latest", command=command, timeout=600.0))
        execution = (await submission.submit(order)).execution
        await submission.settled()
        assert execution is not None
        return execution

    async def claim(self, lease_seconds: float = 60.0) -> Supervision:
        """Claim one execution as soon as there is one; nobody renews the lease."""
        queue = self.application.queue
        await queue.rebuilt()
        async with asyncio.timeout(PATIENCE):
            while True:
                leases = await queue.claim(
                    LANE, worker=self.context.worker, capacity=8, limit=1, lease_seconds=lease_seconds
                )
                if leases:
                    return Supervision(self.context, leases[0])
                await asyncio.sleep(0.05)

    async def sweep(self, *, later: float = 0.0) -> None:
        """Once, by a clock that is ahead so many seconds."""
        context = replace(self.context, clock=lambda: time.time() + later)
        await Sweeper(context, LeaseKeeper(context)).sweep()

    async def leave_running(self, command: str) -> Execution:
        """Start a job and die while it runs."""
        execution = await self.submit(command)
        dying = asyncio.create_task((await self.claim()).run())
        async with asyncio.timeout(PATIENCE):
            while (await self.now(execution)).status is not Status.RUNNING:
                await asyncio.sleep(0.02)
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        return execution

    async def now(self, execution: Execution) -> Execution:
        """The execution as it is stored."""
        stored = await self.application.storage.get_execution(execution.id)
        assert stored is not None
        return stored


@asynccontextmanager
async def opened(folder: Path, url: str, name: str, **settings: Any) -> AsyncIterator[Process]:
    """A worker's process on one engine; those of one folder are one deployment."""
    folder.mkdir(exist_ok=True)
    overrides = {
        "RUNNERS": ["docker"],
        "DOCKER_HOSTS": [{"hosts": [url], "maxRunning": 8}],
        "SQLITE_PATH": str(folder / "fastlane.db"),
        "STOP_GRACE_SECONDS": 0.2,
        **settings,
    }
    async with open_application(overrides=overrides) as application:
        process = Process(application, name)
        await process.runner.open()
        try:
            yield process
        finally:
            await process.runner.close()


class Operator:
    """The engine as its operator sees it."""

    def __init__(self, client: docker.APIClient) -> None:
        self.client = client
        self.deployments: set[str] = set()

    def states(self, deployment_id: str) -> dict[str, str]:
        """Name and state of each of the deployment's containers."""
        self.deployments.add(deployment_id)
        found = self.client.containers(all=True, filters={"label": f"fastlane.deployment={deployment_id}"})
        return {each["Names"][0].lstrip("/"): each["State"] for each in found}

    def events(self, execution: Execution, since: float) -> list[str]:
        """What happened to the execution's containers."""
        filters = {"type": "container", "label": f"fastlane.execution={execution.id}"}
        events = self.client.events(since=int(since), until=int(time.time()) + 1, filters=filters, decode=True)
        return [each["Action"] for each in events]


@pytest.fixture
def operator(docker_engine: SharedEngine) -> Iterator[Operator]:
    operator = Operator(docker.APIClient(base_url=docker_engine.url, version="auto", timeout=60))
    yield operator
    for deployment_id in operator.deployments:
        label = f"fastlane.deployment={deployment_id}"
        for each in operator.client.containers(all=True, filters={"label": label}):
            operator.client.remove_container(each["Id"], force=True)
    operator.client.close()


@pytest.fixture
def proxy(docker_engine: SharedEngine) -> Iterator[HttpProxy]:
    scheme, _, where = docker_engine.url.partition("://")
    if scheme != "tcp":
        pytest.skip("the shared engine does not listen on TCP, so no proxy can stand before it")
    name, _, port = where.partition(":")
    with HttpProxy((name, int(port))) as proxy:
        yield proxy


async def until_set(event: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not event.is_set():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("held", ["^POST /containers/create", "^POST /containers/[^/]*/start"], ids=["create", "start"])
@pytest.mark.parametrize("removed", ["at once", "by pruning"])
async def test_worker_held_up_until_the_container_was_removed_starts_nothing(
    tmp_path: Path, proxy: HttpProxy, operator: Operator, removed: str, held: str
) -> None:
    begun = time.time()
    keep = {"DOCKER_KEEP_SECONDS": 0} if removed == "at once" else {}
    async with AsyncExitStack() as stack:
        slow, other = [
            await stack.enter_async_context(opened(tmp_path, proxy.url, name, **keep)) for name in ("slow", "other")
        ]
        execution = await slow.submit("echo once")
        claimed = await slow.claim(lease_seconds=1.0)
        proxy.hold_next(held)
        late = asyncio.create_task(claimed.run())
        await until_set(proxy.holding)

        adopted = await other.claim()
        assert adopted.lease.adopted
        await adopted.run()
        if removed == "by pruning":
            (report,) = await other.runner.prune(older_than=0, dry_run=False)
            assert report.removed == [f"defunct-fastlane-job-{execution.id}"]
        assert operator.states(slow.context.deployment_id) == {}
        done = await other.now(execution)
        assert (done.status, done.stdout_bytes) == (Status.DONE, len(b"once\n"))

        proxy.let_go()
        async with asyncio.timeout(PATIENCE):
            await late

        # What is on its way to the engine cannot be called back; after that it asks first.
        anew = "create" in held
        assert operator.events(execution, begun).count("create") == 1 + anew
        assert operator.events(execution, begun).count("start") == 1
        assert await other.now(execution) == done
        left = {f"fastlane-job-{execution.id}": "created"} if anew else {}
        assert operator.states(slow.context.deployment_id) == left
        await other.sweep(later=10.0)
        await other.runner.prune(older_than=0, dry_run=False)
        assert operator.states(slow.context.deployment_id) == {}


async def test_container_of_a_worker_held_up_is_used_by_the_one_that_took_over(
    tmp_path: Path, proxy: HttpProxy, operator: Operator
) -> None:
    begun = time.time()
    async with opened(tmp_path, proxy.url, "slow") as slow, opened(tmp_path, proxy.url, "other") as other:
        execution = await slow.submit("echo once")
        claimed = await slow.claim(lease_seconds=1.0)
        proxy.hold_next("^POST /containers/[^/]*/start")
        late = asyncio.create_task(claimed.run())
        await until_set(proxy.holding)

        await (await other.claim()).run()
        proxy.let_go()
        async with asyncio.timeout(PATIENCE):
            await late

        assert (await other.now(execution)).status is Status.DONE
        assert operator.states(slow.context.deployment_id)[f"defunct-fastlane-job-{execution.id}"] == "exited"
        assert operator.events(execution, begun).count("start") == 1


async def test_two_fastlanes_on_one_engine_leave_each_other_alone(
    tmp_path: Path, docker_engine: SharedEngine, operator: Operator
) -> None:
    url, ids = docker_engine.url, (str(uuid.uuid4()), str(uuid.uuid4()))
    for name in ids:
        async with opened(tmp_path / f"lost-{name}", url, "victim", DEPLOYMENT_ID=name) as victim:
            await victim.submit("echo done")
            await (await victim.claim()).run()
            await victim.leave_running("sleep 600")
    one, two = ids
    theirs = operator.states(two)
    assert sorted(theirs.values()) == ["exited", "running"]

    # Both have lost their storage: to each, what runs is an orphan.
    async with opened(tmp_path / "one", url, "worker", DEPLOYMENT_ID=one) as worker:
        await worker.sweep(later=120.0)
        await worker.runner.prune(older_than=0, dry_run=False)

    assert operator.states(one) == {}
    assert operator.states(two) == theirs


async def test_orphan_is_stopped_and_processed_once_it_is_old_enough_to_be_one(
    tmp_path: Path, docker_engine: SharedEngine, operator: Operator
) -> None:
    url, deployment_id = docker_engine.url, str(uuid.uuid4())
    async with opened(tmp_path / "lost", url, "victim", DEPLOYMENT_ID=deployment_id) as victim:
        orphan = await victim.leave_running("sleep 600")
    async with opened(tmp_path / "new", url, "worker", DEPLOYMENT_ID=deployment_id) as worker:
        await worker.sweep()
        assert operator.states(deployment_id) == {f"fastlane-job-{orphan.id}": "running"}

        await worker.sweep(later=120.0)

    assert operator.states(deployment_id) == {f"defunct-fastlane-job-{orphan.id}": "exited"}


async def test_container_that_a_dead_worker_created_but_never_started_is_processed(
    tmp_path: Path, proxy: HttpProxy, operator: Operator
) -> None:
    async with opened(tmp_path, proxy.url, "victim") as victim, opened(tmp_path, proxy.url, "heir") as heir:
        stopped = await victim.submit("echo never")
        claimed = await victim.claim(lease_seconds=1.0)
        proxy.hold_next("^POST /containers/[^/]*/start")
        dying = asyncio.create_task(claimed.run())
        await until_set(proxy.holding)
        proxy.cut()
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        name = f"fastlane-job-{stopped.id}"
        assert operator.states(victim.context.deployment_id) == {name: "created"}

        # Somebody may still adopt it: it is left alone until it has ended.
        await heir.sweep(later=120.0)
        assert operator.states(victim.context.deployment_id) == {name: "created"}
        await Stopping(heir.application.storage, heir.application.queue, time.time).stop_job("test", stopped.job_id)
        await (await heir.claim()).run()

        assert (await heir.now(stopped)).status is Status.STOPPED
        await heir.sweep(later=120.0)
        assert list(operator.states(victim.context.deployment_id)) == [f"defunct-{name}"]
