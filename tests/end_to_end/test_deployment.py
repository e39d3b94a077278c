"""The Dockerfile and the compose sample: what somebody who deploys Fastlane starts from."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastlane_core.plugins import load_application_parts
from fastlane_core.settings import GeneralSettings
from tests.end_to_end.service import until
from tests.services.debian import program
from tests.services.docker_engine import DockerEngine
from tests.services.fixtures import started_engine
from tests.services.images import add_python, can_make_python
from tests.services.ports import free_port
from tests.services.requirement import missing

pytestmark = pytest.mark.services

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "docker-compose-sample.yml"
#: The user and the group of the image, by which an engine lets it use its socket.
USER = 10001
#: Seconds: far beyond what anything takes on a busy machine.
PATIENCE = 300
IMAGE = "fastlane:test"
HEALTHCHECK = ("/opt/fastlane/bin/python", "/opt/fastlane/healthcheck.py")


class Engine:
    """Docker's command line, for one engine of the tests."""

    def __init__(self, engine: DockerEngine) -> None:
        self.socket = Path(engine.socket_url.removeprefix("unix://"))
        #: Without the settings of whoever runs the tests. The classic builder is in every engine.
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("DOCKER_")},
            "DOCKER_HOST": engine.socket_url,
            "DOCKER_BUILDKIT": "0",
        }

    def run(self, *arguments: str, fails: bool = False) -> str:
        """What `docker <arguments>` prints; fails the test unless it succeeds, or ends with 1 where `fails` is set."""
        done = subprocess.run(
            ["docker", *arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == (1 if fails else 0), f"docker {' '.join(arguments)}: {done.stdout[-4000:]}"
        return done.stdout.strip()

    def inspect(self, name: str) -> Any:
        """What the engine knows of a container or an image."""
        return json.loads(self.run("inspect", name))[0]

    def until_healthy(self, name: str) -> None:
        """Wait until the image's health check finds the container well."""

        def healthy() -> bool:
            state = self.inspect(name)["State"]
            assert state["Running"], f"{name} has ended: {state}; {self.run('logs', name)}"
            return bool(state["Health"]["Status"] == "healthy")

        until(
            lambda: f"{name} is healthy: {self.inspect(name)['State']}; {self.run('logs', name)}",
            healthy,
            patience=PATIENCE,
            pause=0.5,
        )


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that the image is built on, and that runs everything; all of it goes with the engine."""
    if program("docker") is None:
        missing("Docker", "its command line is not installed")
    if not can_make_python():
        missing("the image debian-python", "debootstrap is not installed, or this is not root")
    folder = tmp_path_factory.mktemp("deployment-engine")
    with started_engine(folder, arguments=("--group", str(USER))) as started:
        add_python(started.socket_url)
        yield Engine(started)


@pytest.fixture(scope="module")
def image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image, built without a network: on a base made here, with two of the three plugins."""
    context = tmp_path_factory.mktemp("deployment") / "context"
    copy_sources(context)
    version = engine.run(
        "run", "--rm", "debian-python", "python3", "-c", "import platform; print(platform.python_version())"
    )
    gather_wheels(context, version)
    (context / "secrets.env").write_text("PASSWORD=hush\n")
    settings = ("BASE=debian-python", "PIP_NO_INDEX=1", "PLUGINS=docker,redis")
    arguments = [each for setting in settings for each in ("--build-arg", setting)]
    engine.run("build", "--network", "none", "--tag", IMAGE, *arguments, str(context))
    shutil.rmtree(context)
    return IMAGE


def copy_sources(context: Path) -> None:
    """What a clone has, as far as it matters, and no wheels of whoever works in this one."""
    context.mkdir()
    for name in (".dockerignore", "Dockerfile", "LICENSE", "README.md", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, context)
    for name in ("deploy", "fastlane_core", "plugins", "tests"):
        shutil.copytree(ROOT / name, context / name, ignore=shutil.ignore_patterns("__pycache__"))


def gather_wheels(context: Path, python: str) -> None:
    """Everything that the build needs, for the Python of the base, into `dist/`."""
    uv = Path(sys.executable).with_name("uv")
    wanted = context / "wanted.in"
    wanted.write_text("./[mongo,redis]\n./plugins/fastlane_docker\nhatchling\n")
    compile_ = [str(uv), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--python-version", python]
    found = subprocess.run(
        [*compile_, "--constraint", "constraints.txt", wanted.name],
        cwd=context,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    chosen = context / "chosen.txt"
    chosen.write_text("".join(line + "\n" for line in found.stdout.splitlines() if "==" in line))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    release = ".".join(python.split(".")[:2])
    subprocess.run(
        [*pip, "--only-binary=:all:", "--python-version", release, "--dest", "dist", "--requirement", chosen.name],
        cwd=context,
        timeout=PATIENCE,
        check=True,
    )


@dataclass(frozen=True)
class Deployment:
    """An API and a worker, each in a container."""

    engine: Engine
    #: Where the API is from outside.
    url: str


@pytest.fixture(scope="module")
def deployment(engine: Engine, image: str) -> Deployment:
    """An API and a worker on one SQLite file, hardened as in the sample; well when the image says so."""
    port = free_port()
    farm = json.dumps([{"match": "", "hosts": ["unix:///run/engine/docker.sock"], "maxRunning": 2}])
    options = [
        *("--detach", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
        *("--volume", "data:/var/lib/fastlane", "--health-interval", "1s", "--env", f"FASTLANE_DOCKER_HOSTS={farm}"),
    ]
    engine.run("run", *options, "--name", "api", "--publish", f"127.0.0.1:{port}:10000", image)
    engine.run(
        "run", *options, "--name", "worker", "--volume", f"{engine.socket}:/run/engine/docker.sock", image, "worker"
    )
    engine.until_healthy("api")
    engine.until_healthy("worker")
    return Deployment(engine, f"http://127.0.0.1:{port}")


def curl(*arguments: str) -> str:
    command = ["curl", "--silent", "--show-error", "--fail-with-body", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


def test_containers_of_the_image_run_a_job(deployment: Deployment) -> None:
    payload = {"image": "busybox", "command": "echo from inside"}
    answer = json.loads(curl("-d", json.dumps(payload), f"{deployment.url}/tasks/hello"))
    job = f"{deployment.url}/tasks/hello/jobs/{answer['jobId']}"

    def ended() -> Any:
        (execution,) = json.loads(curl(job))["job"]["executions"]
        return execution if execution["status"] not in ("enqueued", "pulling", "running") else None

    execution = until(lambda: f"the job has ended: {deployment.engine.run('logs', 'worker')}", ended, PATIENCE, 0.2)
    assert (execution["status"], execution["exitCode"]) == ("done", 0)
    assert curl(f"{job}/stdout") == "from inside\n"


@pytest.mark.parametrize("name", ["api", "worker"])
def test_processes_of_the_image_are_not_root(deployment: Deployment, name: str) -> None:
    pid = deployment.engine.inspect(name)["State"]["Pid"]
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert status["Uid"].split() == status["Gid"].split() == [str(USER)] * 4
    assert int(status["CapEff"], 16) == 0


def test_the_health_check_notices_an_api_that_hangs(deployment: Deployment) -> None:
    run = deployment.engine.run
    run("kill", "--signal", "STOP", "api")
    try:
        assert "does not answer" in run("exec", "api", *HEALTHCHECK, fails=True)
    finally:
        run("kill", "--signal", "CONT", "api")
    deployment.engine.until_healthy("api")
    assert run("exec", "api", *HEALTHCHECK) == "well"


def test_the_health_check_finds_no_life_where_there_is_none(deployment: Deployment) -> None:
    """Also where others of the deployment live."""
    command = ("run", "--rm", "--volume", "data:/var/lib/fastlane", "--entrypoint", HEALTHCHECK[0], IMAGE)
    assert "no worker or API of this container" in deployment.engine.run(*command, HEALTHCHECK[1], fails=True)


def test_the_image_holds_what_was_asked_for_and_no_tools_of_its_build(engine: Engine, image: str) -> None:
    names = ("fastlane_docker", "redis", "pymongo", "pip", "hatchling")
    script = f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])"
    assert engine.run("run", "--rm", "--entrypoint", "/opt/fastlane/bin/python", image, "-c", script) == str(
        ["fastlane_docker", "redis"]
    )
    find = ("run", "--rm", "--user", "0", "--entrypoint", "find", image, "/", "-xdev", "-regex")
    assert engine.run(*find, r".*/\(secrets.env\|dist\|wheels\|end_to_end\)") == ""
    added = engine.inspect(image)["Size"] - engine.inspect("debian-python")["Size"]
    assert added < 60_000_000


def test_the_image_has_the_versions_of_the_constraints(engine: Engine, image: str) -> None:
    script = "from importlib.metadata import distributions as d; [print(f'{x.name}=={x.version}') for x in d()]"
    installed = engine.run("run", "--rm", "--entrypoint", "/opt/fastlane/bin/python", image, "-c", script).splitlines()
    own = {each for each in installed if each.startswith("fastlane")}
    assert {canonical(each) for each in installed if each not in own} <= {
        canonical(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert len(own) == 2


def canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", requirement.partition("==")[0]).lower() + "==" + requirement.partition("==")[2]


def test_sigterm_ends_containers_of_the_image_cleanly(deployment: Deployment) -> None:
    """The last one of those that share the deployment."""
    deployment.engine.run("stop", "--time", "60", "api", "worker")
    states = [deployment.engine.inspect(name)["State"] for name in ("api", "worker")]
    assert [(state["Status"], state["ExitCode"]) for state in states] == [("exited", 0), ("exited", 0)]


@pytest.fixture(scope="module")
def sample() -> Mapping[str, Any]:
    """The services of the sample, as docker-compose understands them."""
    if program("docker-compose") is None:
        missing("docker-compose", "it is not installed")
    command = ["docker-compose", "--file", str(SAMPLE), "config"]
    # Nothing of a developer's own settings or modules.
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    services: Mapping[str, Any] = yaml.safe_load(done.stdout)["services"]
    return services


def test_the_sample_publishes_its_ports_on_this_machine_alone(sample: Mapping[str, Any]) -> None:
    published = {name: service["ports"] for name, service in sample.items() if "ports" in service}
    assert {name: [str(each).removesuffix("/tcp") for each in ports] for name, ports in published.items()} == {
        "api": ["127.0.0.1:10000:10000"],
        "redis": ["127.0.0.1:10100:6379"],
        "mongo": ["127.0.0.1:10101:27017"],
    }


def test_services_of_the_sample_come_back_and_wait_for_each_other(sample: Mapping[str, Any]) -> None:
    assert {name: service["restart"] for name, service in sample.items()} == dict.fromkeys(
        ("api", "engine", "mongo", "redis", "worker"), "unless-stopped"
    )
    needed = {name: set(service["depends_on"]) for name, service in sample.items() if "depends_on" in service}
    assert needed == {"api": {"mongo", "redis"}, "worker": {"engine", "mongo", "redis"}}
    conditions = [each for name in needed for each in sample[name]["depends_on"].values()]
    assert all(each["condition"] == "service_healthy" for each in conditions)
    # The image has the check of the other two.
    assert {name for name, service in sample.items() if "healthcheck" in service} == {"engine", "mongo", "redis"}


def test_jobs_of_the_sample_share_no_network_with_its_servers(sample: Mapping[str, Any]) -> None:
    networks = {name: set(service["networks"]) for name, service in sample.items()}
    assert not any(networks["engine"] & others for name, others in networks.items() if name != "engine")
    hosts = [each for each in sample["engine"]["command"] if each.startswith("--host")]
    assert hosts == ["--host=unix:///run/engine/docker.sock"]


@pytest.mark.parametrize("name", ["api", "worker"])
def test_fastlane_takes_the_settings_of_the_sample(sample: Mapping[str, Any], name: str) -> None:
    settings, plugins = load_application_parts(None, sample[name]["environment"])
    general = settings.section(GeneralSettings)
    assert (general.storage, general.queue) == ("mongo", "redis")
    assert "docker" in {each.name for each in plugins.runners()}
