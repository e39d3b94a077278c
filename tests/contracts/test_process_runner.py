"""The process runner passes the suite of all runners."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastlane_core.builtin.process.runner import ProcessRunner
from fastlane_core.builtin.process.settings import ProcessSettings
from fastlane_core.contracts.runner import Runner
from fastlane_core.models import RunHandle
from fastlane_core.testing.runner_context import runner_context
from fastlane_core.testing.runner_fixtures import BuildRunner
from fastlane_core.testing.runner_suite import RunnerSuite


class TestProcessRunner(RunnerSuite):
    @pytest.fixture
    def build_runner(self, tmp_path: Path) -> BuildRunner:
        settings = ProcessSettings(process_folder=str(tmp_path / "process"), process_max_running=8)

        def build(deployment_id: str) -> Runner:
            return ProcessRunner(runner_context(settings, deployment_id=deployment_id))

        return build

    @pytest.fixture
    def unknown_handle(self) -> RunHandle:
        return RunHandle(runner="process", version=1, data={"execution_id": "00000000-0000-4000-8000-000000000000"})
