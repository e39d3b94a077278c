"""What a job's container is made with: the job's own options over its farm's defaults, if the farm permits them."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from fastlane_core.errors import InvalidInput
from fastlane_core.models import RunSpec
from fastlane_docker.farm.farms import Farm
from fastlane_docker.images.pull_policy import PullPolicy
from fastlane_docker.options.docker_options import DockerOptions
from fastlane_docker.options.permissions import Limits, Permissions, check_limits, check_permitted

#: The engine's own, where nobody says another.
_SHM_SIZE = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Resolved:
    """The options that count for a run."""

    options: DockerOptions
    #: Labels that the farm puts on all its containers.
    farm_labels: dict[str, str]
    #: Why it must not be started, as a sentence; "" if it may.
    refusal: str = ""
    pull_policy: PullPolicy = "missing"


def check_options(farm: Farm | None, spec: RunSpec) -> None:
    """Refuse what the farm does not permit. Raises InvalidInput, which names the option."""
    options = spec.options.get("docker")
    if not options:
        return
    own = DockerOptions.model_validate(options)
    name = f"the farm {farm.name}" if farm else "a farm that is not in the settings"
    check_permitted(name, farm.settings.allow if farm else Permissions(), own)
    check_limits(name, farm.settings.limits if farm else Limits(), own)


def resolve(farm: Farm | None, spec: RunSpec) -> Resolved:
    """The options of a run in `farm`; None for one that the settings do not have any more, which allows nothing.

    The farm is asked once more: its settings may be stricter than those under which the job was accepted.
    """
    farm_labels = dict(farm.settings.labels) if farm else {}
    try:
        own = DockerOptions.model_validate(spec.options.get("docker", {}))
    except ValidationError as error:
        words = error.errors()[0]
        where = ".".join(str(part) for part in ("docker", *words["loc"]))
        return Resolved(DockerOptions(), farm_labels, f"its options cannot be used: {where}: {words['msg']}")
    refusal = ""
    try:
        check_options(farm, spec)
    except InvalidInput as error:
        refusal = f"its options are not permitted (any more): {error}"
    if farm is None:
        return Resolved(own, farm_labels, refusal, own.pullPolicy or "missing")
    options = _limited(own.on_top_of(farm.settings.defaults), farm.settings.limits)
    return Resolved(options, farm_labels, refusal, options.pullPolicy or farm.settings.pullPolicy)


def _limited(options: DockerOptions, limits: Limits) -> DockerOptions:
    """With the limit where nothing else is said and the engine would give more."""
    given: dict[str, float] = {}
    for name in ("memory", "cpus"):
        if getattr(options, name) is None and getattr(limits, name) is not None:
            given[name] = getattr(limits, name)
    if options.shmSize is None and limits.shmSize is not None and limits.shmSize < _SHM_SIZE:
        given["shmSize"] = limits.shmSize
    return options.model_copy(update=given)
