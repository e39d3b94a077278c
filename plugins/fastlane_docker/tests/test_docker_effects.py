"""What each option does to the container, on a real engine, and what engines refuse."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
import pytest_asyncio

from fastlane_core.errors import StartRejected
from fastlane_core.models import Reason
from fastlane_core.testing.runner_driver import RunDriver
from fastlane_docker.engines.client import Client
from fastlane_docker.options.docker_options import DockerOptions
from fastlane_docker.options.policies import Resolved
from fastlane_docker.runner import DockerRunner
from fastlane_docker.runs.creating import create
from fastlane_docker.settings import DockerSettings
from tests.services.fixtures import SharedEngine
from tests.services.images import add_ubuntu, can_make_ubuntu
from tests.services.requirement import missing

pytestmark = pytest.mark.services

Build = Callable[..., DockerRunner]

EVERYTHING = {
    "binds": ["/**"],
    "volumes": ["*"],
    "networks": ["*", "host"],
    "devices": ["/dev/**"],
    "capAdd": ["*"],
    "securityOpt": ["*"],
    "gpus": True,
    "privileged": True,
}
MIB = 1 << 20


def container_of(sdk: docker.DockerClient, execution_id: str) -> Any:
    (container,) = sdk.containers.list(all=True, filters={"label": f"fastlane.execution={execution_id}"})
    return container


@pytest_asyncio.fixture
async def in_farm(build_runner: Build, docker_engine: SharedEngine) -> AsyncIterator[Build]:
    """Makes a runner whose only farm has these keys."""

    def build(**keys: Any) -> DockerRunner:
        return build_runner(docker_hosts=[{"hosts": [docker_engine.url], "maxRunning": 8, **keys}])

    yield build


@pytest_asyncio.fixture
async def free(in_farm: Build) -> DockerRunner:
    """A runner whose farm allows everything."""
    runner = in_farm(allow=EVERYTHING)
    await runner.open()
    return runner


@pytest.fixture
def network(sdk: docker.DockerClient) -> Iterator[str]:
    """A network of the test's own, beside the engine's."""
    network = sdk.networks.create(f"fastlane-test-{uuid.uuid4()}")
    yield str(network.name)
    network.remove()


async def output(runner: DockerRunner, runs: RunDriver, script: str, options: dict[str, Any]) -> str:
    run = await runs.start(runner, f"sh -c '{script}'", options={"docker": options})
    return (await run.written()).stdout.decode().strip()


CGROUP = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null"


@pytest.mark.parametrize(
    ("options", "script", "expected"),
    [
        ({"workdir": "/tmp"}, "pwd", "/tmp"),
        ({"user": "nobody"}, "id -un", "nobody"),
        ({"user": "1234:4321"}, "echo $(id -u) $(id -g)", "1234 4321"),
        ({"memory": "64m"}, CGROUP, str(64 * MIB)),
        ({"shmSize": "1m"}, 'df -k /dev/shm | tail -n 1 | awk "{ print \\$2 }"', "1024"),
        ({"ulimits": {"nofile": 123}}, "echo $(ulimit -Sn) $(ulimit -Hn)", "123 123"),
        ({"ulimits": {"nofile": {"soft": 12, "hard": 34}}}, "echo $(ulimit -Sn) $(ulimit -Hn)", "12 34"),
        ({"mounts": [{"type": "tmpfs", "target": "/t", "size": "2m"}]}, "df -k /t | tail -n 1 | cut -c1-5", "tmpfs"),
        ({"mounts": [{"type": "volume", "target": "/v"}]}, 'echo x > /v/x && grep -c " /v " /proc/mounts', "1"),
        ({"networks": "none"}, "ls /sys/class/net", "lo"),
        ({"extraHosts": {"db": "10.1.2.3"}}, "grep -w db /etc/hosts | cut -f1", "10.1.2.3"),
        ({"readOnly": True}, "touch /x 2>/dev/null || echo refused", "refused"),
        ({"init": True}, "cat /proc/1/comm", "docker-init"),
        ({"platform": "linux/amd64"}, "echo here", "here"),
        ({"capDrop": ["ALL"]}, "grep CapEff /proc/self/status | cut -f2", "0" * 16),
        ({"capDrop": ["CHOWN"]}, "touch /x; chown 5 /x 2>/dev/null || echo refused", "refused"),
        ({"capAdd": ["NET_ADMIN"]}, "ip link set lo mtu 1280 && cat /sys/class/net/lo/mtu", "1280"),
        ({"capAdd": ["MKNOD"]}, "mknod /x c 1 3 && echo made", "made"),
        ({"securityOpt": ["no-new-privileges:false"]}, "grep NoNew /proc/self/status | cut -f2", "0"),
        ({"devices": ["/dev/null:/dev/other:r"]}, "head -c 1 /dev/other && echo read", "read"),
        ({"entrypoint": []}, "echo no entry point", "no entry point"),
    ],
    ids=str,
)
async def test_options_take_effect(
    free: DockerRunner, runs: RunDriver, options: dict[str, Any], script: str, expected: str
) -> None:
    assert await output(free, runs, script, options) == expected


async def test_entry_point_comes_before_the_command(free: DockerRunner, runs: RunDriver) -> None:
    run = await runs.start(free, "one two", options={"docker": {"entrypoint": "echo zero"}})

    assert (await run.written()).stdout == b"zero one two\n"


async def test_what_only_inspection_shows(free: DockerRunner, runs: RunDriver, sdk: docker.DockerClient) -> None:
    options = {"memory": "64m", "cpus": 0.5, "stopSignal": "INT", "labels": {"team": "a"}}
    run = await runs.start(free, "true", options={"docker": options})

    attributes = container_of(sdk, run.request.execution_id).attrs

    host = attributes["HostConfig"]
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (64 * MIB, 64 * MIB, 500_000_000)
    assert attributes["Config"]["StopSignal"] == "SIGINT"
    assert attributes["Config"]["Labels"]["team"] == "a"


async def test_bind_mounts_are_of_the_host(free: DockerRunner, runs: RunDriver, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("from the host")
    mount = {"type": "bind", "source": str(tmp_path), "target": "/host"}

    assert await output(free, runs, "cat /host/given; echo out > /host/made", {"mounts": [mount]}) == "from the host"
    read_only = {"mounts": [{**mount, "readOnly": True}]}
    assert await output(free, runs, "cat /host/made; touch /host/x || echo refused", read_only) == "out\nrefused"


async def test_named_volumes_are_shared(free: DockerRunner, runs: RunDriver, sdk: docker.DockerClient) -> None:
    name = f"fastlane-test-{uuid.uuid4()}"
    options = {"mounts": [{"type": "volume", "source": name, "target": "/v"}]}

    run = await runs.start(free, "sh -c 'echo kept > /v/x'", options={"docker": options})
    await run.wait()

    assert await output(free, runs, "cat /v/x", options) == "kept"
    for container in sdk.containers.list(all=True, filters={"volume": name}):
        container.remove(force=True)
    sdk.volumes.get(name).remove()


async def test_containers_join_all_their_networks(
    free: DockerRunner, runs: RunDriver, sdk: docker.DockerClient, network: str
) -> None:
    both = await runs.start(free, "sh -c 'ls /sys/class/net'", options={"docker": {"networks": ["bridge", network]}})
    assert (await both.written()).stdout == b"eth0\neth1\nlo\n"

    await both.wait()
    container = container_of(sdk, both.request.execution_id)
    assert sorted(container.attrs["NetworkSettings"]["Networks"]) == sorted(["bridge", network])
    # The network is removed before the driver would.
    container.remove(force=True)


async def test_network_of_the_host(free: DockerRunner, runs: RunDriver) -> None:
    assert await output(free, runs, "readlink /proc/self/ns/net", {"networks": "host"}) == os.readlink(
        "/proc/self/ns/net"
    )


async def test_privileges_and_gpus_are_asked_for(
    free: DockerRunner, runs: RunDriver, sdk: docker.DockerClient, docker_engine: SharedEngine
) -> None:
    """Looked at before the start: not every machine has GPUs or may give privileges."""
    options = {"privileged": True, "gpus": {"deviceIds": ["a", "b"], "capabilities": ["utility"]}}
    request = await runs.request(free, "true", options={"docker": options})

    with contextlib.closing(Client.connected(docker_engine.url, 60, connections=1)) as client:
        create(client, request, Resolved(DockerOptions.model_validate(options), {}), DockerSettings())

    host = container_of(sdk, request.execution_id).attrs["HostConfig"]
    assert host["Privileged"]
    (asked,) = host["DeviceRequests"]
    assert (asked["Count"], asked["DeviceIDs"], asked["Capabilities"]) == (0, ["a", "b"], [["utility", "gpu"]])


async def test_own_grace_wins_over_that_of_the_worker(free: DockerRunner, runs: RunDriver) -> None:
    script = "trap : TERM; echo ready; while :; do sleep 0.1; done"
    run = await runs.start(free, f"sh -c '{script}'", options={"docker": {"stopGrace": 0}})
    await run.until_ready()
    begun = time.monotonic()

    await run.stop(600)

    assert (await run.wait()).exit_code == 137
    assert time.monotonic() - begun < 300


async def test_stop_signal_asks_it_to_end(free: DockerRunner, runs: RunDriver) -> None:
    script = 'trap "exit 3" USR1; echo ready; while :; do sleep 0.1; done'
    run = await runs.start(free, f"sh -c '{script}'", options={"docker": {"stopSignal": "USR1"}})
    await run.until_ready()

    await run.stop(60)

    assert (await run.wait()).exit_code == 3


async def test_handles_without_a_grace_are_understood(runner: DockerRunner, runs: RunDriver) -> None:
    run = await runs.start(runner, "sleep 600")
    assert "stopGrace" not in run.handle.data

    await run.stop(0)

    assert (await run.wait()).exit_code == 137


# Every container


async def test_containers_lack_what_jobs_rarely_need(runner: DockerRunner, runs: RunDriver) -> None:
    script = (
        "grep CapEff /proc/self/status | cut -f2; grep NoNew /proc/self/status | cut -f2; mknod /x c 1 3 || echo no"
    )

    effective, no_new_privileges, made = (await output(runner, runs, script, {})).split("\n")

    chown_dac_fowner_fsetid_kill_setgid_setuid = 0b11111011
    setpcap_bind_chroot_setfcap = 1 << 8 | 1 << 10 | 1 << 18 | 1 << 31
    assert int(effective, 16) == chown_dac_fowner_fsetid_kill_setgid_setuid | setpcap_bind_chroot_setfcap
    assert (no_new_privileges, made) == ("1", "no")


async def test_package_managers_work_with_what_is_left(
    runner: DockerRunner, runs: RunDriver, docker_engine: SharedEngine
) -> None:
    if not can_make_ubuntu():
        missing("the image ubuntu", "debootstrap is not installed, or this is not root")
    add_ubuntu(docker_engine.url)
    script = """set -e
        mkdir -p /p/DEBIAN && cd /
        printf '%s: %s\\n' Package p Version 1 Architecture all Maintainer a Description d > p/DEBIAN/control
        printf '#!/bin/sh\\nset -e\\nuseradd --system daemon2\\nchown daemon2 /opt\\n' > p/DEBIAN/postinst
        chmod 755 p/DEBIAN/postinst
        dpkg-deb --build p >&2
        apt-get install --yes ./p.deb >&2
        stat -c %U /opt
        su daemon2 --shell /bin/sh --command 'id --user --name'"""
    request = await runs.request(runner, "ignored", image="ubuntu:latest")
    run = await runs.start_request(runner, replace(request, argv=("bash", "-c", script)))

    written = await run.written()

    assert (await run.wait()).exit_code == 0, written.stderr
    assert written.stdout == b"daemon2\ndaemon2\n"


# Farms


async def test_farms_defaults_labels_and_limits_count(
    in_farm: Build, runs: RunDriver, sdk: docker.DockerClient, tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "data").write_text("shared")
    mount = {"type": "bind", "source": str(tmp_path), "target": "/data", "readOnly": True}
    runner = in_farm(
        labels={"farm": "a", "both": "farm"},
        defaults={"user": "nobody", "workdir": "/tmp", "mounts": [mount], "labels": {"default": "b"}, "cpus": 1},
        limits={"memory": "64m", "cpus": 1.5},
    )
    await runner.open()
    options = {"workdir": "/", "labels": {"both": "job", "own": "c"}}

    run = await runs.start(runner, "sh -c 'id -un; pwd; cat /data/data'", options={"docker": options})

    assert (await run.written()).stdout == b"nobody\n/\nshared"
    attributes = container_of(sdk, run.request.execution_id).attrs
    assert attributes["HostConfig"]["Memory"] == 64 * MIB
    assert attributes["HostConfig"]["NanoCpus"] == 1_000_000_000
    labels = attributes["Config"]["Labels"].items()
    assert {"farm": "a", "both": "farm", "default": "b", "own": "c"}.items() <= labels


@pytest.mark.parametrize("farm", ["stricter", "gone"])
async def test_jobs_accepted_under_older_permissions_are_rejected_at_their_start(
    in_farm: Build, runs: RunDriver, sdk: docker.DockerClient, farm: str
) -> None:
    runner = in_farm(name="strict", limits={"cpus": 1})
    await runner.open()
    options = {"cpus": 2} if farm == "stricter" else {"privileged": True}
    request = await runs.request(runner, "true", options={"docker": options})
    if farm == "gone":
        request = replace(request, lane="docker:gone")

    with pytest.raises(StartRejected, match=r"not permitted \(any more\): docker\.(cpus|privileged)"):
        await runs.start_request(runner, request)

    assert sdk.containers.list(all=True, filters={"label": f"fastlane.execution={request.execution_id}"}) == []


async def test_run_that_exists_is_adopted_although_it_would_not_be_permitted_now(
    in_farm: Build, free: DockerRunner, runs: RunDriver
) -> None:
    run = await runs.start(free, "echo begun", options={"docker": {"capAdd": ["NET_RAW"]}})
    strict = in_farm()
    await strict.open()

    handle = await strict.start(run.request)

    assert handle.data["container"] == run.handle.data["container"]


async def test_farm_that_is_gone_lets_harmless_jobs_run(runner: DockerRunner, runs: RunDriver) -> None:
    request = await runs.request(runner, "sh -c 'echo $PWD'", options={"docker": {"workdir": "/tmp"}})

    run = await runs.start_request(runner, replace(request, lane="docker:gone"))

    assert (await run.written()).stdout == b"/tmp\n"


# Ends


@pytest.mark.parametrize(
    ("command", "reason", "code", "told"),
    [
        ("true", Reason.SUCCEEDED, 0, ""),
        ("sh -c 'exit 7'", Reason.EXIT_CODE, 7, "exit code 7"),
        ("no-such-command", Reason.COMMAND_NOT_FOUND, 127, "no-such-command"),
        ("/no/such/path", Reason.COMMAND_NOT_FOUND, 127, "no such file"),
        ("/etc/passwd", Reason.COMMAND_NOT_EXECUTABLE, 126, "permission denied"),
        ("/etc", Reason.COMMAND_NOT_EXECUTABLE, 126, "/etc"),
        ("sh -c 'exit 143'", Reason.SIGNAL, 143, "SIGTERM"),
        ("sh -c 'exit 139'", Reason.SIGNAL, 139, "SIGSEGV"),
    ],
)
async def test_ends_of_commands(
    runner: DockerRunner, runs: RunDriver, command: str, reason: Reason, code: int, told: str
) -> None:
    run = await runs.start(runner, command)

    outcome = await run.wait()

    assert (outcome.reason, outcome.exit_code) == (reason, code)
    assert told in outcome.message


async def test_very_long_words_of_the_engine_are_cut(runner: DockerRunner, runs: RunDriver) -> None:
    outcome = await (await runs.start(runner, "x" * 50_000)).wait()

    assert outcome.reason is Reason.COMMAND_NOT_FOUND
    assert "not found" in outcome.message
    assert len(outcome.message) < 2000


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"user": "no-such-user"}, "no-such-user"),
        ({"user": "root:no-such-group"}, "no-such-group"),
        ({"workdir": "/proc/none"}, "/proc/none"),
        ({"workdir": "/etc/passwd"}, "not a directory"),
        ({"networks": "no-such-network"}, "no-such-network"),
        ({"networks": ["bridge", "no-such-network"]}, "no-such-network"),
        ({"gpus": "all"}, "device driver"),
        ({"devices": ["/dev/no-such-device"]}, "no-such-device"),
        ({"mounts": [{"type": "bind", "source": "/no/such/path", "target": "/x"}]}, "/no/such/path"),
        ({"mounts": [{"type": "bind", "source": "/tmp", "target": "/etc/passwd"}]}, "not a directory"),
        ({"mounts": [{"type": "bind", "source": "/tmp", "target": "/proc/sys"}]}, "/proc"),
        ({"cpus": 4000}, "CPUs"),
        ({"capDrop": ["NO_SUCH"]}, "NO_SUCH"),
        ({"securityOpt": ["nothing=known"]}, "nothing=known"),
        ({"securityOpt": ["seccomp=none"]}, "seccomp"),
        ({"ulimits": {"nofile": 10**12}}, "rlimit"),
    ],
    ids=str,
)
async def test_what_only_the_engine_can_refuse_is_rejected_in_its_words_and_leaves_nothing(
    free: DockerRunner, runs: RunDriver, sdk: docker.DockerClient, options: dict[str, Any], told: str
) -> None:
    request = await runs.request(free, "true", options={"docker": options})

    with pytest.raises(StartRejected, match=told):
        await runs.start_request(free, request)

    assert sdk.containers.list(all=True, filters={"label": f"fastlane.execution={request.execution_id}"}) == []
