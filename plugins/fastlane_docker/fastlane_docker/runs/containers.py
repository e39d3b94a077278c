"""What a run is as a container: its name and labels, and what its state says of how it ended."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from fastlane_core.models import Reason, RunOutcome
from fastlane_docker.engines.client import Client
from fastlane_docker.engines.engine import cut

NAME_PREFIX = "fastlane-job-"
DEFUNCT_PREFIX = "defunct-fastlane-job-"
LABEL_DEPLOYMENT = "fastlane.deployment"
LABEL_EXECUTION = "fastlane.execution"
LABEL_JOB = "fastlane.job"
LABEL_TASK = "fastlane.task"
LABEL_FENCE = "fastlane.fence"

#: How Docker tells that the command is not there, or cannot be executed.
_COMMAND_EXIT_CODES = (127, 126)
#: Engines use those codes as well for mounts and folders that runc cannot make; of the command runc says `exec: "x": `.
_OF_THE_COMMAND = 'exec: "'


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


def failed_by_command(state: Mapping[str, Any]) -> bool:
    """Whether it `could_not_start` because of its command, not of what else was asked for."""
    return state["ExitCode"] in _COMMAND_EXIT_CODES and _OF_THE_COMMAND in state["Error"]


def outcome(state: Mapping[str, Any]) -> RunOutcome:
    """How a container in a state that `has_ended` ended."""
    code, error = int(state["ExitCode"]), cut(str(state["Error"]))
    reason, message = Reason.EXIT_CODE, f"The command ended with exit code {code}."
    if could_not_start(state) and not failed_by_command(state):
        return RunOutcome(exit_code=None, reason=Reason.START_REJECTED, message=f"The engine did not start it: {error}")
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
