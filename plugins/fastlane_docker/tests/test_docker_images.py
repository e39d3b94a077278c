"""Images on real engines: when they are pulled, from which registries, what is told meanwhile, and where runs go."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import docker
import pytest
import requests

from fastlane_core.errors import ImageNotFound, PullFailed
from fastlane_core.models import JsonObject, Progress
from fastlane_core.testing.runner_driver import DEADLINE, RunDriver, StartedRun, ignore_progress
from fastlane_docker.engines.addresses import parse_address
from fastlane_docker.runner import DockerRunner
from tests.services.docker_engine import DockerEngine
from tests.services.fixtures import SharedEngine
from tests.services.registry import PASSWORD, USER, Registry

pytestmark = pytest.mark.services

Build = Callable[..., DockerRunner]
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
#: Pushes an image with so many random bytes, which the engine does not have afterwards; its reference.
Push = Callable[..., str]


async def opened(runner: DockerRunner) -> DockerRunner:
    await runner.open()
    return runner


def digest_of(sdk: docker.DockerClient, image: str) -> str:
    repository = image.rpartition(":")[0]
    (digest,) = (each for each in sdk.images.get(image).attrs["RepoDigests"] if each.startswith(f"{repository}@"))
    return str(digest)


def pulls_since(sdk: docker.DockerClient, begun: float) -> Counter[str]:
    events = sdk.events(
        since=int(begun), until=int(time.time()) + 1, filters={"type": "image", "event": "pull"}, decode=True
    )
    return Counter(event["id"] for event in events)


def policy(name: str) -> Mapping[str, JsonObject]:
    return {"docker": {"pullPolicy": name}}


@pytest.fixture
def two_platforms(registry: Registry, push: Push) -> str:
    """A name under which the registry has an image for amd64 and, with another configuration, one for arm64."""
    image = push()
    repository, _, tag = image.partition("/")[2].rpartition(":")
    base = f"http://{registry.address}/v2/{repository}"

    def put_manifest(name: str, kind: str, content: object) -> str:
        answer = requests.put(
            f"{base}/manifests/{name}", headers={"Content-Type": kind}, data=json.dumps(content), timeout=DEADLINE
        )
        answer.raise_for_status()
        return str(answer.headers["Docker-Content-Digest"])

    manifest = requests.get(f"{base}/manifests/{tag}", headers={"Accept": MANIFEST}, timeout=DEADLINE).json()
    configuration = requests.get(f"{base}/blobs/{manifest['config']['digest']}", timeout=DEADLINE).json()
    entries = []
    for architecture in ("amd64", "arm64"):
        blob = json.dumps({**configuration, "architecture": architecture}).encode()
        digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        upload = requests.post(f"{base}/blobs/uploads/", timeout=DEADLINE).headers["Location"]
        requests.put(upload, params={"digest": digest}, data=blob, timeout=DEADLINE).raise_for_status()
        content = {**manifest, "config": {**manifest["config"], "digest": digest, "size": len(blob)}}
        entries.append(
            {
                "mediaType": MANIFEST,
                "digest": put_manifest(architecture, MANIFEST, content),
                "size": len(json.dumps(content)),
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    both = {"schemaVersion": 2, "mediaType": MANIFEST_LIST, "manifests": entries}
    put_manifest("both", MANIFEST_LIST, both)
    return f"{registry.address}/{repository}:both"


async def test_image_of_the_wanted_platform_is_pulled(
    runner: DockerRunner, runs: RunDriver, two_platforms: str, sdk: docker.DockerClient
) -> None:
    async def architecture(platform: str | None) -> str:
        options: Mapping[str, JsonObject] = {"docker": {"platform": platform}}
        request = await runs.request(runner, "true", image=two_platforms, options=options)
        run = await runs.start_request(runner, request)
        assert (await run.wait()).exit_code == 0
        return str(sdk.images.get(two_platforms).attrs["Architecture"])

    assert await architecture(None) == "amd64"
    assert await architecture("linux/arm64") == "arm64"
    assert await architecture("linux/amd64") == "amd64"


async def test_image_whose_name_went_to_another_platform_before_the_start_is_pulled_once_more(
    runner: DockerRunner, runs: RunDriver, two_platforms: str, sdk: docker.DockerClient
) -> None:
    arm, amd = [
        await runs.request(runner, "true", image=two_platforms, options={"docker": {"platform": f"linux/{each}"}})
        for each in ("arm64", "amd64")
    ]
    await runner.prepare(arm, ignore_progress)
    await runner.prepare(amd, ignore_progress)

    handle = await runner.start(arm)

    image = sdk.containers.get(str(handle.data["container"])).image
    assert image is not None
    assert image.attrs["Architecture"] == "arm64"


async def test_image_of_another_platform_is_not_taken_for_the_wanted_one(runner: DockerRunner, runs: RunDriver) -> None:
    options: Mapping[str, JsonObject] = {"docker": {"platform": "linux/s390x", "pullPolicy": "never"}}
    request = await runs.request(runner, "true", options=options)

    with pytest.raises(ImageNotFound, match="has no image busybox:latest for linux/s390x"):
        await runner.prepare(request, ignore_progress)


# Names


async def test_missing_image_is_pulled_once_however_many_want_it(
    runner: DockerRunner, runs: RunDriver, push: Push, sdk: docker.DockerClient
) -> None:
    image = push()
    told: list[Progress] = []
    request = await runs.request(runner, "echo pulled", image=image)
    begun = time.time()

    await asyncio.gather(*(runner.prepare(request, told.append) for _ in range(8)))

    run = await runs.start_request(runner, request)
    assert (await run.written()).stdout == b"pulled\n"
    assert any(image in progress.message for progress in told)
    assert pulls_since(sdk, begun)[image] == 1


@pytest.mark.parametrize("form", ["{name}@{digest}", "{name}:tag@{digest}"])
async def test_image_is_pulled_by_its_digest(
    runner: DockerRunner, runs: RunDriver, push: Push, sdk: docker.DockerClient, form: str
) -> None:
    image = push()
    await runner.prepare(await runs.request(runner, "true", image=image), ignore_progress)
    name, _, digest = digest_of(sdk, image).partition("@")
    sdk.images.remove(image)

    run = await runs.start_request(
        runner, await runs.request(runner, "echo by digest", image=form.format(name=name, digest=digest))
    )

    assert (await run.written()).stdout == b"by digest\n"


async def test_name_without_a_tag_means_latest(
    runner: DockerRunner, runs: RunDriver, push: Push, sdk: docker.DockerClient
) -> None:
    image = push(tag="latest")

    run = await runs.start_request(
        runner, await runs.request(runner, "echo latest", image=image.removesuffix(":latest"))
    )

    assert (await run.written()).stdout == b"latest\n"
    assert sdk.images.get(image)


@pytest.mark.parametrize(
    "name", ["no/such-image", "no/such-image:v2", "UPPER/case", "a b", "../containers", ":", "a@sha256:12"]
)
async def test_image_that_is_not_to_be_had_is_named(
    runner: DockerRunner, runs: RunDriver, registry: Registry, name: str
) -> None:
    image = f"{registry.address}/{name}"
    request = await runs.request(runner, "true", image=image)

    with pytest.raises(ImageNotFound) as caught:
        await runner.prepare(request, ignore_progress)

    assert image in str(caught.value)


# When


async def test_image_that_is_there_is_not_pulled(
    runner: DockerRunner, runs: RunDriver, push: Push, sdk: docker.DockerClient
) -> None:
    request = await runs.request(runner, "true", image=push())
    await runner.prepare(request, ignore_progress)
    begun, told = time.time() + 1, list[Progress]()
    await asyncio.sleep(begun - time.time())

    await runner.prepare(request, told.append)

    assert told == []
    assert not pulls_since(sdk, begun)[request.spec.image]


async def test_always_pulls_a_tag_that_was_moved(
    build_runner: Build, docker_engine: SharedEngine, runs: RunDriver, push: Push, sdk: docker.DockerClient
) -> None:
    farm = {"hosts": [docker_engine.url], "pullPolicy": "always"}
    runner = await opened(build_runner(docker_hosts=[farm]))
    image = push()
    await runner.prepare(await runs.request(runner, "true", image=image), ignore_progress)
    first = sdk.images.get(image).id
    push(name=image)
    sdk.images.get(first).tag(image)

    await runner.prepare(await runs.request(runner, "true", image=image, options=policy("missing")), ignore_progress)
    assert sdk.images.get(image).id == first, "the job's policy wins over the farm's"

    begun = time.time() + 1
    await asyncio.sleep(begun - time.time())
    request = await runs.request(runner, "true", image=image)
    await asyncio.gather(*(runner.prepare(request, ignore_progress) for _ in range(8)))
    assert sdk.images.get(image).id != first
    assert pulls_since(sdk, begun)[image] == 1


async def test_always_fails_without_its_registry_though_the_image_is_there(
    runner: DockerRunner, runs: RunDriver, sdk: docker.DockerClient, deployment_id: str
) -> None:
    image = f"127.0.0.1:1/{deployment_id}:v1"
    sdk.images.get("busybox:latest").tag(image)

    with pytest.raises(PullFailed, match=r"127\.0\.0\.1:1.*refused"):
        await runner.prepare(await runs.request(runner, "true", image=image, options=policy("always")), ignore_progress)
    await runner.prepare(await runs.request(runner, "true", image=image), ignore_progress)

    sdk.images.remove(image)


async def test_never_uses_what_is_there_and_names_itself_for_what_is_not(
    runner: DockerRunner, runs: RunDriver, push: Push
) -> None:
    there = await runs.start_request(runner, await runs.request(runner, "echo hi", options=policy("never")))
    assert (await there.written()).stdout == b"hi\n"

    with pytest.raises(ImageNotFound, match="`never` forbids"):
        await runner.prepare(await runs.request(runner, "true", image=push(), options=policy("never")), ignore_progress)


async def test_image_removed_before_the_start_is_pulled_again(
    runner: DockerRunner, runs: RunDriver, push: Push, sdk: docker.DockerClient
) -> None:
    request = await runs.request(runner, "echo again", image=push())
    await runner.prepare(request, ignore_progress)
    sdk.images.remove(request.spec.image)

    run = StartedRun(runner=runner, request=request, handle=await runner.start(request))

    assert (await run.written()).stdout == b"again\n"


async def test_image_that_is_gone_for_good_before_the_start_is_named(
    runner: DockerRunner, runs: RunDriver, registry: Registry, push: Push, sdk: docker.DockerClient
) -> None:
    gone = await runs.request(runner, "true", image=f"{registry.address}/removed:latest")
    with pytest.raises(ImageNotFound, match="removed:latest"):
        await runner.start(gone)

    forbidden = await runs.request(runner, "true", image=push(), options=policy("never"))
    with pytest.raises(ImageNotFound, match="`never` forbids"):
        await runner.start(forbidden)


# Credentials


@pytest.fixture
def private(registry_with_credentials: Registry, docker_engine: SharedEngine, deployment_id: str) -> str:
    """An image that only the registry with credentials has."""
    return registry_with_credentials.push(docker_engine.url, "busybox:latest", f"private/{deployment_id}:v1")


@pytest.fixture
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Docker's configuration file of this worker, not yet written."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path / "config.json"


async def test_credentials_come_from_the_settings(
    build_runner: Build, docker_engine: SharedEngine, runs: RunDriver, private: str, docker_config: Path
) -> None:
    registries = {private.partition("/")[0]: {"username": USER, "password": PASSWORD}}
    runner = await opened(build_runner(docker_engine.url, docker_registries=registries))

    run = await runs.start_request(runner, await runs.request(runner, "echo private", image=private))

    assert (await run.written()).stdout == b"private\n"


async def test_credentials_come_from_docker_s_configuration(
    build_runner: Build, docker_engine: SharedEngine, runs: RunDriver, private: str, docker_config: Path
) -> None:
    registry = private.partition("/")[0]
    helper = docker_config.parent / "docker-credential-test"
    helper.write_text(f"""#!/bin/sh\necho '{{"Username": "{USER}", "Secret": "{PASSWORD}"}}'\n""")
    helper.chmod(0o755)
    docker_config.write_text(json.dumps({"credHelpers": {registry: "test"}}))
    runner = await opened(build_runner(docker_engine.url))
    request = await runs.request(runner, "echo private", image=private)

    with pytest.raises(PullFailed, match="docker-credential-test is not installed"):
        await runner.prepare(request, ignore_progress)

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PATH", str(docker_config.parent), prepend=":")
        run = await runs.start_request(runner, request)
    assert (await run.written()).stdout == b"private\n"


@pytest.mark.parametrize(
    ("registries", "hint"),
    [
        ({}, "there are no credentials"),
        ({"username": USER, "password": "wrong-secret"}, "do not allow it"),
    ],
)
async def test_refused_credentials_are_no_engine_trouble_and_stay_secret(
    build_runner: Build,
    docker_engine: SharedEngine,
    runs: RunDriver,
    private: str,
    docker_config: Path,
    registries: dict[str, str],
    hint: str,
) -> None:
    address = private.partition("/")[0]
    runner = await opened(
        build_runner(docker_engine.url, docker_registries={address: registries} if registries else {})
    )

    with pytest.raises(ImageNotFound, match=hint) as caught:
        await runner.prepare(await runs.request(runner, "true", image=private), ignore_progress)

    assert address in str(caught.value)
    assert "wrong-secret" not in str(caught.value)


# Where


async def first_places(runner: DockerRunner, image: str, loads: Mapping[str, int]) -> set[str]:
    return {(await runner.rank("docker:0", image, loads))[0] for _ in range(50)}


async def test_hosts_that_have_the_image_are_preferred_among_the_least_loaded(
    build_runner: Build,
    docker_engine: SharedEngine,
    own_docker_engine: DockerEngine,
    runs: RunDriver,
    push: Push,
    sdk: docker.DockerClient,
) -> None:
    hosts = [docker_engine.url, own_docker_engine.url]
    runner = await opened(build_runner(*hosts))
    shared, own = (parse_address(url).key for url in hosts)
    image = push()
    request = await runs.request(runner, "true", image=image)
    assert await first_places(runner, image, {}) == {shared, own}, "ties are broken at random"

    await runner.prepare(replace(request, place=shared), ignore_progress)
    assert await first_places(runner, image, {shared: 2, own: 2}) == {shared}, "it knows at once what it has pulled"
    assert await first_places(runner, image, {shared: 2, own: 1}) == {own}, "the load counts more"

    sdk.images.remove(image)
    absent = replace(request, place=shared, spec=replace(request.spec, options=policy("never")))
    with pytest.raises(ImageNotFound):
        await runner.prepare(absent, ignore_progress)
    assert await first_places(runner, image, {}) == {shared, own}, "... and what it has found gone"


async def test_images_that_hosts_had_before_are_learnt(
    build_runner: Build, docker_engine: SharedEngine, own_docker_engine: DockerEngine, push: Push
) -> None:
    image = push()
    with contextlib.closing(docker.DockerClient(base_url=own_docker_engine.url)) as operator:
        operator.images.pull(*image.rsplit(":", 1))
    runner = await opened(build_runner(docker_engine.url, own_docker_engine.url))
    own = parse_address(own_docker_engine.url).key

    deadline = time.monotonic() + DEADLINE
    while await first_places(runner, image, {}) != {own}:
        assert time.monotonic() < deadline, "a runner never learnt what its host had before"
        await asyncio.sleep(0.05)
