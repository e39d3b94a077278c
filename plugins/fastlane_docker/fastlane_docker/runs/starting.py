"""Starting a run so that it exists once, however often and by however many workers it is asked for.

The name of the container, which derives from the execution's id, decides: creating it succeeds once. It is started by
that name, which it loses when its results are stored. From then on another one could be created, by a worker that was
held up: who comes late, or not for the first time, asks core before creating whether the execution is its own still,
and everybody asks between creating and starting. A container gives its name up only once the execution's record tells
that it is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from docker.errors import APIError, NotFound

from fastlane_core.errors import EngineUnavailable, ImageNotFound, StartLost, StartRejected
from fastlane_core.models import RunRequest
from fastlane_docker.engines.client import Client
from fastlane_docker.engines.engine import explanation, is_engines_fault
from fastlane_docker.options.policies import Resolved
from fastlane_docker.runs import containers
from fastlane_docker.runs.creating import create, join_networks
from fastlane_docker.runs.endings import began_at
from fastlane_docker.settings import DockerSettings

#: What an engine says of a container that it was starting when it was killed, for ever: it does not know of the start,
#: but what it runs containers with does.
_INTERRUPTED = (": already exists", ": file exists")
#: Tries, where others remove or rename the container meanwhile.
_TRIES = 3
#: An engine gives a name away some time before the container can be seen: looks for it, and seconds between them.
_LOOKS = 100
_LOOK_SECONDS = 0.05
#: Seconds after which whoever wants a run to be started may have been held up, and others may have come in between.
_HELD_UP_SECONDS = 1.0


def start_run(
    client: Client,
    request: RunRequest,
    resolved: Resolved,
    settings: DockerSettings,
    confirm: Callable[[], None],
    asked_at: float,
) -> tuple[str, float | None]:
    """Create and start the container of a run, or find what an earlier call made of it; its id. Blocks.

    Beside it, when it began, where it had begun before. `asked_at` is when it was asked for, by `time.monotonic`.

    A command that cannot be executed is no error: that is how the run ended, and the container's state tells.
    `confirm` raises when nothing must be started any more. What was created then stays, for the worker that has taken
    the execution over or, after its end, for reconciliation.
    Raises ImageNotFound, StartRejected, StartLost, EngineUnavailable, and what the SDK raises for an engine in trouble.
    """
    for _ in range(_TRIES):
        if request.may_exist or time.monotonic() - asked_at > _HELD_UP_SECONDS:
            container, is_new = _found_or_created(client, request, resolved, settings, confirm)
        else:
            container, is_new = _created_or_found(client, request, resolved, settings)
        if is_new:
            # One that is asked for the first time was not processed, unless another worker did it all meanwhile: then
            # `confirm` raises.
            if request.may_exist and (processed := _processed(client, request)) is not None:
                client.remove_container(container, force=True, v=True)
                return processed, None
        else:
            found = client.inspect_container(container)
            if not _needs_start(found["State"]):
                return container, containers.parse_time(str(found["State"]["StartedAt"]))
            _check_engine_lives_on(client, request, found)
        # By its name, not by its id: once it is processed, this worker comes too late to start it.
        name = containers.name_of(request.execution_id)
        try:
            join_networks(client, name, resolved.options)
            confirm()
            client.start(name)
        except APIError as error:
            try:
                _judge(client, request, name, error)
            except NotFound:
                continue
        return container, None
    raise EngineUnavailable(f"the container of execution {request.execution_id} keeps vanishing from {request.place}")


def _found_or_created(
    client: Client, request: RunRequest, resolved: Resolved, settings: DockerSettings, confirm: Callable[[], None]
) -> tuple[str, bool]:
    """As `_created_or_found`, but nothing is created that others may have made, brought to its end and renamed."""
    if (found := _found(client, request)) is not None:
        return found, False
    confirm()
    return _created_or_found(client, request, resolved, settings)


def _created_or_found(
    client: Client, request: RunRequest, resolved: Resolved, settings: DockerSettings
) -> tuple[str, bool]:
    """The container's id, and whether this call created it."""
    name = containers.name_of(request.execution_id)
    for _ in range(_LOOKS):
        try:
            if not resolved.refusal:
                return create(client, request, resolved, settings), True
        except NotFound as error:
            raise ImageNotFound(f"there is no image {request.spec.image}: {explanation(error)}") from error
        except APIError as error:
            if is_engines_fault(error):
                raise
            if error.status_code != 409:
                raise _rejected(request, error) from error
        if (found := _found(client, request)) is not None:
            return found, False
        if resolved.refusal:
            raise StartRejected(resolved.refusal)
        # Another worker is creating it still, or it was removed since the conflict.
        time.sleep(_LOOK_SECONDS)
    raise EngineUnavailable(f"the name {name} is taken on {request.place}, but by no container")


def _found(client: Client, request: RunRequest) -> str | None:
    """The id of this execution's container, whether its results are stored already or not."""
    try:
        return _own(client.inspect_container(containers.name_of(request.execution_id)), request)
    except NotFound:
        return _processed(client, request)


def _processed(client: Client, request: RunRequest) -> str | None:
    """The id of this execution's container if its results are stored already."""
    try:
        return _own(client.inspect_container(containers.defunct_name_of(request.execution_id)), request)
    except NotFound:
        return None


def _own(found: dict[str, Any], request: RunRequest) -> str:
    """The container's id, if it is this run's."""
    labels = found["Config"]["Labels"] or {}
    mine = (request.deployment_id, request.execution_id)
    if (labels.get(containers.LABEL_DEPLOYMENT), labels.get(containers.LABEL_EXECUTION)) != mine:
        name = str(found["Name"]).lstrip("/")
        raise StartRejected(f"{request.place} has a container {name} that is not this Fastlane's: remove or rename it")
    return str(found["Id"])


def _needs_start(state: dict[str, Any]) -> bool:
    """Whether it was never started, or not for a reason that may have passed."""
    return state["Status"] == "created" and not (
        containers.could_not_start(state) and containers.failed_by_command(state)
    )


def _check_engine_lives_on(client: Client, request: RunRequest, found: dict[str, Any]) -> None:
    """Raise StartLost if the container is older than the engine's present life.

    An engine that is killed while it starts one does not remember that it did: the command may have run, even to its
    end, and its output be there, yet the container is as it was created. It stays: whoever asks again, before the end
    is on record, must find it. Reconciliation removes it afterwards.
    """
    created_at, began = containers.parse_time(str(found["Created"])), began_at(client)
    if created_at is None or began is None or created_at > began:
        return
    raise StartLost(f"the Docker engine {request.place} may have started it before it went down")


def _judge(client: Client, request: RunRequest, container: str, error: APIError) -> None:
    """Return if the run was started, or ended by its own command, in spite of the error; else raise.

    Raises NotFound if there is no such container (any more). What was never started is removed; what may have been
    stays, as in `_check_engine_lives_on`.
    """
    state = containers.state_of(client, container)
    if state["Status"] != "created":
        return
    if containers.could_not_start(state) and containers.failed_by_command(state):
        return
    words = explanation(error)
    was_interrupted = any(each in words for each in _INTERRUPTED)
    if is_engines_fault(error) and not was_interrupted:
        raise error
    if was_interrupted:
        raise StartLost(f"the Docker engine {request.place} died while it started it: {words}") from error
    client.remove_container(container, force=True, v=True)
    raise _rejected(request, error) from error


def _rejected(request: RunRequest, error: APIError) -> StartRejected:
    return StartRejected(f"the Docker engine {request.place} refused to start it: {explanation(error)}")
