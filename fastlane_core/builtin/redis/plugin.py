"""Redis as a plugin: the queue named `redis`, and its settings. redis-py is imported only when that is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from fastlane_core.builtin.redis.url import Topology, parse_redis_url
from fastlane_core.contracts.queue import Queue
from fastlane_core.errors import PluginError
from fastlane_core.hookspecs import CheckContext, Finding, PluginContext, QueuePlugin, SettingsSection, hookimpl

if TYPE_CHECKING:
    from fastlane_core.builtin.redis.servers import ConnectionOptions


class RedisSettings(BaseModel):
    """Settings of the Redis queue."""

    redis_url: str = Field(
        "redis://localhost:10100/0",
        description="Where the queue named redis is: redis://[user:password@]host[:port][/db], rediss:// for TLS, "
        "unix:///path, redis+sentinel://[user:password@]host:port,host:port[/db]?master=name, or "
        "redis+cluster://[user:password@]host:port,host:port; rediss+sentinel:// and rediss+cluster:// for TLS.",
    )
    redis_sentinel_username: str = Field("", description="User at the sentinels themselves; empty for the default one.")
    redis_sentinel_password: SecretStr = Field(
        SecretStr(""), description="Password of the sentinels themselves; the one in REDIS_URL is the servers'."
    )
    redis_ca_file: str = Field(
        "", description="PEM file with the authorities that sign the servers' certificates. Empty: the system's."
    )
    redis_cert_file: str = Field("", description="PEM file with the client certificate to show, if one is wanted.")
    redis_key_file: str = Field("", description="PEM file with the key of REDIS_CERT_FILE.")
    redis_timeout_seconds: float = Field(
        5.0,
        ge=0.1,
        le=60,
        description="Longest time that a call of the queue may take, attempts included, in seconds.",
    )
    redis_connections: int = Field(
        16,
        ge=1,
        le=1000,
        description="Connections that each process uses at a time to each server; further calls wait for one.",
    )

    @field_validator("redis_url")
    @classmethod
    def _url_can_be_read(cls, value: str) -> str:
        parse_redis_url(value)
        return value

    @field_validator("redis_ca_file", "redis_cert_file", "redis_key_file")
    @classmethod
    def _file_is_there(cls, value: str) -> str:
        if value and not Path(value).is_file():
            raise ValueError(f"there is no file {value}")
        return value

    @model_validator(mode="after")
    def _keys_go_together(self) -> RedisSettings:
        address = parse_redis_url(self.redis_url)
        if bool(self.redis_cert_file) != bool(self.redis_key_file):
            raise ValueError("REDIS_CERT_FILE and REDIS_KEY_FILE go together: give both or neither")
        if not address.tls and (self.redis_ca_file or self.redis_cert_file):
            raise ValueError("REDIS_CA_FILE and REDIS_CERT_FILE are for TLS: write rediss:// in REDIS_URL")
        sentinels = self.redis_sentinel_username or self.redis_sentinel_password.get_secret_value()
        if sentinels and address.topology is not Topology.SENTINEL:
            raise ValueError(
                "REDIS_SENTINEL_USERNAME and REDIS_SENTINEL_PASSWORD are for redis+sentinel:// in REDIS_URL"
            )
        if self.redis_sentinel_username and not self.redis_sentinel_password.get_secret_value():
            raise ValueError("REDIS_SENTINEL_USERNAME needs REDIS_SENTINEL_PASSWORD")
        return self


@hookimpl
def fastlane_settings() -> Iterable[SettingsSection]:
    """The section of Redis."""
    yield SettingsSection(title="Redis", model=RedisSettings, bare_environment=frozenset({"REDIS_URL"}))


@hookimpl
def fastlane_queues() -> Iterable[QueuePlugin]:
    """The queue `redis`."""
    yield QueuePlugin(name="redis", create=_create_queue)


@hookimpl
async def fastlane_checks(context: CheckContext) -> Sequence[Finding]:
    """Every server and sentinel: version, role, memory, persistence, clocks, and the slots of a cluster."""
    # Without the library there is no queue to check, and that is told where it is built.
    if context.queue != "redis" or find_spec("redis") is None:
        return []
    from fastlane_core.builtin.redis.checks import check_servers

    return await check_servers(_connection_options(context), context.clock)


def _create_queue(context: PluginContext) -> Queue:
    try:
        from fastlane_core.builtin.redis.queue import RedisQueue
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "redis":
            raise
        raise PluginError(
            'QUEUE names "redis", which needs a library that is not installed: pip install "fastlane-core[redis]"'
        ) from error
    return RedisQueue(_connection_options(context), deployment_id=context.deployment_id)


def _connection_options(context: PluginContext) -> ConnectionOptions:
    from fastlane_core.builtin.redis.servers import ConnectionOptions, TlsFiles

    settings = context.settings.section(RedisSettings)
    return ConnectionOptions(
        address=parse_redis_url(settings.redis_url),
        tls=TlsFiles(
            ca=settings.redis_ca_file or None,
            cert=settings.redis_cert_file or None,
            key=settings.redis_key_file or None,
        ),
        sentinel_username=settings.redis_sentinel_username or None,
        sentinel_password=settings.redis_sentinel_password.get_secret_value() or None,
        timeout=settings.redis_timeout_seconds,
        connections=settings.redis_connections,
    )
