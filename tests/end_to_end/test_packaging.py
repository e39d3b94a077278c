"""What users install: wheels, in an environment of their own, without the tools of development."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 600


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of a fresh installation are: core and the Docker plugin, by plain pip, from built wheels."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=PATIENCE)
    pip = [str(environment / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    sources = [str(ROOT), str(ROOT / "plugins/fastlane_docker")]
    wheels = folder / "wheels"
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(wheels), *sources], check=True, timeout=PATIENCE)
    subprocess.run([*pip, "install", *map(str, wheels.iterdir())], check=True, timeout=PATIENCE)
    return environment / "bin"


def run(programs: Path, folder: Path, *arguments: str) -> str:
    command = [str(programs / "fastlane"), *arguments]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=PATIENCE)
    return done.stdout


def test_an_installation_by_pip_knows_its_plugins(programs: Path, tmp_path: Path) -> None:
    assert "fastlane-docker" in run(programs, tmp_path, "version")
    assert "#DOCKER_HOSTS" in run(programs, tmp_path, "config")


def test_everything_that_core_needs_at_run_time_is_in_its_wheel(programs: Path) -> None:
    script = (
        "import importlib.resources as r, fastlane_core;"
        "root = r.files('fastlane_core'); print((root / 'web/stream.html').is_file(), (root / 'py.typed').is_file())"
    )
    command = [str(programs / "python"), "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE, cwd="/")
    assert done.stdout.split() == ["True", "True"]
