"""The runner contract on a real engine."""

from __future__ import annotations

import pytest

from fastlane_core.models import RunHandle
from fastlane_core.testing.runner_fixtures import BuildRunner
from fastlane_core.testing.runner_suite import RunnerSuite
from fastlane_docker.runner import DockerRunner
from fastlane_docker.settings import DockerSettings, FarmSettings
from tests.services.fixtures import SharedEngine
from tests.services.registry import Registry

pytestmark = pytest.mark.services


class TestDockerRunner(RunnerSuite):
    @pytest.fixture
    def build_runner(self, docker_engine: SharedEngine) -> BuildRunner:
        settings = DockerSettings(docker_hosts=[FarmSettings(hosts=[docker_engine.url], maxRunning=8)])
        return lambda deployment_id: DockerRunner(settings, deployment_id)

    @pytest.fixture
    def unknown_handle(self, docker_engine: SharedEngine) -> RunHandle:
        data = {"host": docker_engine.url.removeprefix("tcp://"), "container": "0" * 64, "name": "fastlane-job-none"}
        return RunHandle(runner="docker", version=1, data=data)

    @pytest.fixture
    def missing_image(self, registry: Registry) -> str | None:
        return f"{registry.address}/no/such-image:none"
