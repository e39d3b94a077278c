"""The payload of a job: what is taken, and how the rest is refused."""

from __future__ import annotations

import shlex
from ipaddress import IPv4Address
from typing import Annotated

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from fastlane_core.api.bodies import parse_json_object
from fastlane_core.api.payload import PayloadSchema
from fastlane_core.errors import InvalidInput, SettingsError
from fastlane_core.models import Json


class Limits(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    cpus: float | None = None


class Disk(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    size: int = 1

    @field_validator("size")
    @classmethod
    def _is_a_size(cls, value: int) -> int:
        if value < 1:
            raise ValueError("expected a size")
        return value


class DockerOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    memory: str | None = None
    limits: Limits = Limits()
    disks: list[Disk] | None = None
    sizes: dict[Annotated[str, Field(pattern="^[a-z]+$")], int] = {}


class Notify(BaseModel):
    model_config = ConfigDict(extra="forbid")
    succeeds: list[str] = []


NOW = 1_700_000_000.0


def schema(**owners: dict[str, type[BaseModel]]) -> PayloadSchema:
    return PayloadSchema(
        runner_options=owners.get("runners", {"docker": DockerOptions}),
        notifier_payload=owners.get("notifiers", {}),
        hard_timeout=1800.0,
    )


def refused(document: dict[str, Json], *, by: PayloadSchema | None = None) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        (by or schema()).check(document, "docker", now=NOW)
    return caught.value


def job(**fields: Json) -> dict[str, Json]:
    return {"image": "busybox", "command": "true", **fields}


def test_smallest_payload_takes_the_defaults() -> None:
    payload = schema().check(job(), "docker", now=NOW)
    assert (payload.spec.image, payload.spec.command) == ("busybox", "true")
    assert payload.spec.env == {}
    assert payload.spec.timeout == 1800.0
    assert (payload.retries, payload.priority, payload.metadata) == (0, 0, {})
    assert (payload.start_at, payload.expiration) == (None, None)


def test_nulls_take_the_defaults() -> None:
    names = ["envs", "metadata", "timeout", "expiration", "retries", "docker", "startAt", "startIn", "cron"]
    names += ["notify", "webhooks", "additionalDNSEntries"]
    assert schema().check(job(**dict.fromkeys(names)), "docker", now=NOW) == schema().check(job(), "docker", now=NOW)


def test_command_may_be_a_list_of_arguments() -> None:
    payload = schema().check(job(command=["sh", "-c", "echo 'a b' \"$HOME\""]), "docker", now=NOW)
    assert shlex.split(payload.spec.command) == ["sh", "-c", "echo 'a b' \"$HOME\""]


def test_command_is_kept_as_it_came() -> None:
    assert schema().check(job(command="sh -c 'echo  hi'"), "docker", now=NOW).spec.command == "sh -c 'echo  hi'"


@pytest.mark.parametrize("command", ["", []])
def test_empty_command_runs_the_images_own(command: Json) -> None:
    assert schema().check(job(command=command), "docker", now=NOW).spec.command == ""


def test_env_values_become_text_as_json_writes_them() -> None:
    payload = schema().check(job(envs={"A": "x=y", "B": 5, "C": 1.5, "D": True, "E": ""}), "docker", now=NOW)
    assert payload.spec.env == {"A": "x=y", "B": "5", "C": "1.5", "D": "true", "E": ""}


def test_timeout_is_capped_at_the_hard_limit() -> None:
    assert schema().check(job(timeout=5), "docker", now=NOW).spec.timeout == 5
    assert schema().check(job(timeout=10**6), "docker", now=NOW).spec.timeout == 1800.0


def test_options_of_a_runner_are_validated_by_its_model_and_kept_as_given() -> None:
    assert schema().check(job(docker={"memory": "1g"}), "docker", now=NOW).spec.options == {"docker": {"memory": "1g"}}


def test_field_of_a_notifier_is_taken_when_the_notifier_is_there() -> None:
    with_notify = schema(notifiers={"notify": Notify})
    assert with_notify.check(job(notify={"succeeds": ["a@b.c"]}), "docker", now=NOW).notifications == {
        "notify": {"succeeds": ["a@b.c"]}
    }


@pytest.mark.parametrize(
    ("fields", "start_at", "expiration"),
    [
        ({"startAt": NOW + 60}, NOW + 60, None),
        ({"startAt": str(int(NOW) + 60)}, NOW + 60, None),
        ({"startAt": "2023-11-14T23:14:20+01:00"}, NOW + 60, None),
        ({"startAt": "2023-11-14T22:14:20Z"}, NOW + 60, None),
        ({"startAt": NOW - 60}, None, None),
        ({"startAt": 0, "startIn": None}, None, None),
        ({"startAt": "", "startIn": "1m"}, NOW + 60, None),
        ({"startIn": "4h30m25s"}, NOW + 16_225, None),
        ({"startIn": "240h"}, NOW + 864_000, None),
        ({"startIn": ""}, None, None),
        ({"startIn": "0s"}, None, None),
        ({"expiration": NOW - 60}, None, NOW - 60),
        ({"expiresIn": "1d"}, None, NOW + 86_400),
    ],
    ids=str,
)
def test_moments_are_understood_in_every_form(
    fields: dict[str, Json], start_at: float | None, expiration: float | None
) -> None:
    payload = schema().check(job(**fields), "docker", now=NOW)
    assert (payload.start_at, payload.expiration) == (start_at, expiration)


@pytest.mark.parametrize(
    "field_and_value",
    [
        ("notify", {}),
        ("webhooks", []),
        ("webhooks", {"succeeds": [], "fails": None, "finishes": []}),
        ("additionalDNSEntries", {}),
    ],
    ids=str,
)
def test_empty_wishes_of_later_versions_are_nothing(field_and_value: tuple[str, Json]) -> None:
    name, value = field_and_value
    assert schema().check(job(**{name: value}), "docker", now=NOW) == schema().check(job(), "docker", now=NOW)


@pytest.mark.parametrize(
    "field_and_value",
    [
        ("notify", {"succeeds": ["a@b.c"]}),
        ("webhooks", {"fails": [{"url": "http://x"}]}),
    ],
    ids=str,
)
def test_wishes_of_later_versions_are_refused_as_such(field_and_value: tuple[str, Json]) -> None:
    name, value = field_and_value
    error = refused(job(**{name: value}))
    assert error.field == name
    assert "does not have it yet" in error.message


@pytest.mark.parametrize(
    ("document", "field", "part"),
    [
        ({"command": "x"}, "image", "is missing"),
        ({"image": "x"}, "command", "is missing"),
        ({"image": None, "command": "x"}, "image", "got null"),
        ({"image": "x", "command": None}, "command", "got null"),
        (job(image=""), "image", "empty"),
        (job(image=7), "image", "got a number"),
        (job(image="a b"), "image", "without spaces"),
        (job(image="-v"), "image", "dash"),
        (job(command=7), "command", "a string, or a list of strings, got a number"),
        (job(command=["a", 7]), "command", "list of strings"),
        (job(command="echo 'open"), "command", "no closing quotation"),
        (job(command="x" * 300_000), "command", "longer than"),
        (job(envs=[]), "envs", "got a list"),
        (job(envs="A=B"), "envs", "got a string"),
        (job(envs={"A": None}), "envs.A", "got null"),
        (job(envs={"A": {"b": 1}}), "envs.A", "got an object"),
        (job(envs={"": "x"}), "envs.", "not be empty"),
        (job(envs={"A=B": "x"}), "envs.A=B", "not contain '='"),
        (job(envs={"A": "x" * 300_000}), "envs", "more than"),
        (job(metadata=[]), "metadata", "got a list"),
        (job(metadata={"a": "x" * 70_000}), "metadata", "more than"),
        (job(timeout=0), "timeout", "greater than 0, got 0"),
        (job(timeout=-1), "timeout", "greater than 0"),
        (job(timeout="5"), "timeout", "got a string"),
        (job(timeout=True), "timeout", "got a boolean"),
        (job(expiration="soon"), "expiration", "got 'soon'"),
        (job(startAt=True), "startAt", "got a boolean"),
        (job(startAt=-5), "startAt", "before 1970"),
        (job(startAt="2030-01-01T06:00:00"), "startAt", "time zone"),
        (job(startAt=NOW * 1000), "startAt", "milliseconds"),
        (job(startIn=5), "startIn", "got a number"),
        (job(startIn="soon"), "startIn", "got 'soon'"),
        (job(startIn="9999d"), "startIn", "ten years"),
        (job(startAt=NOW + 5, startIn="5s"), "startIn", "startAt as well"),
        (job(expiration=NOW + 5, expiresIn="5s"), "expiresIn", "expiration as well"),
        (job(expiresIn=""), "expiresIn", "a length of time"),
        (job(expiresIn="9999d"), "expiresIn", "ten years"),
        (job(priority=10), "priority", "from 0 to 9"),
        (job(priority=-1), "priority", "from 0 to 9"),
        (job(priority="5"), "priority", "got a string"),
        (job(expiration=-1), "expiration", "Unix time"),
        (job(expiration=1_800_000_000_000), "expiration", "milliseconds"),
        (job(retries=-1), "retries", "from 0 to 100"),
        (job(retries=101), "retries", "from 0 to 100"),
        (job(retries=1.5), "retries", "whole number"),
        (job(retries="1"), "retries", "got a string"),
        (job(retries=True), "retries", "got a boolean"),
        (job(docker=[]), "docker", "dictionary"),
        (job(docker={"memory": 5}), "docker.memory", "string"),
        (job(docker={"memori": "1g"}), "docker.memori", "did you mean 'memory'"),
        (job(docker={"limits": {"cpu": 1}}), "docker.limits.cpu", "did you mean 'cpus'"),
        (job(docker={"disks": [{"sise": 1}]}), "docker.disks.0.sise", "did you mean 'size'"),
        (job(docker={"disks": [{"size": 0}]}), "docker.disks.0.size", "expected a size"),
        (job(docker={"sizes": {"Up": 1}}), "docker.sizes.Up", "pattern"),
        (job(env={}), "env", "did you mean 'envs'"),
        (job(Timeout=5), "Timeout", "did you mean 'timeout'"),
        (job(zzz=None), "zzz", "known are "),
        ({"imgae": "x", "command": "x"}, "imgae", "did you mean 'image'"),
    ],
)
def test_what_is_wrong_is_named(document: dict[str, Json], field: str, part: str) -> None:
    error = refused(document)
    assert error.field == field
    assert part in error.message


def test_refusals_do_not_repeat_values_that_may_be_secret() -> None:
    assert "hunter2" not in str(refused(job(envs={"PASSWORD": ["hunter2"]})))


def ipv4(text: str) -> str:
    return str(IPv4Address(text))


class HostsOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    extraHosts: dict[str, Annotated[str, AfterValidator(ipv4)]] | None = None  # noqa: N815


ALIASED = PayloadSchema(
    runner_options={"docker": HostsOptions},
    notifier_payload={},
    hard_timeout=1800.0,
    option_aliases={"docker": {"additionalDNSEntries": "extraHosts"}},
)


def test_alias_is_the_option_that_it_means() -> None:
    hosts = {"db": "10.0.0.1"}

    by_alias = ALIASED.check(job(additionalDNSEntries=hosts, docker={}), "docker", now=NOW)

    assert by_alias == ALIASED.check(job(docker={"extraHosts": hosts}), "docker", now=NOW)
    assert by_alias.spec.options == {"docker": {"extraHosts": hosts}}
    assert ALIASED.check(job(additionalDNSEntries={}), "process", now=NOW).spec.options == {}


@pytest.mark.parametrize(
    ("document", "runner", "field", "part"),
    [
        (job(additionalDNSEntries={"db": "nowhere"}), "docker", "additionalDNSEntries.db", "expected 4 octets"),
        (job(additionalDNSEntries=["db"]), "docker", "additionalDNSEntries", "dictionary"),
        (job(additionalDNSEntries="db"), "docker", "additionalDNSEntries", "dictionary"),
        (job(additionalDNSEntries={"db": "10.0.0.1"}), "process", "additionalDNSEntries", "runner process"),
        (
            job(additionalDNSEntries={"db": "10.0.0.1"}, docker={"extraHosts": {"db": "10.0.0.2"}}),
            "docker",
            "additionalDNSEntries",
            "one of the two",
        ),
        (job(additionalDNSEntries={"db": "10.0.0.1"}, docker=5), "docker", "docker", "dictionary"),
        (job(additionalDNSEntry={}), "docker", "additionalDNSEntry", "did you mean 'additionalDNSEntries'"),
    ],
    ids=str,
)
def test_what_is_wrong_with_an_alias_is_told_by_its_own_name(
    document: dict[str, Json], runner: str, field: str, part: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        ALIASED.check(document, runner, now=NOW)
    assert caught.value.field == field
    assert part in caught.value.message


def test_alias_that_no_runner_has_is_refused_unless_empty() -> None:
    assert "no runner" in refused(job(additionalDNSEntries={"db": "10.0.0.1"})).message


def test_field_with_two_owners_is_an_error_of_the_setup() -> None:
    with pytest.raises(SettingsError, match="'image'"):
        schema(runners={"image": DockerOptions})
    with pytest.raises(SettingsError, match="'image'"):
        PayloadSchema(
            runner_options={"docker": DockerOptions},
            notifier_payload={},
            hard_timeout=1.0,
            option_aliases={"docker": {"image": "memory"}},
        )
    with pytest.raises(SettingsError, match="'docker'"):
        schema(notifiers={"docker": Notify})


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"image=busybox", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b"null", "null: expected a JSON object"),
        (b"[]", "a list"),
        (b'"x"', "a string"),
        (b"5", "a number"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "deeper"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, "deeper"),
    ],
)
def test_what_is_no_json_object_is_refused(body: bytes, part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        parse_json_object(body)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"a": {"b": ["x", "\\u0000"]}}', "a.b.1"),
        (b'{"a": "\\ud800"}', "a"),
        (b'{"a": {"x\\u0000": 1}}', "a"),
        (b'{"\\udfff": 1}', ""),
    ],
)
def test_text_that_cannot_be_passed_on_is_refused_wherever_it_is(body: bytes, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_json_object(body)
    assert caught.value.field == field


def test_text_of_any_language_is_taken() -> None:
    body = '\ufeff{"a": "grüße 世界 \\ud83d\\ude80 \\n\\t"}'.encode()
    assert parse_json_object(body) == {"a": "grüße 世界 🚀 \n\t"}
