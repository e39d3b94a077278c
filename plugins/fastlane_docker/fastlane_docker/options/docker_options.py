"""What a job may ask of its container, under `"docker"` in the payload."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from fastlane_docker.images.pull_policy import PullPolicy
from fastlane_docker.options.values import (
    Capability,
    Grace,
    HostName,
    IpAddress,
    LabelName,
    LabelText,
    MemorySize,
    NetworkName,
    Path,
    PathBelowRoot,
    Signal,
    Size,
    listed,
    path_of,
)

#: Docker's names of limits, without those that reach for more of the processor than others get.
_ULIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock"),
    *("msgqueue", "nofile", "nproc", "rss", "sigpending", "stack"),
)
#: What engines call architectures that others name so.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
#: Networks that have no others beside them.
_ALONE = frozenset({"host", "none"})
#: Options whose lists add up when they are put on top of others.
_ADD_UP = frozenset({"capDrop", "securityOpt"})


class Part(BaseModel):
    """A part of the options."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Mount(Part):
    """Something that the container sees at a path of its own."""

    type: Literal["bind", "volume", "tmpfs"] = Field(
        description="bind: a path of the host; volume: a named volume, or a new one without a name; tmpfs: memory."
    )
    source: str | None = Field(
        default=None,
        max_length=4096,
        validate_default=True,
        description="The host's path, or the volume's name; tmpfs has none.",
    )
    target: PathBelowRoot = Field(description="The path within the container.")
    readOnly: bool = Field(default=False, description="Whether the container may only read it.")  # noqa: N815
    size: Size | None = Field(default=None, description="Most that a tmpfs holds: bytes, or with k, m or g.")

    @field_validator("source")
    @classmethod
    def _fits_the_type(cls, value: str | None, info: ValidationInfo) -> str | None:
        match info.data.get("type"):
            case "bind":
                return path_of(value or "")
            case "tmpfs" if value is not None:
                raise ValueError("a tmpfs has no source")
            case "volume" if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}", value):
                raise ValueError(f"{value[:100]!r}: expected a volume's name: letters, digits, _ . and -")
        return value

    @field_validator("size")
    @classmethod
    def _is_of_a_tmpfs(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("type") in ("bind", "volume"):
            raise ValueError("only a tmpfs has a size")
        return value


class Ulimit(Part):
    """A limit of the operating system on each process; -1 is none."""

    soft: int = Field(ge=-1, lt=2**63)
    hard: int = Field(ge=-1, lt=2**63)


class Gpus(Part):
    """Which GPUs; `count` of them, -1 for all, or those named."""

    count: int | None = Field(default=None, ge=-1, le=1024)
    deviceIds: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(  # noqa: N815
        default=[], max_length=1024, validate_default=True
    )
    capabilities: list[str] = Field(default=["gpu"], max_length=20, description="What the driver is to offer.")

    @field_validator("deviceIds")
    @classmethod
    def _either_count_or_names(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if bool(value) == bool(info.data.get("count")):
            raise ValueError("expected either a count or deviceIds")
        return value


def _arguments(value: object) -> object:
    return shlex.split(value) if isinstance(value, str) else value


def _ulimit(value: object) -> object:
    """One number is both limits."""
    if isinstance(value, int) and not isinstance(value, bool):
        return {"soft": value, "hard": value}
    return value


def _gpus(value: object) -> object:
    if value == "all":
        return {"count": -1}
    if isinstance(value, int) and not isinstance(value, bool):
        return {"count": value}
    return value


class DockerOptions(Part):
    """Options of one job's container. What is left out, or null, takes the farm's defaults, then the engine's."""

    entrypoint: (
        Annotated[
            list[str], BeforeValidator(_arguments, json_schema_input_type=list[str] | str), Field(max_length=1000)
        ]
        | None
    ) = Field(default=None, description="Replaces the image's entry point; an empty list takes it away.")
    workdir: Path | None = Field(default=None, description="Folder that the command starts in.")
    user: str | None = Field(
        default=None,
        max_length=256,
        pattern=r"^[^\s:]+(:[^\s:]+)?$",
        description="User, or user:group, by name or number, that it runs as.",
    )
    memory: MemorySize | None = Field(
        default=None,
        description="Most memory that it may use, swap included: bytes, or with k, m or g.",
    )
    cpus: float | None = Field(default=None, ge=0.01, le=4096, description="Processors that it may use, such as 0.5.")
    gpus: Annotated[Gpus, BeforeValidator(_gpus, json_schema_input_type=Gpus | int | Literal["all"])] | None = Field(
        default=None, description='GPUs: "all", a number of them, or an object. The farm has to allow it.'
    )
    shmSize: Size | None = Field(  # noqa: N815
        default=None, description="Size of /dev/shm: bytes, or with k, m or g."
    )
    ulimits: dict[str, Annotated[Ulimit, BeforeValidator(_ulimit, json_schema_input_type=Ulimit | int)]] | None = Field(
        default=None, description=f"Limits on each process: a number, or soft and hard. Names: {', '.join(_ULIMITS)}."
    )
    mounts: list[Mount] | None = Field(
        default=None, max_length=100, description="Mounts. The farm has to allow paths of the host and named volumes."
    )
    networks: (
        Annotated[
            list[NetworkName], BeforeValidator(listed, json_schema_input_type=list[str] | str), Field(max_length=20)
        ]
        | None
    ) = Field(
        default=None,
        description="Network, or several, to be part of. The farm has to allow others than bridge and none.",
    )
    extraHosts: dict[HostName, IpAddress] | None = Field(  # noqa: N815
        default=None, description="IP addresses of host names, beside those that the container finds by itself."
    )
    labels: dict[LabelName, LabelText] | None = Field(default=None, description="Labels put on the container.")
    readOnly: bool | None = Field(  # noqa: N815
        default=None, description="Whether its root file system may only be read."
    )
    init: bool | None = Field(
        default=None,
        description="Whether an init process runs the command: it passes on signals, and reaps orphaned processes.",
    )
    capDrop: list[Capability] | None = Field(  # noqa: N815
        default=None, max_length=100, description="Capabilities to take away beyond those that jobs do not have anyway."
    )
    capAdd: list[Capability] | None = Field(  # noqa: N815
        default=None, max_length=100, description="Capabilities to add. The farm has to allow them."
    )
    securityOpt: list[Annotated[str, Field(min_length=1, max_length=16 * 1024)]] | None = Field(  # noqa: N815
        default=None,
        max_length=20,
        description="Docker's security options. The farm has to allow others than no-new-privileges, which all have.",
    )
    devices: list[str] | None = Field(
        default=None,
        max_length=100,
        description="Devices of the host: /dev/x, /dev/x:/dev/y or /dev/x:/dev/y:rwm. The farm has to allow them.",
    )
    privileged: bool | None = Field(
        default=None, description="Whether it may do whatever the host's root may. The farm has to allow it."
    )
    platform: str | None = Field(
        default=None,
        max_length=100,
        pattern=r"^[a-z0-9_.-]+(/[a-z0-9_.-]+){0,2}$",
        description="Platform of the image, such as linux/arm64, where it has several.",
    )
    pullPolicy: PullPolicy | None = Field(  # noqa: N815
        default=None, description="When to pull the image, in place of the farm's pullPolicy: missing, always or never."
    )
    stopSignal: Signal | None = Field(  # noqa: N815
        default=None, description="Signal that asks it to end, such as SIGINT; the image's own where there is none."
    )
    stopGrace: Grace | None = Field(  # noqa: N815
        default=None,
        description="Time that it gets to end when asked to, before it is killed: seconds, or text such as 1m30s.",
    )

    @field_validator("ulimits")
    @classmethod
    def _are_known(cls, value: dict[str, Ulimit] | None) -> dict[str, Ulimit] | None:
        for name, limit in (value or {}).items():
            if name not in _ULIMITS:
                raise ValueError(f"there is no {name[:100]!r}; known are {', '.join(_ULIMITS)}")
            if limit.hard != -1 and not 0 <= limit.soft <= limit.hard:
                raise ValueError(f"{name}: expected soft to be at most hard")
        return value

    @field_validator("mounts")
    @classmethod
    def _are_at_different_paths(cls, value: list[Mount] | None) -> list[Mount] | None:
        targets = [mount.target for mount in value or ()]
        if twice := sorted({target for target in targets if targets.count(target) > 1}):
            raise ValueError(f"two are at {twice[0]}")
        return value

    @field_validator("networks")
    @classmethod
    def _go_together(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and len(value) > 1 and (alone := sorted(_ALONE & set(value))):
            raise ValueError(f"{alone[0]} cannot be together with another network")
        if value is not None and len(set(value)) < len(value):
            raise ValueError("expected different networks")
        return value

    @field_validator("devices")
    @classmethod
    def _are_devices(cls, value: list[str] | None) -> list[str] | None:
        for device in value or ():
            host, *rest = device.split(":")
            if path_of(host) != host or len(rest) > 2 or (rest and not rest[0].startswith("/")):
                raise ValueError(f"{device[:200]!r}: expected /dev/x, /dev/x:/dev/y or /dev/x:/dev/y:rwm")
            if len(rest) == 2 and not re.fullmatch("[rwm]{1,3}", rest[1]):
                raise ValueError(f"{device[:200]!r}: expected r, w and m behind the second colon")
        return value

    @field_validator("platform")
    @classmethod
    def _is_named_as_images_name_it(cls, value: str | None) -> str | None:
        return "/".join(_ARCHITECTURES.get(part, part) for part in value.split("/")) if value is not None else None

    def given(self) -> Mapping[str, Any]:
        """The options that say something, by name."""
        return {name: value for name in self.model_fields_set if (value := getattr(self, name)) is not None}

    def on_top_of(self, below: DockerOptions) -> DockerOptions:
        """These, and what they do not say from those `below`.

        Tables are put together by key and mounts by target; `capDrop` and `securityOpt` add up; all else replaces.
        """
        merged = dict(below.given())
        for name, value in self.given().items():
            under = merged.get(name)
            if under is None:
                merged[name] = value
            elif isinstance(value, dict):
                merged[name] = {**under, **value}
            elif name == "mounts":
                merged[name] = list({mount.target: mount for mount in (*under, *value)}.values())
            elif name in _ADD_UP:
                merged[name] = [*under, *(each for each in value if each not in under)]
            else:
                merged[name] = value
        return DockerOptions.model_construct(_fields_set=set(merged), **merged)
