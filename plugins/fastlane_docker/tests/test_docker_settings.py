"""Farms as operators write them, and how tasks find theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from fastlane_core.errors import SettingsError
from fastlane_core.settings import Settings
from fastlane_core.testing.runner_context import runner_context
from fastlane_docker.plugin import fastlane_settings
from fastlane_docker.runner import DockerRunner
from fastlane_docker.settings import DockerSettings

AS_THE_ORIGINAL_WROTE_IT = """\
[
    {
        "match": "web-[0-9]+",
        "hosts": ["one:1234", "two"],
        "maxRunning": 2
    },
    {"match": "", "hosts": ["three:2376"], "maxRunning": 7}
]"""


def load(tmp_path: Path, text: str = "", environment: Mapping[str, str] | None = None) -> DockerSettings:
    path = tmp_path / "fastlane.conf"
    path.write_text(text)
    return Settings.load(fastlane_settings(), path=path, environment=environment or {}).section(DockerSettings)


def runner_of(settings: DockerSettings) -> DockerRunner:
    return DockerRunner(runner_context(settings, deployment_id="deployment"))


@pytest.mark.parametrize("form", ["json text", "literal", "environment", "bare environment"])
async def test_farms_in_every_form(tmp_path: Path, form: str) -> None:
    text = f"DOCKER_HOSTS = '''{AS_THE_ORIGINAL_WROTE_IT}'''" if form == "json text" else ""
    text = f"DOCKER_HOSTS = {AS_THE_ORIGINAL_WROTE_IT}" if form == "literal" else text
    key = {"environment": "FASTLANE_DOCKER_HOSTS", "bare environment": "DOCKER_HOSTS"}.get(form)
    settings = load(tmp_path, text, {key: AS_THE_ORIGINAL_WROTE_IT} if key else {})

    runner = runner_of(settings)

    assert [(lane.name, lane.capacity) for lane in runner.lanes()] == [("docker:0", 2), ("docker:1", 7)]
    assert runner.lane_for("web-12-anything") == "docker:0"
    assert runner.lane_for("a-web-12") == "docker:1"
    assert sorted((await runner.availability("docker:0")).places) == ["one:1234", "two:2375"]


def test_one_farm_needs_no_list(tmp_path: Path) -> None:
    settings = load(tmp_path, 'DOCKER_HOSTS = {"match": "x", "hosts": ["one"], "maxRunning": 3, "name": "gpu"}')

    runner = runner_of(settings)

    assert [lane.name for lane in runner.lanes()] == ["docker:gpu"]
    assert runner.lane_for("y") is None
    assert "docker:gpu" in runner.routing_help()
    assert "'x'" in runner.routing_help()


def test_default_is_this_machine_s_engine(tmp_path: Path) -> None:
    (farm,) = load(tmp_path).docker_hosts

    assert (farm.match, [each.host for each in farm.hosts]) == ("", ["unix:///var/run/docker.sock"])


@pytest.mark.parametrize(
    ("farms", "told"),
    [
        ([{"hosts": []}], "DOCKER_HOSTS[0].hosts"),
        ([{"match": ""}], "DOCKER_HOSTS[0].hosts"),
        ([{"hosts": ["a"]}, {"hosts": ["b"], "match": "("}], "DOCKER_HOSTS[1].match"),
        ([{"hosts": ["a"], "maxRunning": 0}], "DOCKER_HOSTS[0].maxRunning"),
        ([{"hosts": ["a"], "maxRuning": 3}], "maxRuning"),
        ([{"hosts": ["ftp://a"]}], "ftp://a"),
        ([{"hosts": ["a:99999"]}], "a:99999"),
        ([{"hosts": ["a", "tcp://a:2375"]}], "a:2375"),
        ([{"hosts": ["a"], "name": "x"}, {"hosts": ["b"], "name": "x"}], "docker:x"),
        ([{"hosts": ["a"], "labels": {"fastlane.task": "x"}}], "DOCKER_HOSTS[0].labels.fastlane.task"),
        ([{"hosts": ["a"], "defaults": {"memory": "1k"}}], "DOCKER_HOSTS[0].defaults.memory"),
        ([{"hosts": ["a"], "defaults": {"memori": "1g"}}], "DOCKER_HOSTS[0].defaults.memori"),
        ([{"hosts": ["a"], "limits": {"memory": "much"}}], "DOCKER_HOSTS[0].limits.memory"),
        ([{"hosts": ["a"], "limits": {"memory": "1g"}, "defaults": {"memory": "2g"}}], "at most 1073741824 bytes"),
        ([{"hosts": ["a"], "allow": {"binds": ["data/*"]}}], "DOCKER_HOSTS[0].allow.binds[0]"),
        ([{"hosts": ["a"], "allow": {"binds": ["/data/../*"]}}], "DOCKER_HOSTS[0].allow.binds[0]"),
        ([{"hosts": ["a"], "allow": {"gpu": True}}], "DOCKER_HOSTS[0].allow.gpu"),
        ([], "DOCKER_HOSTS"),
        ("[{", "DOCKER_HOSTS"),
    ],
)
def test_bad_farms_are_refused_by_name(tmp_path: Path, farms: object, told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, f"DOCKER_HOSTS = {json.dumps(farms)}")

    assert told in str(caught.value)
