"""Options of jobs: what is taken, what farms permit, and how the rest is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fastlane_core.errors import InvalidInput
from fastlane_core.models import RunSpec
from fastlane_core.testing.runner_context import runner_context
from fastlane_docker.options.docker_options import DockerOptions
from fastlane_docker.runner import DockerRunner
from fastlane_docker.settings import DockerSettings


def check(options: Mapping[str, Any], **farm: object) -> None:
    settings = DockerSettings.model_validate({"docker_hosts": {"hosts": ["host"], "name": "farm", **farm}})
    runner = DockerRunner(runner_context(settings, deployment_id="deployment"))
    runner.check("docker:farm", RunSpec(image="busybox", command="", options={"docker": options}, timeout=60))


def bind(source: str, **more: object) -> dict[str, Any]:
    return {"mounts": [{"type": "bind", "source": source, "target": "/x", **more}]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"memory": "6m"}, 6 << 20),
        ({"memory": "1G"}, 1 << 30),
        ({"memory": "1.5gb"}, 3 << 29),
        ({"memory": "512 MiB"}, 512 << 20),
        ({"memory": 7000000}, 7000000),
        ({"shmSize": "1k"}, 1024),
        ({"stopGrace": 5}, 5.0),
        ({"stopGrace": "1m30s"}, 90.0),
        ({"stopSignal": "int"}, "SIGINT"),
        ({"stopSignal": "SIGRTMIN+3"}, "SIGRTMIN+3"),
        ({"stopSignal": 10}, "10"),
        ({"entrypoint": "sh -c 'a b'"}, ["sh", "-c", "a b"]),
        ({"networks": "none"}, ["none"]),
        ({"capDrop": ["cap_chown", "ALL"]}, ["CHOWN", "ALL"]),
        ({"workdir": "/a//b/"}, "/a/b"),
        ({"user": "1000:1000"}, "1000:1000"),
        ({"platform": "linux/x86_64"}, "linux/amd64"),
        ({"platform": "linux/arm/v7"}, "linux/arm/v7"),
    ],
    ids=str,
)
def test_values_are_taken_as_people_write_them(options: dict[str, Any], expected: object) -> None:
    (name,) = options

    checked = DockerOptions.model_validate(options)

    assert getattr(checked, name) == expected
    again = checked.model_dump(mode="json", exclude_unset=True)
    assert DockerOptions.model_validate(again) == checked


@pytest.mark.parametrize(
    ("options", "at", "told"),
    [
        ({"memory": "lots"}, "memory", "such as 512m"),
        ({"memory": ""}, "memory", "such as 512m"),
        ({"memory": "-1"}, "memory", "such as 512m"),
        ({"memory": "5m"}, "memory", "greater than or equal to 6291456"),
        ({"memory": True}, "memory", "integer"),
        ({"cpus": 0}, "cpus", "greater"),
        ({"cpus": "1"}, "cpus", "number"),
        ({"shmSize": 0}, "shmSize", "greater"),
        ({"workdir": "relative"}, "workdir", "absolute path"),
        ({"workdir": "/a/../b"}, "workdir", "absolute path"),
        ({"user": "a b"}, "user", "pattern"),
        ({"entrypoint": "open 'quote"}, "entrypoint", "quotation"),
        ({"gpus": "some"}, "gpus", "Gpus"),
        ({"gpus": {"count": 1, "deviceIds": ["0"]}}, "gpus.deviceIds", "either"),
        ({"gpus": 0}, "gpus.deviceIds", "either"),
        ({"ulimits": {"nofile": "many"}}, "ulimits.nofile", "Ulimit"),
        ({"ulimits": {"nofile": {"soft": 1}}}, "ulimits.nofile.hard", "required"),
        ({"ulimits": {"nofile": {"soft": 2, "hard": 1}}}, "ulimits", "at most hard"),
        ({"ulimits": {"rtprio": 5}}, "ulimits", "no 'rtprio'"),
        ({"mounts": [{"type": "bind", "target": "/x"}]}, "mounts.0.source", "absolute path"),
        (bind("data"), "mounts.0.source", "absolute path"),
        (bind("/data/../etc"), "mounts.0.source", "absolute path"),
        (bind("/data/./x"), "mounts.0.source", "absolute path"),
        (bind("/data\n"), "mounts.0.source", "absolute path"),
        (bind("/data", target="x"), "mounts.0.target", "absolute path"),
        (bind("/data", target="/"), "mounts.0.target", "below /"),
        (bind("/data", size="1m"), "mounts.0.size", "only a tmpfs"),
        ({"mounts": [{"type": "npipe", "target": "/x"}]}, "mounts.0.type", "'bind', 'volume' or 'tmpfs'"),
        ({"mounts": [{"type": "volume", "source": "../x", "target": "/x"}]}, "mounts.0.source", "volume's name"),
        ({"mounts": [{"type": "volume", "source": "/etc", "target": "/x"}]}, "mounts.0.source", "volume's name"),
        ({"mounts": [{"type": "tmpfs", "source": "a", "target": "/x"}]}, "mounts.0.source", "no source"),
        ({"mounts": [{"type": "tmpfs", "target": "/x"}, {"type": "tmpfs", "target": "/x/"}]}, "mounts", "two are at"),
        ({"networks": "container:abc"}, "networks.0", "another container"),
        ({"networks": ["a b"]}, "networks.0", "name of a network"),
        ({"networks": ["host", "x"]}, "networks", "together"),
        ({"networks": ["x", "x"]}, "networks", "different"),
        ({"extraHosts": {"a": "nowhere"}}, "extraHosts.a", "IP address"),
        ({"extraHosts": {"a b": "10.0.0.1"}}, "extraHosts.a b.[key]", "pattern"),
        ({"labels": {"Fastlane.task": "x"}}, "labels.Fastlane.task.[key]", "Fastlane's own"),
        ({"labels": {"": "x"}}, "labels..[key]", "name for the label"),
        ({"labels": {"a": 1}}, "labels.a", "string"),
        ({"readOnly": "yes"}, "readOnly", "boolean"),
        ({"init": 1}, "init", "boolean"),
        ({"capDrop": ["net raw"]}, "capDrop.0", "pattern"),
        ({"devices": ["dev/x"]}, "devices", "absolute path"),
        ({"devices": ["/dev/x:y"]}, "devices", "expected /dev/x"),
        ({"devices": ["/dev/x:/dev/y:q"]}, "devices", "r, w and m"),
        ({"platform": "linux arm"}, "platform", "pattern"),
        ({"stopSignal": "SIGNOTHING"}, "stopSignal", "such as SIGTERM"),
        ({"stopSignal": 65}, "stopSignal", "such as SIGTERM"),
        ({"stopGrace": "soon"}, "stopGrace", "such as 30s"),
        ({"stopGrace": "2h"}, "stopGrace", "less than or equal to 3600"),
        ({"stopGrace": -1}, "stopGrace", "greater"),
        ({"volumes": []}, "volumes", "not permitted"),
    ],
    ids=str,
)
def test_what_is_no_option_is_told_by_its_field(options: dict[str, Any], at: str, told: str) -> None:
    with pytest.raises(ValueError, match="validation error") as caught:
        DockerOptions.model_validate(options)

    (error,) = caught.value.errors()  # type: ignore[attr-defined]
    assert ".".join(str(part) for part in error["loc"]) == at
    assert told in error["msg"]


@pytest.mark.parametrize(
    ("options", "at"),
    [
        (bind("/data"), "mounts.0.source"),
        ({"mounts": [{"type": "volume", "source": "cache", "target": "/x"}]}, "mounts.0.source"),
        ({"networks": "host"}, "networks.0"),
        ({"networks": ["bridge", "other"]}, "networks.1"),
        ({"devices": ["/dev/fuse"]}, "devices.0"),
        ({"capAdd": ["NET_RAW"]}, "capAdd.0"),
        ({"securityOpt": ["no-new-privileges:false"]}, "securityOpt.0"),
        ({"securityOpt": ["no-new-privileges", "seccomp=unconfined"]}, "securityOpt.1"),
        ({"gpus": "all"}, "gpus"),
        ({"privileged": True}, "privileged"),
    ],
    ids=str,
)
def test_what_reaches_the_host_is_refused_unless_allowed(options: dict[str, Any], at: str) -> None:
    with pytest.raises(InvalidInput, match="the farm farm does not allow") as caught:
        check(options)

    assert caught.value.field == f"docker.{at}"
    check({}, defaults=options)


@pytest.mark.parametrize(
    "options",
    [
        {"networks": "none"},
        {"networks": "bridge"},
        {"privileged": False},
        {"securityOpt": ["no-new-privileges"]},
        {"capDrop": ["ALL"]},
        {"user": "root"},
        {"mounts": [{"type": "tmpfs", "target": "/x", "size": "1m"}, {"type": "volume", "target": "/y"}]},
        {"extraHosts": {"host": "host-gateway"}, "labels": {"a": ""}, "ulimits": {"nofile": 5}, "init": True},
    ],
    ids=str,
)
def test_what_stays_in_the_container_needs_no_permission(options: dict[str, Any]) -> None:
    check(options)


@pytest.mark.parametrize(
    ("options", "allow", "allowed"),
    [
        (bind("/data/a"), {"binds": ["/data/*"]}, True),
        (bind("/data//a/"), {"binds": ["/data/*"]}, True),
        (bind("//data/a"), {"binds": ["/data/*"]}, True),
        (bind("/data/a/b"), {"binds": ["/data/*"]}, False),
        (bind("/data/a/b"), {"binds": ["/data/**"]}, True),
        (bind("/data"), {"binds": ["/data/**"]}, False),
        (bind("/data"), {"binds": ["/data"]}, True),
        (bind("/database"), {"binds": ["/data", "/data/**"]}, False),
        (bind("/x/data/a"), {"binds": ["/data/*"]}, False),
        (bind("/dataX"), {"binds": ["/data."]}, False),
        (bind("/"), {"binds": ["/**", "/*"]}, True),
        (bind("/data/a"), {"binds": ["/data/*:ro"]}, False),
        (bind("/data/a", readOnly=True), {"binds": ["/data/*:ro"]}, True),
        (bind("/data/a", readOnly=True), {"binds": ["/data/*"]}, True),
        ({"mounts": [{"type": "volume", "source": "cache-1", "target": "/x"}]}, {"volumes": ["cache-?"]}, True),
        ({"mounts": [{"type": "volume", "source": "cache-10", "target": "/x"}]}, {"volumes": ["cache-?"]}, False),
        ({"mounts": [{"type": "volume", "source": "cache", "target": "/x"}]}, {"binds": ["/**"]}, False),
        ({"networks": "jobs-1"}, {"networks": ["jobs-*"]}, True),
        ({"networks": "host"}, {"networks": ["*"]}, False),
        ({"networks": "host"}, {"networks": ["host"]}, True),
        ({"networks": "abc123"}, {"networks": ["*"]}, False),
        ({"networks": "abc123"}, {"networks": ["abc123"]}, True),
        ({"devices": ["/dev/nvidia0:/dev/x:r"]}, {"devices": ["/dev/nvidia*"]}, True),
        ({"devices": ["/dev/sda:/dev/nvidia0"]}, {"devices": ["/dev/nvidia*"]}, False),
        ({"capAdd": ["net_raw"]}, {"capAdd": ["CAP_NET_*"]}, True),
        ({"capAdd": ["ALL"]}, {"capAdd": ["NET_*"]}, False),
        ({"securityOpt": ["seccomp=unconfined"]}, {"securityOpt": ["seccomp=*"]}, True),
        ({"securityOpt": ["seccomp:unconfined"]}, {"securityOpt": ["seccomp=*"]}, False),
        ({"gpus": 1}, {"gpus": True}, True),
        ({"privileged": True}, {"privileged": True}, True),
    ],
    ids=str,
)
def test_permissions_are_given_by_pattern(options: dict[str, Any], allow: dict[str, Any], allowed: bool) -> None:
    if allowed:
        check(options, allow=allow)
    else:
        with pytest.raises(InvalidInput, match="does not allow"):
            check(options, allow=allow)


@pytest.mark.parametrize(
    ("limits", "enough", "too_much", "told"),
    [
        ({"memory": "1g"}, {"memory": "1g"}, {"memory": "1025m"}, "at most 1073741824 bytes, got 1074790400 bytes"),
        ({"cpus": 2}, {"cpus": 2}, {"cpus": 2.5}, "at most 2, got 2.5"),
        ({"shmSize": "128m"}, {"shmSize": "128m"}, {"shmSize": "129m"}, "at most 134217728 bytes"),
        ({"stopGrace": "1m"}, {"stopGrace": "60s"}, {"stopGrace": "61s"}, "at most 60 s, got 61 s"),
        ({"gpus": 2}, {"gpus": 2}, {"gpus": 3}, "at most 2, got 3"),
        ({"gpus": 2}, {"gpus": {"deviceIds": ["a", "b"]}}, {"gpus": {"deviceIds": ["a", "b", "c"]}}, "at most 2"),
        ({"gpus": 2}, {"gpus": 1}, {"gpus": "all"}, "at most 2, got all"),
    ],
    ids=str,
)
def test_limits_are_told_to_whoever_asks_for_more(
    limits: dict[str, Any], enough: dict[str, Any], too_much: dict[str, Any], told: str
) -> None:
    allow = {"gpus": True}
    check(enough, limits=limits, allow=allow)
    check({}, limits=limits)

    with pytest.raises(InvalidInput, match=told) as caught:
        check(too_much, limits=limits, allow=allow)

    (name,) = limits
    assert caught.value.field == f"docker.{name}"


def test_own_options_go_on_top_of_the_defaults() -> None:
    defaults = DockerOptions.model_validate(
        {
            "memory": "1g",
            "user": "nobody",
            "labels": {"a": "below", "b": "below"},
            "capDrop": ["ALL"],
            "entrypoint": ["sh"],
            "mounts": [{"type": "tmpfs", "target": "/x"}, {"type": "tmpfs", "target": "/y"}],
        }
    )
    own = DockerOptions.model_validate(
        {
            "memory": None,
            "user": "root",
            "labels": {"b": "own"},
            "capDrop": ["ALL", "CHOWN"],
            "entrypoint": [],
            "mounts": [{"type": "tmpfs", "target": "/y", "size": "1m"}],
        }
    )

    both = own.on_top_of(defaults)

    assert (both.memory, both.user, both.entrypoint) == (1 << 30, "root", [])
    assert both.labels == {"a": "below", "b": "own"}
    assert both.capDrop == ["ALL", "CHOWN"]
    assert [(mount.target, mount.size) for mount in both.mounts or ()] == [("/x", None), ("/y", 1 << 20)]
    assert DockerOptions().on_top_of(defaults) == defaults
