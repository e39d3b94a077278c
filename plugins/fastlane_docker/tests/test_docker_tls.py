"""The runner contract on a real engine behind TLS."""

from __future__ import annotations

import pytest

from fastlane_core.contracts.storage import Storage
from fastlane_core.models import RunHandle
from fastlane_core.testing.runner_context import runner_context
from fastlane_core.testing.runner_fixtures import BuildRunner
from fastlane_core.testing.runner_suite import RunnerSuite
from fastlane_docker.runner import DockerRunner
from fastlane_docker.settings import DockerSettings
from tests.services.fixtures import SharedTlsEngine
from tests.services.registry import Registry

pytestmark = pytest.mark.services


class TestDockerRunnerOverTls(RunnerSuite):
    @pytest.fixture
    def build_runner(self, tls_engine: SharedTlsEngine, storage: Storage) -> BuildRunner:
        farm = {"hosts": [tls_engine.url], "maxRunning": 8, "tls": tls_engine.tls}
        settings = DockerSettings.model_validate({"docker_hosts": [farm]})
        return lambda deployment_id: DockerRunner(
            runner_context(settings, deployment_id=deployment_id, storage=storage)
        )

    @pytest.fixture
    def unknown_handle(self, tls_engine: SharedTlsEngine) -> RunHandle:
        data = {"host": tls_engine.url.removeprefix("https://"), "container": "0" * 64, "name": "fastlane-job-none"}
        return RunHandle(runner="docker", version=1, data=data)

    @pytest.fixture
    def missing_image(self, registry: Registry) -> str | None:
        return f"{registry.address}/no/such-image:none"
