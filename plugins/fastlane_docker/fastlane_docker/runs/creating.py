"""Creating the container of a run: every option as the engine takes it, and what all containers get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docker.types import DeviceRequest, LogConfig, Mount, Ulimit

from fastlane_core.models import RunRequest
from fastlane_docker.engines.client import Client
from fastlane_docker.options import docker_options as options
from fastlane_docker.options.docker_options import DockerOptions
from fastlane_docker.options.policies import Resolved
from fastlane_docker.runs import containers
from fastlane_docker.settings import DockerSettings

#: Capabilities of Docker's default set that jobs rarely need: NET_RAW forges packets on the network that jobs share,
#: MKNOD makes device files, AUDIT_WRITE writes to the host's audit log. Package managers, `su` and `chown` need the
#: others; `ping` works without. Podman leaves out the same three.
DROPPED_CAPABILITIES = ("AUDIT_WRITE", "MKNOD", "NET_RAW")

#: The `local` log driver counts 25 bytes of its own for each line. Within what Fastlane keeps it must not go on to a
#: new file, where followers lose output; so the file holds that many empty lines. It grows as output comes.
_LOG_OVERHEAD = 26
_LOG_SPARE_MIB = 16


def create(client: Client, request: RunRequest, resolved: Resolved, settings: DockerSettings) -> str:
    """Create the container of a run and return its id. Raises what the SDK raises."""
    wanted = resolved.options
    container = client.create_container(
        image=request.spec.image,
        command=list(request.argv) or None,
        entrypoint=[""] if wanted.entrypoint == [] else wanted.entrypoint,
        working_dir=wanted.workdir,
        user=wanted.user,
        environment=dict(request.spec.env),
        name=containers.name_of(request.execution_id),
        labels={
            **(wanted.labels or {}),
            **resolved.farm_labels,
            containers.LABEL_DEPLOYMENT: request.deployment_id,
            containers.LABEL_EXECUTION: request.execution_id,
            containers.LABEL_JOB: request.job_id,
            containers.LABEL_TASK: request.task_id,
            containers.LABEL_FENCE: str(request.fence),
        },
        stop_signal=wanted.stopSignal,
        platform=wanted.platform,
        host_config=client.create_host_config(
            **_always(request, settings), **_security(wanted), **_resources(wanted), **_surroundings(wanted)
        ),
        detach=True,
        # Proxies in the configuration of the worker's user are no business of the job's.
        use_config_proxy=False,
    )
    return str(container["Id"])


def join_networks(client: Client, container: str, wanted: DockerOptions) -> None:
    """Make a created container part of all its networks: creation takes only the first. Idempotent."""
    if further := (wanted.networks or [])[1:]:
        joined = client.inspect_container(container)["NetworkSettings"]["Networks"]
        for network in further:
            if network not in joined:
                client.connect_container_to_network(container, network)


def _always(request: RunRequest, settings: DockerSettings) -> dict[str, Any]:
    log_mib = request.max_log_bytes * _LOG_OVERHEAD // 1024**2 + _LOG_SPARE_MIB
    return {
        # The default driver replaces bytes that are not UTF-8; this one keeps them. Rotated files would be dropped.
        "log_config": LogConfig(type="local", config={"max-size": f"{log_mib}m", "max-file": "1", "compress": "false"}),
        "pids_limit": settings.docker_pids_limit,
    }


def _security(wanted: DockerOptions) -> dict[str, Any]:
    added = wanted.capAdd or []
    dropped = [each for each in DROPPED_CAPABILITIES if each not in added and "ALL" not in added]
    return {
        # Of two that contradict each other the engine takes the later one.
        "security_opt": ["no-new-privileges", *(wanted.securityOpt or [])],
        "cap_drop": [*dropped, *(each for each in wanted.capDrop or [] if each not in dropped)],
        "cap_add": added,
        "privileged": bool(wanted.privileged),
        "read_only": bool(wanted.readOnly),
    }


def _resources(wanted: DockerOptions) -> dict[str, Any]:
    gpus = wanted.gpus
    return {
        "mem_limit": wanted.memory,
        # Otherwise the engine gives as much swap on top.
        "memswap_limit": wanted.memory,
        "nano_cpus": round(wanted.cpus * 1e9) if wanted.cpus is not None else None,
        "shm_size": wanted.shmSize,
        "ulimits": [
            Ulimit(name=name, soft=limit.soft, hard=limit.hard) for name, limit in (wanted.ulimits or {}).items()
        ],
        "device_requests": [] if gpus is None else [_gpus(gpus)],
        "devices": wanted.devices,
    }


def _gpus(gpus: options.Gpus) -> DeviceRequest:
    capabilities = [*gpus.capabilities, *([] if "gpu" in gpus.capabilities else ["gpu"])]
    return DeviceRequest(count=gpus.count or 0, device_ids=gpus.deviceIds, capabilities=[capabilities])


def _surroundings(wanted: DockerOptions) -> Mapping[str, Any]:
    return {
        "init": wanted.init,
        "mounts": [_mount(each) for each in wanted.mounts or []],
        "network_mode": wanted.networks[0] if wanted.networks else None,
        "extra_hosts": wanted.extraHosts,
    }


def _mount(mount: options.Mount) -> Mount:
    return Mount(
        target=mount.target, source=mount.source, type=mount.type, read_only=mount.readOnly, tmpfs_size=mount.size
    )
