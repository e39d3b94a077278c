"""The containers of one deployment on an engine. The engine picks them, however many others it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from docker.errors import APIError, NotFound

from fastlane_docker.engines.client import Client
from fastlane_docker.engines.engine import explanation
from fastlane_docker.runs.containers import LABEL_DEPLOYMENT, LABEL_EXECUTION, LABEL_FENCE


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A container as the engine's list has it."""

    id: str
    name: str
    execution_id: str
    fence: int
    #: As the engine's own tools show it: its name, or its id once the name went to another image.
    image: str | None
    running: bool
    created_at: float


def deployment_label(deployment_id: str) -> str:
    """The label that all containers of a deployment carry, as filters want it."""
    return f"{LABEL_DEPLOYMENT}={deployment_id}"


def list_containers(client: Client, deployment_id: str, prefix: str) -> Sequence[Listed]:
    """The deployment's containers whose names begin with `prefix`. Blocks; raises what the SDK raises."""
    # Names begin with a slash on some versions of the engine.
    filters = {"label": [deployment_label(deployment_id), LABEL_EXECUTION], "name": [f"^/?{prefix}"]}
    listed = [_listed(each) for each in client.containers(all=True, filters=filters)]
    return [each for each in listed if each.name.startswith(prefix)]


def list_running(client: Client, deployment_id: str) -> frozenset[str]:
    """The ids of the deployment's containers that run or are paused. Blocks; raises what the SDK raises."""
    found = client.containers(filters={"label": [deployment_label(deployment_id)]})
    return frozenset(str(each["Id"]) for each in found)


class CannotRemove(Exception):
    """The engine answers, but fails to remove the container."""


def remove(client: Client, container: str) -> bool:
    """Remove a container with its anonymous volumes; False if it is gone, or somebody else is removing it.

    Blocks; raises CannotRemove, and what the SDK raises for an engine that does not answer.
    """
    try:
        client.remove_container(container, v=True, force=True)
    except NotFound:
        return False
    except APIError as error:
        if error.status_code != 409:
            # Such as a file system that is busy: trouble with this container, not with the engine.
            raise CannotRemove(explanation(error)) from error
        return False
    return True


def _listed(found: Mapping[str, Any]) -> Listed:
    labels = found["Labels"]
    return Listed(
        id=str(found["Id"]),
        name=str(next(iter(found["Names"] or ()), "")).lstrip("/"),
        execution_id=str(labels[LABEL_EXECUTION]),
        fence=int(labels.get(LABEL_FENCE, 0)),
        image=found.get("Image") or None,
        running=found["State"] in ("running", "paused", "restarting"),
        created_at=float(found["Created"]),
    )
