"""The settings of the Docker farm."""

from __future__ import annotations

import json
import re
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from fastlane_core.errors import InvalidInput
from fastlane_docker.engines.addresses import Address, TlsFiles, parse_address
from fastlane_docker.images.pull_policy import PullPolicy
from fastlane_docker.images.references import registry_of
from fastlane_docker.options.docker_options import DockerOptions
from fastlane_docker.options.permissions import Limits, Permissions, check_limits
from fastlane_docker.options.values import LabelName, LabelText


class HostSettings(BaseModel):
    """One host of a farm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str
    #: Runs at a time on this host; the farm's own where there is none.
    maxRunning: int | None = Field(default=None, ge=1, le=100_000)  # noqa: N815 - as operators know it
    #: A host of weight 2 gets twice as many runs as one of weight 1.
    weight: float = Field(default=1.0, gt=0, le=1000)

    @field_validator("host")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parse_address(value)
        return value

    @model_serializer(mode="wrap")
    def _as_short_as_it_may_be(self, handler: SerializerFunctionWrapHandler) -> object:
        written = handler(self)
        return self.host if written == {"host": self.host} else written


def _host(value: object) -> object:
    """A host is its address, or an object with more to say."""
    return {"host": value} if isinstance(value, str) else value


class TlsSettings(BaseModel):
    """TLS with the hosts of a farm. Who they are is always verified."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    #: Paths of PEM files: the authorities that sign the hosts' certificates (the system's where there is none), and
    #: the certificate and key that Fastlane shows to hosts that want one.
    ca: str | None = Field(default=None, min_length=1)
    cert: str | None = Field(default=None, min_length=1)
    key: str | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _verifies(cls, value: object) -> object:
        if isinstance(value, dict) and (
            switches := sorted(str(name) for name in value if _VERIFICATION.search(str(name)))
        ):
            raise ValueError(
                f"{', '.join(switches)}: the hosts' certificates are always verified, and nothing turns that off; "
                "name the file of the authority that signed them in `ca`"
            )
        return value

    @model_validator(mode="after")
    def _has_both(self) -> TlsSettings:
        for there, absent in (("cert", "key"), ("key", "cert")):
            if getattr(self, there) is not None and getattr(self, absent) is None:
                raise ValueError(f"`{there}` without `{absent}`: a client certificate takes both files")
        return self


#: Names by which other tools switch verification off.
_VERIFICATION = re.compile(r"(?i)verif|insecure|skip|hostname|check")


def _tls(value: object) -> object:
    """True is TLS without files of its own; false is as if it were not there."""
    if isinstance(value, bool):
        return {} if value else None
    if value is None or isinstance(value, dict | TlsSettings):
        return value
    raise ValueError('expected true, or an object such as {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}')


class FarmSettings(BaseModel):
    """One farm: which tasks it takes, and on which hosts they run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    match: str = ""
    hosts: list[Annotated[HostSettings, BeforeValidator(_host)]] = Field(min_length=1, max_length=10_000)
    maxRunning: int = Field(default=10, ge=1, le=100_000)  # noqa: N815 - the key as operators know it
    name: str = ""
    #: Its hosts are spoken to by TLS; those written as https:// are anyway.
    tls: Annotated[TlsSettings | None, BeforeValidator(_tls)] = None
    #: Labels put on each of its containers.
    labels: dict[LabelName, LabelText] = Field(default={}, max_length=100)
    #: Options of jobs that do not say otherwise; nothing of it needs to be allowed.
    defaults: DockerOptions = DockerOptions()
    limits: Limits = Limits()
    allow: Permissions = Permissions()
    #: When images are pulled, for jobs that do not say it themselves.
    pullPolicy: PullPolicy = "missing"  # noqa: N815 - as jobs name it

    @field_validator("match")
    @classmethod
    def _is_a_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from error
        return value

    @field_validator("limits")
    @classmethod
    def _hold_for_the_defaults(cls, value: Limits, info: ValidationInfo) -> Limits:
        try:
            check_limits("the farm", value, info.data.get("defaults", DockerOptions()))
        except InvalidInput as error:
            raise ValueError(f"the farm's own defaults are beyond them: {error}") from error
        return value

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_.-]{0,64}", value):
            raise ValueError(f"{value!r}: expected letters, digits, _ . and -, at most 64")
        return value

    @model_validator(mode="after")
    def _hosts_are_different(self) -> FarmSettings:
        keys = [address.key for address in self.addresses()]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"`hosts` names one twice: {', '.join(twice)}")
        if self.tls and all(address.port is None for address in self.addresses()):
            raise ValueError("`tls` is of no use here: all `hosts` are Unix sockets, which have no TLS")
        return self

    def addresses(self) -> list[Address]:
        """Those of its hosts, in their order."""
        return [parse_address(each.host, self.tls_files) for each in self.hosts]

    @property
    def tls_files(self) -> TlsFiles | None:
        """What its `tls` names; None where it has none."""
        return TlsFiles(ca=self.tls.ca, cert=self.tls.cert, key=self.tls.key) if self.tls else None


class RegistrySettings(BaseModel):
    """Credentials for one image registry: a user with a password, or a token."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    username: str = ""
    password: SecretStr = SecretStr("")
    #: In place of the two, what the registry gave for them (`identitytoken` in Docker's own configuration).
    identityToken: SecretStr = SecretStr("")  # noqa: N815 - as Docker's API names it

    @model_validator(mode="after")
    def _are_complete(self) -> RegistrySettings:
        user, token = bool(self.username and self.password.get_secret_value()), bool(self.identityToken)
        if user == token or (token and (self.username or self.password)):
            raise ValueError("expected username and password, or identityToken")
        return self


def _farms(value: object) -> object:
    """A list, one object, or either as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"expected a list of farms, or JSON text of one: {error}") from error
    return [value] if isinstance(value, dict) else value


class DockerSettings(BaseModel):
    """Keys of the Docker farm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    docker_hosts: Annotated[list[FarmSettings], BeforeValidator(_farms)] = Field(
        default=[FarmSettings(hosts=[HostSettings(host="unix:///var/run/docker.sock")], maxRunning=4)],
        min_length=1,
        description='Farms: a list of {"match": "regex", "hosts": ["name:port"], "maxRunning": n, "name": "x"}, or '
        "JSON text of it. A task goes to the first farm whose regular expression matches the start of its id; an "
        "empty one matches all. Hosts are name, name:port (2375, or 2376 with TLS, where there is none), "
        "tcp://name:port, https://name:port (TLS) or unix:///path; an IPv6 address is written [::1]. "
        '"tls": true makes a farm speak TLS and verify its hosts by the system\'s authorities, '
        '{"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"} by one\'s own and with a client certificate; all '
        "three are paths of PEM files.",
    )
    docker_timeout_seconds: float = Field(
        default=60.0, gt=0, le=3600, description="Longest wait for an answer of a Docker engine, in seconds."
    )
    docker_pull_timeout_seconds: float = Field(
        default=900.0, gt=0, description="Longest time that pulling an image may take, in seconds."
    )
    docker_pull_quiet_seconds: float = Field(
        default=120.0, gt=0, description="Longest time without news of a pull until it is given up, in seconds."
    )
    docker_registries: dict[str, RegistrySettings] = Field(
        default={},
        max_length=1000,
        description='Credentials of image registries: {"registry:5000": {"username": "x", "password": "y"}}, or '
        '{"identityToken": "z"}. Docker\'s own is called docker.io. For a registry that is not named here, they come '
        "from the configuration file that `docker login` writes for the worker's user.",
    )
    docker_ping_seconds: float = Field(
        default=5.0,
        ge=0.2,
        le=300,
        description="Time between two looks whether each Docker engine answers, in seconds.",
    )
    docker_circuit_breaker_max_fails: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="Failures in a row to reach a Docker engine after which its circuit opens: no worker starts "
        "anything new there until it answers again.",
    )
    docker_circuit_breaker_reset_timeout_seconds: float = Field(
        default=15.0,
        gt=0,
        le=86_400,
        description="Time after which an open circuit is probed, and closed if the engine answers, in seconds.",
    )
    docker_pids_limit: int = Field(
        default=4096, ge=1, description="Processes and threads that one container may have at a time."
    )

    docker_reconcile_seconds: float = Field(
        default=30.0,
        ge=0.1,
        le=3600,
        description="Time between two lists of what runs on each Docker engine, in seconds: they tell of ends that the "
        "engine's events did not tell of.",
    )
    docker_keep_seconds: float | None = Field(
        default=None,
        ge=0,
        description="Time for which containers are kept once they have ended and their results are stored, in seconds. "
        "0 removes each at once. None keeps them, to be looked at, until `fastlane prune`.",
    )

    @field_validator("docker_registries")
    @classmethod
    def _are_registries(cls, value: dict[str, RegistrySettings]) -> dict[str, RegistrySettings]:
        registries = {registry_of(key): each for key, each in value.items()}
        if len(registries) < len(value):
            raise ValueError("a registry is named twice")
        return registries

    @model_validator(mode="after")
    def _names_are_unique(self) -> DockerSettings:
        names = [lane_name(number, farm) for number, farm in enumerate(self.docker_hosts)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"DOCKER_HOSTS names two farms alike: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _farms_agree_on_tls(self) -> DockerSettings:
        seen: dict[str, tuple[str, TlsFiles | None]] = {}
        for number, farm in enumerate(self.docker_hosts):
            name = lane_name(number, farm)
            for address in farm.addresses():
                other, tls = seen.setdefault(address.key, (name, address.tls))
                if tls != address.tls:
                    raise ValueError(
                        f"DOCKER_HOSTS: the farms {other} and {name} both have the host {address.key}, "
                        "with different `tls`: one engine has one way to be spoken to"
                    )
        return self


def lane_name(number: int, farm: FarmSettings) -> str:
    """The lane of a farm: `docker:<its name>`, or its place in the list where it has none."""
    return f"docker:{farm.name or number}"
