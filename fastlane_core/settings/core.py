"""The settings of core itself."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from fastlane_core.hookspecs import SettingsSection

#: What browsers send as `Origin`: scheme, host and perhaps a port (RFC 6454), with a slash forgiven.
_ORIGIN = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?/?")


def split_commas(value: object) -> object:
    """`"a, b"` as `["a", "b"]`; anything else as it is, also text that was meant to be a JSON list."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


#: A list of texts, which may also be written as one text with commas.
TextList = Annotated[list[str], BeforeValidator(split_commas)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GeneralSettings(_Section):
    """What every process of a Fastlane shares."""

    debug: bool = Field(
        default=False,
        description="Log Fastlane's own debug lines, and indent JSON answers for reading.",
    )
    storage: str = Field(default="sqlite", description="Name of the storage that keeps tasks, jobs, results and logs.")
    queue: str = Field(default="sqlite", description="Name of the queue that holds what waits and what is leased.")
    runners: TextList = Field(
        default=[],
        description="Names of the runners to use; the first one that takes a task runs it. Empty: every installed "
        'one but "process", or "process" where there is no other.',
    )
    deployment_id: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_.-]{0,64}$",
        description="Tells this Fastlane from others that use the same engines: letters, digits, _ . -, at most 64. "
        "Empty: made at the first start and kept in the storage.",
    )
    blocked_plugins: TextList = Field(
        default=[],
        description="Names of plugins that are not loaded although they are installed.",
    )
    required_plugins: TextList = Field(
        default=[],
        description="Names of plugins without which nothing starts; others that cannot be loaded are only warned of.",
    )
    log_format: Literal["auto", "text", "json"] = Field(
        default="auto",
        description='How log lines are written: "text" for people, "json" for programs, or "auto": text on a '
        "terminal, JSON elsewhere.",
    )
    env_blacklisted_words: TextList = Field(
        default=["password", "key", "secret", "client_id", "token"],
        description="Words that make a key's value a secret, shown as *** everywhere: API_KEY and dbPassword match, "
        "MONKEY does not. Empty: nothing is hidden.",
    )

    @model_validator(mode="after")
    def _no_plugin_is_both_blocked_and_required(self) -> GeneralSettings:
        if both := sorted(set(self.blocked_plugins) & set(self.required_plugins)):
            raise ValueError(f"BLOCKED_PLUGINS and REQUIRED_PLUGINS both name {', '.join(both)}")
        return self


class TaskLimitSettings(_Section):
    """A limit of the tasks that match."""

    match: str = ""
    maxRunning: int = Field(ge=1, le=1_000_000)  # noqa: N815 - as farms have it

    @field_validator("match")
    @classmethod
    def _is_a_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from error
        return value


class WorkerSettings(_Section):
    """How workers run jobs."""

    hard_execution_timeout_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="Longest time that an execution may run, in seconds; a job's own timeout can only be shorter. "
        "Holds for what was stored before, too.",
    )
    queue_timeout_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Longest time that an execution may wait in the queue once it is due, in seconds; a job's own "
        "queueTimeout can only be shorter. None: it waits until it expires.",
    )
    pull_timeout_seconds: float = Field(
        default=3600.0,
        gt=0,
        description="Longest time that pulling an image for an execution may take, in seconds; a job's own pullTimeout "
        "can only be shorter.",
    )
    lease_seconds: float = Field(
        default=15.0,
        ge=1,
        le=3600,
        description="How long a worker's claim on an execution lasts without being renewed, in seconds: how soon "
        "others take over from one that died.",
    )
    task_limits: list[TaskLimitSettings] = Field(
        default=[],
        max_length=1000,
        description='How many executions of a task may run at a time: a list of {"match": "regex", "maxRunning": n}. A '
        "limit holds for each task whose id begins with a match, by itself; the strictest counts, and so does one that "
        "a caller has set. An empty expression matches all.",
    )
    max_running: int | None = Field(
        default=None,
        ge=1,
        description="Executions that may run at a time over all lanes and workers. None: as many as the lanes have "
        "room for. A Redis Cluster cannot count over its servers, and refuses to start with it.",
    )
    worker_concurrency: int = Field(
        default=64,
        ge=1,
        le=10_000,
        description="Executions of each lane that one worker looks after at a time.",
    )
    worker_sleep_time_ms: int = Field(
        default=1000,
        ge=10,
        le=60_000,
        description="Longest wait between two looks at the queue, in milliseconds; new work usually wakes a worker "
        "at once.",
    )
    stop_grace_seconds: float = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="Time between asking a run to end and killing it, in seconds.",
    )
    drain_seconds: float = Field(
        default=30.0,
        ge=0,
        le=86_400,
        description="How long a worker that is asked to end waits for runs that would die with it, in seconds. Runs "
        "of the Docker farm and of the process runner go on without it.",
    )
    max_log_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=1024,
        description="Output kept per execution over stdout and stderr, in bytes; what is beyond is cut, visibly.",
    )
    reconcile_interval_seconds: float = Field(
        default=10.0,
        ge=0.1,
        le=3600,
        description="Time between two comparisons of storage, queue and engines, in seconds.",
    )
    engine_lost_after_seconds: float = Field(
        default=300.0,
        gt=0,
        description="How long a run on an engine that is out of reach is waited for, in seconds, before it counts "
        "as lost.",
    )
    keep_finished_days: float | None = Field(
        default=None,
        gt=0,
        description="Days after which an execution that has ended is removed, with its logs; its job stays. None: "
        "everything is kept.",
    )
    exponential_backoff_min_ms: int = Field(
        default=1000,
        ge=1,
        description="Wait before the first retry, and least before any, in milliseconds. This and the next three are "
        "for jobs that do not say otherwise under `retry`.",
    )
    exponential_backoff_factor: float = Field(
        default=2.0,
        ge=1,
        le=100,
        description="What the longest wait is multiplied by with each further retry.",
    )
    exponential_backoff_max_ms: int = Field(
        default=60_000,
        ge=1,
        description="Highest that the wait grows, in milliseconds.",
    )
    exponential_backoff_jitter: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the wait that is drawn at random, from 0 (the longest wait always) to 1; it is never "
        "less than the first wait.",
    )

    @model_validator(mode="after")
    def _cap_is_not_below_the_first_wait(self) -> WorkerSettings:
        if self.exponential_backoff_max_ms < self.exponential_backoff_min_ms:
            raise ValueError("EXPONENTIAL_BACKOFF_MAX_MS is smaller than EXPONENTIAL_BACKOFF_MIN_MS")
        return self


class ApiSettings(_Section):
    """How the API answers."""

    server_name: str | None = Field(
        default=None,
        pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?$",
        description="Host, or host:port, that this Fastlane is known by to others: used in URLs of answers, and "
        "accepted as a request's Host. None: the request's own host is used.",
    )
    cors_origins: TextList = Field(
        default=[],
        description="Origins whose pages may use this API in a visitor's browser, like https://ci.example.com. "
        '"*" lets any page that somebody visits run containers here: only for an API that is not reachable from a '
        "browser that also visits other sites.",
    )

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if origin != "*" and _ORIGIN.fullmatch(origin) is None:
                raise ValueError(f'{origin!r} is no origin: expected one like https://ci.example.com, or "*"')
        return origins

    pagination_per_page: int = Field(default=10, ge=1, le=1000, description="Items on a page of a listing.")
    max_body_bytes: int = Field(
        default=16 * 1024 * 1024,
        ge=1024,
        description="Largest request body that is accepted, in bytes.",
    )
    ws_ping_seconds: float = Field(
        default=20.0,
        gt=0,
        le=3600,
        description="Time between two pings on an open WebSocket, in seconds: keeps proxies from closing it and "
        "finds clients that are gone.",
    )


#: In the order in which `fastlane config` prints them.
CORE_SECTIONS = (
    SettingsSection(
        title="General", model=GeneralSettings, bare_environment=frozenset({"DEBUG", "ENV_BLACKLISTED_WORDS"})
    ),
    SettingsSection(
        title="Worker",
        model=WorkerSettings,
        bare_environment=frozenset(
            {
                "HARD_EXECUTION_TIMEOUT_SECONDS",
                "WORKER_SLEEP_TIME_MS",
                "EXPONENTIAL_BACKOFF_MIN_MS",
                "EXPONENTIAL_BACKOFF_FACTOR",
            }
        ),
    ),
    SettingsSection(
        title="API",
        model=ApiSettings,
        bare_environment=frozenset({"SERVER_NAME", "CORS_ORIGINS", "PAGINATION_PER_PAGE"}),
    ),
)
