"""What a run is as a container: its name, labels and options, and what its state says of how it ended."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from docker.types import LogConfig
from pydantic import ValidationError

from fastlane_core.errors import StartRejected
from fastlane_core.models import Reason, RunOutcome, RunRequest
from fastlane_docker.client import Client
from fastlane_docker.options import DockerOptions, memory_bytes
from fastlane_docker.settings import DockerSettings

NAME_PREFIX = "fastlane-job-"
DEFUNCT_PREFIX = "defunct-fastlane-job-"
LABEL_DEPLOYMENT = "fastlane.deployment"
LABEL_EXECUTION = "fastlane.execution"
LABEL_JOB = "fastlane.job"
LABEL_TASK = "fastlane.task"
LABEL_FENCE = "fastlane.fence"

#: How Docker tells that the command is not there, or cannot be executed.
COMMAND_EXIT_CODES = (127, 126)

#: The `local` log driver drops the oldest output beyond its limit, and counts some 30 bytes of its own for each line:
#: where a line is one byte, it must have room for this many times what Fastlane keeps.
_LOG_OVERHEAD = 32
_LOG_SPARE_MIB = 16


def create(client: Client, request: RunRequest, settings: DockerSettings) -> str:
    """Create the container of a run and return its id. Raises StartRejected, and what the SDK raises."""
    try:
        options = DockerOptions.model_validate(request.spec.options.get("docker", {}))
    except ValidationError as error:
        raise StartRejected(f"the options under `docker` cannot be used: {error.errors()[0]['msg']}") from error
    log_mib = request.max_log_bytes * _LOG_OVERHEAD // 1024**2 + _LOG_SPARE_MIB
    host_config = client.create_host_config(
        # The default driver replaces bytes that are not UTF-8; this one keeps them. Rotated files would be dropped.
        log_config=LogConfig(type="local", config={"max-size": f"{log_mib}m", "max-file": "1", "compress": "false"}),
        security_opt=["no-new-privileges"],
        pids_limit=settings.docker_pids_limit,
        mem_limit=memory_bytes(options.memory) if options.memory is not None else None,
        nano_cpus=round(options.cpus * 1e9) if options.cpus is not None else None,
    )
    container = client.create_container(
        image=request.spec.image,
        command=list(request.argv) or None,
        entrypoint=options.entrypoint,
        working_dir=options.workdir,
        user=options.user,
        environment=dict(request.spec.env),
        name=NAME_PREFIX + request.execution_id,
        labels={
            LABEL_DEPLOYMENT: request.deployment_id,
            LABEL_EXECUTION: request.execution_id,
            LABEL_JOB: request.job_id,
            LABEL_TASK: request.task_id,
            LABEL_FENCE: str(request.fence),
        },
        host_config=host_config,
        detach=True,
        # Proxies in the configuration of the worker's user are no business of the job's.
        use_config_proxy=False,
    )
    return str(container["Id"])


def name_of(execution_id: str) -> str:
    """The name of an execution's container until it is processed."""
    return f"{NAME_PREFIX}{execution_id}"


def defunct_name_of(execution_id: str) -> str:
    """Its name once its results are stored."""
    return f"{DEFUNCT_PREFIX}{execution_id}"


def state_of(client: Client, container: str) -> dict[str, Any]:
    """The container's state, as the engine has it. Raises what the SDK raises."""
    state: dict[str, Any] = client.inspect_container(container)["State"]
    return state


def has_ended(state: Mapping[str, Any]) -> bool:
    """Whether a container in this state will not run (any more)."""
    if state["Status"] == "created":
        return could_not_start(state)
    return not state["Running"] and state["Status"] in ("exited", "dead", "removing")


def could_not_start(state: Mapping[str, Any]) -> bool:
    """Whether the engine tried to start it and failed: it stays `created`, with an exit code and an error."""
    return state["Status"] == "created" and bool(state["ExitCode"]) and bool(state["Error"])


def outcome(state: Mapping[str, Any]) -> RunOutcome:
    """How a container in a state that `has_ended` ended."""
    code, error = int(state["ExitCode"]), str(state["Error"]).strip()
    reason, message = Reason.EXIT_CODE, f"The command ended with exit code {code}."
    if state["OOMKilled"] and code != 0:
        reason, message = Reason.OUT_OF_MEMORY, "The engine killed it: it had used all the memory that it may have."
    elif error and code == 127:
        reason, message = Reason.COMMAND_NOT_FOUND, f"The command is not in the image: {error}"
    elif error and code == 126:
        reason, message = Reason.COMMAND_NOT_EXECUTABLE, f"The command cannot be executed: {error}"
    elif code == 0:
        reason, message = Reason.SUCCEEDED, ""
    elif 128 < code < 128 + 65:
        reason, message = Reason.SIGNAL, f"It was ended by signal {_signal_name(code - 128)} (exit code {code})."
    if error and error not in message:
        message = f"{message} The engine says: {error}".strip()
    started, finished = parse_time(str(state["StartedAt"])), parse_time(str(state["FinishedAt"]))
    if started is not None and finished is not None:
        # The engine notes the start once it is done, and a short run may have ended by then.
        started = min(started, finished)
    return RunOutcome(exit_code=code, reason=reason, message=message, started_at=started, finished_at=finished)


def parse_time(text: str) -> float | None:
    """RFC 3339 as Unix time; None for the engine's year one."""
    return None if text.startswith("0001") or not text else datetime.fromisoformat(text).timestamp()


def _signal_name(number: int) -> str:
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return str(number)
