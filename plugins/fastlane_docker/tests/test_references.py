"""Names of images: the forms that engines take, completed as they do it, and the refusal of all others."""

from __future__ import annotations

import pytest

from fastlane_core.errors import InvalidInput
from fastlane_core.models import RunSpec
from fastlane_core.testing.runner_context import runner_context
from fastlane_docker.images.references import Reference, parse_reference, registry_of
from fastlane_docker.runner import DockerRunner
from fastlane_docker.settings import DockerSettings

SHA256 = "sha256:" + "0123456789abcdef" * 4
SHA512 = "sha512:" + "0123456789abcdef" * 8


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("busybox", Reference("docker.io", "library/busybox", "latest")),
        ("busybox:1.36", Reference("docker.io", "library/busybox", "1.36")),
        ("a/b", Reference("docker.io", "a/b", "latest")),
        ("a/b/c:_T.x-1", Reference("docker.io", "a/b/c", "_T.x-1")),
        ("docker.io/busybox", Reference("docker.io", "library/busybox", "latest")),
        ("index.docker.io/busybox", Reference("docker.io", "library/busybox", "latest")),
        ("docker.io/a/b", Reference("docker.io", "a/b", "latest")),
        ("registry:5000/a/b:tag", Reference("registry:5000", "a/b", "tag")),
        ("localhost/a", Reference("localhost", "a", "latest")),
        ("Upper/a", Reference("Upper", "a", "latest")),
        ("10.0.0.1:5000/a", Reference("10.0.0.1:5000", "a", "latest")),
        ("[::1]:5000/a", Reference("[::1]:5000", "a", "latest")),
        ("[fe80::1]/a/b:c", Reference("[fe80::1]", "a/b", "c")),
        (f"host.example/a@{SHA256}", Reference("host.example", "a", "latest", SHA256)),
        (f"a:tag@{SHA256}", Reference("docker.io", "library/a", "tag", SHA256)),
        (f"registry:5000/a:tag@{SHA512}", Reference("registry:5000", "a", "tag", SHA512)),
        ("x/a.b_c__d-e---f", Reference("docker.io", "x/a.b_c__d-e---f", "latest")),
        ("a:" + "t" * 128, Reference("docker.io", "library/a", "t" * 128)),
        ("x.y/" + "a" * 255, Reference("x.y", "a" * 255, "latest")),
    ],
)
def test_every_form_is_completed(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert parse_reference(str(reference)) == Reference(
        reference.registry, reference.repository, "latest" if reference.digest else reference.tag, reference.digest
    )


def test_digest_wins_over_the_tag() -> None:
    assert parse_reference(f"a:tag@{SHA256}").version == SHA256
    assert str(parse_reference(f"a:tag@{SHA256}")) == str(parse_reference(f"docker.io/library/a@{SHA256}"))
    assert parse_reference("a").version == "latest"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "1 to 2048"),
        ("a" * 2049, "1 to 2048"),
        ("Busybox", "lower case"),
        ("registry:5000/A/b", "lower case"),
        ("a/B:x", "lower case"),
        ("x.y/" + "a" * 256, "255"),
        ("a:" + "t" * 129, "no tag"),
        ("a:", "no tag"),
        (":", "no repository"),
        ("a:b:c", "no tag"),
        ("a:-x", "no tag"),
        ("a b", "no repository"),
        (" a", "no repository"),
        ("a\n", "no repository"),
        ("a:b\n", "no tag"),
        ("ä", "no repository"),
        ("/a", "no repository"),
        ("a/", "no repository"),
        ("a//b", "no repository"),
        ("-a", "no repository"),
        ("a-", "no repository"),
        ("a..b", "no repository"),
        ("a___b", "no repository"),
        ("../a", "no registry"),
        ("http://x/a", "no registry"),
        ("-x.y/a", "no registry"),
        ("::1/a", "no registry"),
        ("[::1%eth0]:5000/a", "no registry"),
        ("x:port/a", "no registry"),
        ("a.b_c/d", "no registry"),
        ("a@", "no digest"),
        ("a@sha256", "64 digits"),
        ("a@md5:" + "0" * 32, "no digest"),
        ("a@sha256:12", "64 digits"),
        ("a@sha256:" + "0" * 65, "64 digits"),
        ("a@sha256:" + "0123456789ABCDEF" * 4, "64 digits"),
        ("a@" + SHA256 + "\n", "64 digits"),
        ("a@" + SHA256 + ":tag", "64 digits"),
        ("0123456789abcdef" * 4, "image's id"),
    ],
)
def test_what_names_no_image_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_reference(text)


@pytest.mark.parametrize(
    ("text", "registry"),
    [
        ("registry:5000", "registry:5000"),
        ("https://registry.example/", "registry.example"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("[::1]:5000", "[::1]:5000"),
    ],
)
def test_registries(text: str, registry: str) -> None:
    assert registry_of(text) == registry


def test_job_of_an_impossible_image_is_refused() -> None:
    runner = DockerRunner(runner_context(DockerSettings(), deployment_id="deployment"))

    runner.check("docker:0", RunSpec(image="registry:5000/a/b:tag", command="", timeout=60))
    with pytest.raises(InvalidInput, match="lower case") as caught:
        runner.check("docker:0", RunSpec(image="Busybox", command="", timeout=60))

    assert caught.value.field == "image"
