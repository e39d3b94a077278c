"""The payload of a job: its fields, and how what is wrong with one is told."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import cast, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model
from quart import current_app

from fastlane_core.api.bodies import kind_of, parse_json_object
from fastlane_core.api.concurrency import CONCURRENCY_EXPECTED, AtATime, ConcurrencyPayload, task_and_job
from fastlane_core.api.moments import expiration_moment
from fastlane_core.api.retry_payload import RetryPayload, retry_policy
from fastlane_core.api.schedule_payload import SCHEDULE_EXPECTED, ScheduleFields, checked_schedule
from fastlane_core.errors import InvalidInput, SettingsError
from fastlane_core.models import Json, JsonObject, RetryPolicy, RunSpec, Schedule
from fastlane_core.quick_dataclass import quick_dataclass

#: Key of the schema among the extensions of the Quart application.
PAYLOAD_SCHEMA = "fastlane.payload"

_LATER = "this version of Fastlane does not have it yet"
#: Fields of the job that cannot be honoured, unless a plugin brings them, and why.
_NOT_HERE = {
    **dict.fromkeys(("notify", "webhooks"), _LATER),
    "additionalDNSEntries": "no runner that is enabled here has such an option",
}
#: Those of them that clients send empty when they want nothing.
_EMPTY_IS_NOTHING = frozenset({"notify", "webhooks", "additionalDNSEntries"})

#: Last part of the path of an error that is about a key rather than its value.
_KEY_ITSELF = "[key]"

#: What a shell's quoting is made of; a line without any can always be split.
_QUOTING = frozenset("'\"\\")

_IMAGE = re.compile(r"(?!-)[^\s\x00-\x1f\x7f]+")
_MAX_RETRIES = 100
_MAX_METADATA_BYTES = 64 * 1024
_MAX_OPTIONS_BYTES = 64 * 1024
#: What an operating system takes as arguments and environment of a process is of this order.
_MAX_COMMAND_BYTES = 256 * 1024
_MAX_ENVS_BYTES = 256 * 1024

_ENV_VALUE = "a string, number or boolean"
_EXPECTED = {
    "image": "a string that names a container image",
    "command": "a string, or a list of strings",
    "envs": f"an object whose values are each {_ENV_VALUE}",
    "metadata": "an object",
    **dict.fromkeys(("timeout", "queueTimeout", "pullTimeout"), "a number of seconds greater than 0"),
    **SCHEDULE_EXPECTED,
    "expiration": "Unix time in seconds, or ISO 8601 with an offset",
    "expiresIn": "a length of time such as 2m30s",
    "priority": "a whole number from 0 to 9",
    "concurrency": CONCURRENCY_EXPECTED,
    "retries": f"a whole number from 0 to {_MAX_RETRIES}",
    "retry": "an object with minSeconds, factor, maxSeconds, jitter or on",
}
#: Fields with fields of their own, each of which is told by its own name.
_STRUCTURED = frozenset({"retry"})


class JobPayload(ScheduleFields):
    """What a job is asked for with. Fields that are null take their defaults."""

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str = Field(min_length=1, max_length=4096, description="Image reference, as the engine takes it.")
    command: str | list[str] = Field(
        description="Command line, split into arguments by the rules of a POSIX shell but without one; or the "
        "arguments themselves. Empty runs the image's own command."
    )
    envs: dict[str, str | bool | int | float] = Field(default_factory=dict, description="Environment variables.")
    metadata: dict[str, JsonValue] = Field(default_factory=dict, description="Your own data, given back as it came.")
    timeout: float | None = Field(
        default=None, gt=0, description="Seconds that the run may take; at most what the operator allows."
    )
    queueTimeout: float | None = Field(  # noqa: N815 - as clients know the others
        default=None, gt=0, description="Seconds that it may wait in the queue once it is due; then it expires."
    )
    pullTimeout: float | None = Field(  # noqa: N815
        default=None, gt=0, description="Seconds that pulling its image may take; at most what the operator allows."
    )
    expiration: float | str | None = Field(
        default=None, description="Moment after which it must not start any more, in either form of startAt."
    )
    expiresIn: str | None = Field(  # noqa: N815
        default=None, description="How long from now it may start, such as 10s, 2m30s, 4h or 1d."
    )
    priority: int = Field(
        default=0,
        ge=0,
        le=9,
        description="Higher starts earlier among the jobs of its lane; a step is worth ten minutes of waiting.",
    )
    concurrency: AtATime | ConcurrencyPayload | None = Field(
        default=None,
        description="Executions that may run at a time: of the task from now on, or of task and job in an object.",
    )
    retries: int = Field(default=0, ge=0, le=_MAX_RETRIES, description="Further attempts after a failed one.")
    retry: RetryPayload | None = Field(default=None, description="How further attempts are made, and after what.")


@quick_dataclass(frozen=True, kw_only=True, slots=True)
class CheckedPayload:
    """A payload that can be stored."""

    spec: RunSpec
    metadata: JsonObject
    retries: int
    retry: RetryPolicy | None
    start_at: float | None
    schedule: Schedule | None
    expiration: float | None
    priority: int
    #: What it asks for its task, and for itself.
    task_concurrency: int | None
    job_concurrency: int | None
    notifications: Mapping[str, JsonObject]


class PayloadSchema:
    """The payload's model, put together from core's fields and those of the installed plugins."""

    def __init__(
        self,
        *,
        runner_options: Mapping[str, type[BaseModel]],
        notifier_payload: Mapping[str, type[BaseModel]],
        hard_timeout: float,
        queue_timeout: float | None = None,
        pull_timeout: float | None = None,
        option_aliases: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    ) -> None:
        """The time-outs are the longest that a job may have; `option_aliases` are fields that mean options, by runner.

        Raises SettingsError where a field has two owners.
        """
        self._hard_timeout = hard_timeout
        self._queue_timeout = queue_timeout
        self._pull_timeout = pull_timeout
        self._options = dict(runner_options)
        self._notifications = dict(notifier_payload)
        self._aliases = option_aliases
        meanings = {
            name: (runner, option) for runner, names in option_aliases.items() for name, option in names.items()
        }
        owners = [*JobPayload.model_fields, *self._options, *self._notifications, *meanings]
        for name in owners:
            if owners.count(name) > 1:
                raise SettingsError(f"two plugins, or a plugin and core, own the field {name!r} of the job payload")
        extra: dict[str, tuple[object, object]] = {
            name: (model | None, None) for name, model in (self._options | self._notifications).items()
        }
        for name, (runner, option) in meanings.items():
            field = self._options[runner].model_fields[option]
            extra[name] = (
                field.annotation,
                Field(default=None, description=f"Another way to say `{runner}.{option}`."),
            )
        self.model = cast("type[JobPayload]", create_model("Job", __base__=JobPayload, **extra))  # type: ignore[call-overload]
        #: Its fields, and whether each must be there.
        self._fields = {name: field.is_required() for name, field in self.model.model_fields.items()}
        self._alias_names = tuple(dict.fromkeys(name for names in option_aliases.values() for name in names))

    def parse(self, body: bytes, runner: str, *, now: float) -> CheckedPayload:
        """The payload in a request's body, of a job that goes to the runner of that name.

        Raises InvalidInput, which names the field and what was expected.
        """
        return self.check(parse_json_object(body), runner, now=now)

    def check(self, document: Mapping[str, Json], runner: str, *, now: float) -> CheckedPayload:
        """The payload in a parsed body. Raises InvalidInput."""
        wanted = self._known_fields(document)
        moved = self._as_options(wanted, runner)
        try:
            payload = self.model.model_validate(wanted)
        except ValidationError as error:
            raise self._refusal(error, moved) from None
        start_at, schedule = checked_schedule(payload, now=now)
        task_concurrency, job_concurrency = task_and_job(payload.concurrency)
        return CheckedPayload(
            spec=RunSpec(
                image=_checked_image(payload.image),
                command=_checked_command(payload.command),
                env=_checked_envs(payload.envs),
                options=self._plugin_fields(payload, self._options),
                timeout=min(payload.timeout or self._hard_timeout, self._hard_timeout),
                queue_timeout=_shorter(payload.queueTimeout, self._queue_timeout),
                pull_timeout=_shorter(payload.pullTimeout, self._pull_timeout),
            ),
            metadata=_bounded("metadata", payload.metadata, _MAX_METADATA_BYTES),
            retries=payload.retries,
            retry=retry_policy(payload.retry),
            start_at=start_at,
            schedule=schedule,
            expiration=expiration_moment(payload.expiration, payload.expiresIn, now=now),
            priority=payload.priority,
            task_concurrency=task_concurrency,
            job_concurrency=job_concurrency,
            notifications=self._plugin_fields(payload, self._notifications),
        )

    def _known_fields(self, document: Mapping[str, Json]) -> dict[str, Json]:
        """The document without fields that say nothing. Raises InvalidInput for those that nobody here knows."""
        kept: dict[str, Json] = {}
        for name, value in document.items():
            if name in self._fields:
                if value is not None or self._fields[name]:
                    kept[name] = value
            elif name not in _NOT_HERE:
                raise InvalidInput(_shortened(name), _unknown(name, list(self._fields)))
            elif not (value is None or (name in _EMPTY_IS_NOTHING and _is_empty(value))):
                raise InvalidInput(name, _NOT_HERE[name])
        return kept

    def _as_options(self, wanted: dict[str, Json], runner: str) -> Mapping[tuple[str, ...], str]:
        """Turn aliases into the options that they mean; of each such option, by its path, the alias."""
        moved: dict[tuple[str, ...], str] = {}
        for alias in self._alias_names:
            value = wanted.pop(alias, None)
            if value is None or _is_empty(value):
                continue
            option = self._aliases.get(runner, {}).get(alias)
            if option is None:
                raise InvalidInput(alias, f"jobs of this task go to the runner {runner}, which has no such option")
            options = wanted.get(runner, {})
            if not isinstance(options, dict):
                continue
            if options.get(option) is not None:
                raise InvalidInput(alias, f"is another way to say {runner}.{option}: give one of the two")
            wanted[runner] = {**options, option: value}
            moved[runner, option] = alias
        return moved

    @staticmethod
    def _plugin_fields(payload: JobPayload, owned: Iterable[str]) -> dict[str, JsonObject]:
        fields: dict[str, JsonObject] = {}
        for name in owned:
            value: BaseModel | None = getattr(payload, name)
            if value is not None:
                dumped = value.model_dump(mode="json", by_alias=True, exclude_unset=True)
                fields[name] = _bounded(name, dumped, _MAX_OPTIONS_BYTES)
        return fields

    def _refusal(self, error: ValidationError, moved: Mapping[tuple[str, ...], str]) -> InvalidInput:
        first = error.errors(include_url=False, include_context=False)[0]
        path = tuple(_shortened(str(part)) for part in first["loc"] if part != _KEY_ITSELF)
        top = path[0]
        if first["type"] == "extra_forbidden":
            model = self._model_at(path[:-1])
            return InvalidInput(".".join(path), _unknown(path[-1], list(model.model_fields)))
        if alias := moved.get(path[:2]):
            path = (alias, *path[2:])
        if first["type"] == "missing":
            expected = _EXPECTED.get(top) if len(path) == 1 else None
            return InvalidInput(".".join(path), f"is missing: expected {expected or 'a value'}")
        if top == "envs" and len(path) > 1:
            return InvalidInput(f"envs.{path[1]}", f"expected {_ENV_VALUE}, got {kind_of(first['input'])}")
        if top in _EXPECTED and (len(path) == 1 or top not in _STRUCTURED):
            return InvalidInput(top, f"expected {_EXPECTED[top]}{_instead(first['type'], first['input'])}")
        told = first["msg"].removeprefix("Value error, ")
        return InvalidInput(".".join(path), told[:1].lower() + told[1:])

    def _model_at(self, path: Sequence[str]) -> type[BaseModel]:
        model: type[BaseModel] = self.model
        for name in path:
            # What is no field is a place in a list, or a key.
            if name in model.model_fields:
                model = _model_within(model.model_fields[name].annotation) or model
        return model


def payload_schema() -> PayloadSchema:
    """The schema of the application that handles the current request."""
    return cast("PayloadSchema", current_app.extensions[PAYLOAD_SCHEMA])


def _model_within(annotation: object) -> type[BaseModel] | None:
    """The model that `X`, `X | None`, `list[X]` and the like are made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_within, get_args(annotation))), None)


def _checked_image(image: str) -> str:
    if _IMAGE.fullmatch(image) is None:
        raise InvalidInput("image", f"expected {_EXPECTED['image']}, without spaces and not starting with a dash")
    return image


def _checked_command(command: str | list[str]) -> str:
    line = command if isinstance(command, str) else shlex.join(command)
    if len(line.encode()) > _MAX_COMMAND_BYTES:
        raise InvalidInput("command", f"is longer than {_MAX_COMMAND_BYTES} bytes")
    if _QUOTING.isdisjoint(line):
        return line
    try:
        shlex.split(line)
    except ValueError as error:
        problem = str(error).lower().rstrip(".")
        raise InvalidInput("command", f"cannot be split into arguments by the rules of a shell: {problem}") from None
    return line


def _checked_envs(envs: Mapping[str, str | bool | int | float]) -> dict[str, str]:
    for name in envs:
        if not name or "=" in name:
            raise InvalidInput(
                f"envs.{_shortened(name)}", "the name of a variable must not be empty and not contain '='"
            )
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in envs.items()}
    if sum(len(name.encode()) + len(value.encode()) for name, value in texts.items()) > _MAX_ENVS_BYTES:
        raise InvalidInput("envs", f"takes more than {_MAX_ENVS_BYTES} bytes")
    return texts


def _shorter(asked: float | None, longest: float | None) -> float | None:
    if asked is None or longest is None:
        return longest if asked is None else asked
    return min(asked, longest)


def _bounded(field: str, value: Mapping[str, JsonValue], limit: int) -> JsonObject:
    size = len(json.dumps(value, ensure_ascii=False).encode()) if value else 0
    if size > limit:
        raise InvalidInput(field, f"takes {size} bytes as JSON, which is more than the {limit} allowed")
    return cast("JsonObject", value)


def _is_empty(value: Json) -> bool:
    """Whether nothing is in it: `{}`, `[]`, `{"succeeds": [], "fails": null}`."""
    if isinstance(value, dict):
        return all(each is None or _is_empty(each) for each in value.values())
    return isinstance(value, list) and not value


def _unknown(name: str, known: Sequence[str]) -> str:
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower()[:100], by_lower, n=1, cutoff=0.6)
    if close:
        return f"there is no such field; did you mean {by_lower[close[0]]!r}?"
    return f"there is no such field; known are {', '.join(known)}"


def _shortened(name: str) -> str:
    return name if len(name) <= 100 else f"{name[:40]}…"


def _instead(kind: str, value: object) -> str:
    """What came instead, without repeating the value, which may be a secret."""
    if kind in ("greater_than", "greater_than_equal", "less_than_equal") and isinstance(value, int | float):
        return f", got {value!r}"
    if kind == "string_too_short":
        return ", got an empty string"
    if kind == "string_too_long":
        return ", got one that is too long"
    return f", got {kind_of(value)}"
