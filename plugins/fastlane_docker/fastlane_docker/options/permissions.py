"""What a farm lets jobs ask for: nothing that reaches the host unless it is allowed, and no more than its limits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fastlane_core.errors import InvalidInput
from fastlane_docker.options.docker_options import DockerOptions, Mount
from fastlane_docker.options.values import Grace, MemorySize, Size, path_of

#: Networks that every job may use: they reach no more than the farm gives all its containers.
_FREE_NETWORKS = frozenset({"none", "bridge", "default"})
#: Options by which a job only gives something up.
_HARDENING = frozenset({"no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"})
#: A name that an engine could take for the beginning of a network's id.
_LIKE_AN_ID = re.compile("[0-9a-f]+")
_READ_ONLY = ":ro"
_FIELD = "docker"


def _bind_pattern(text: str) -> str:
    if path_of(text) != text:
        raise ValueError(f"{text!r}: expected an absolute path without double or final slashes")
    return text


class Permissions(BaseModel):
    """What jobs of a farm may use of the host.

    Patterns match the whole text: `*` stands for anything within one part of a path, `**` for anything, `?` for one
    character.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Paths of the host that may be mounted; read-only where `:ro` follows.
    binds: list[Annotated[str, AfterValidator(_bind_pattern)]] = Field(default=[], max_length=1000)
    #: Names of volumes.
    volumes: list[str] = Field(default=[], max_length=1000)
    #: Names of networks; `host` only where it stands by itself.
    networks: list[str] = Field(default=[], max_length=1000)
    #: Paths of devices.
    devices: list[Annotated[str, AfterValidator(_bind_pattern)]] = Field(default=[], max_length=1000)
    #: Capabilities that may be added.
    capAdd: list[str] = Field(default=[], max_length=100)  # noqa: N815 - named like the option
    #: Docker's security options, such as `seccomp=unconfined`.
    securityOpt: list[str] = Field(default=[], max_length=100)  # noqa: N815
    gpus: bool = False
    privileged: bool = False


class Limits(BaseModel):
    """The most that a job may ask for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Bytes; a job that asks for none, where the farm has no default, gets this.
    memory: MemorySize | None = None
    #: Likewise.
    cpus: float | None = Field(default=None, ge=0.01)
    #: Bytes.
    shmSize: Size | None = None  # noqa: N815
    #: Seconds.
    stopGrace: Grace | None = None  # noqa: N815
    #: GPUs by number, or by name.
    gpus: int | None = Field(default=None, ge=0)


def check_permitted(farm: str, allow: Permissions, options: DockerOptions) -> None:
    """Refuse what reaches the host and is not allowed. Raises InvalidInput, which names the option."""
    for field, what, permitted, patterns in _claims(allow, options):
        if not permitted:
            shown = f"; it allows {', '.join(patterns)}" if patterns else ""
            raise InvalidInput(f"{_FIELD}.{field}", f"{farm} does not allow {what}{shown}")


def check_limits(farm: str, limits: Limits, options: DockerOptions) -> None:
    """Refuse what is beyond the limits. Raises InvalidInput, which names the option and the limit."""
    for name, unit in (("memory", " bytes"), ("cpus", ""), ("shmSize", " bytes"), ("stopGrace", " s")):
        asked, most = getattr(options, name), getattr(limits, name)
        if asked is not None and most is not None and asked > most:
            raise InvalidInput(f"{_FIELD}.{name}", f"{farm} allows at most {most:.15g}{unit}, got {asked:.15g}{unit}")
    if options.gpus is not None and limits.gpus is not None:
        count = len(options.gpus.deviceIds) or options.gpus.count
        if count == -1 or (count or 0) > limits.gpus:
            asked_for = "all" if count == -1 else count
            raise InvalidInput(f"{_FIELD}.gpus", f"{farm} allows at most {limits.gpus}, got {asked_for}")


def _claims(allow: Permissions, options: DockerOptions) -> Iterator[tuple[str, str, bool, Sequence[str]]]:
    """What the options take of the host: the field, it in words, whether that is allowed, and what would be."""
    for number, mount in enumerate(options.mounts or ()):
        where = f"mounts.{number}.source"
        if mount.type == "bind":
            yield where, f"to mount {mount.source!r} of the host{_mode(mount)}", _may_bind(allow, mount), allow.binds
        elif mount.type == "volume" and mount.source is not None:
            permitted = _matches(allow.volumes, mount.source)
            yield where, f"the volume {mount.source!r}", permitted, allow.volumes
    for number, network in enumerate(options.networks or ()):
        yield f"networks.{number}", f"the network {network!r}", _may_join(allow, network), allow.networks
    for number, device in enumerate(options.devices or ()):
        path = device.partition(":")[0]
        yield f"devices.{number}", f"the device {path!r}", _matches(allow.devices, path), allow.devices
    for number, capability in enumerate(options.capAdd or ()):
        permitted = _matches([_normal_capability(each) for each in allow.capAdd], capability)
        yield f"capAdd.{number}", f"to add the capability {capability}", permitted, allow.capAdd
    for number, option in enumerate(options.securityOpt or ()):
        permitted = option in _HARDENING or _matches(allow.securityOpt, option)
        yield f"securityOpt.{number}", f"the security option {option[:100]!r}", permitted, allow.securityOpt
    if options.gpus is not None:
        yield "gpus", "GPUs", allow.gpus, ()
    if options.privileged:
        yield "privileged", "privileged containers", allow.privileged, ()


def _may_bind(allow: Permissions, mount: Mount) -> bool:
    patterns = [
        each.removesuffix(_READ_ONLY) for each in allow.binds if mount.readOnly or not each.endswith(_READ_ONLY)
    ]
    return _matches(patterns, mount.source or "")


def _may_join(allow: Permissions, network: str) -> bool:
    if network in _FREE_NETWORKS or network in allow.networks:
        return True
    return network != "host" and not _LIKE_AN_ID.fullmatch(network) and _matches(allow.networks, network)


def _mode(mount: Mount) -> str:
    return "" if mount.readOnly else " for writing"


def _normal_capability(pattern: str) -> str:
    return pattern.upper().removeprefix("CAP_")


def _matches(patterns: Sequence[str], text: str) -> bool:
    return any(_expression(pattern).fullmatch(text) for pattern in patterns)


def _expression(pattern: str) -> re.Pattern[str]:
    parts = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(parts.get(part) or re.escape(part) for part in re.split(r"(\*\*|\*|\?)", pattern)), re.DOTALL
    )
