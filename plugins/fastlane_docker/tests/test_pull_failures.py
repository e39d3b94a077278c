"""What engines say of failed pulls: their own words, most of them seen from Docker 20.10 and later."""

from __future__ import annotations

import pytest

from fastlane_core.errors import ImageNotFound, PullFailed
from fastlane_docker.images.pull_failures import pull_failure
from fastlane_docker.images.references import parse_reference
from fastlane_docker.images.registry_credentials import Credentials

IMAGE = "127.0.0.1:5000/some/image:v1"


def failure_of(
    words: str, status: int | None = 500, image: str = IMAGE, credentials: Credentials | None = None
) -> ImageNotFound | PullFailed:
    return pull_failure(image, parse_reference(image), credentials or Credentials(), words, status=status)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, f"manifest for {IMAGE} not found: manifest unknown: manifest unknown"),
        (404, "pull access denied for x, repository does not exist or may require 'docker login': denied: no access"),
        (404, "no such image"),
        (400, "invalid reference format: repository name must be lowercase"),
        (500, 'Head "http://127.0.0.1:5000/v2/some/image/manifests/v1": no basic auth credentials'),
        (500, "unauthorized: authentication required"),
        (500, "denied: requested access to the resource is denied"),
        (500, "no matching manifest for linux/s390x in the manifest list entries"),
        (None, "name unknown: repository name not known to registry"),
        (None, "unauthorized: authentication required"),
    ],
)
def test_image_that_is_not_to_be_had(status: int | None, words: str) -> None:
    error = failure_of(words, status)

    assert isinstance(error, ImageNotFound)
    assert IMAGE in str(error)
    assert words in str(error)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, 'Get "http://127.0.0.1:5000/v2/": dial tcp 127.0.0.1:5000: connect: connection refused'),
        (500, 'Get "https://nowhere.invalid:5000/v2/": dial tcp: lookup nowhere.invalid on 10.0.0.1:53: no such host'),
        (500, 'Get "https://r/v2/": net/http: request canceled while waiting for connection (Client.Timeout exceeded)'),
        (500, 'Get "https://r/v2/": x509: certificate signed by unknown authority'),
        (500, 'Get "https://r/v2/": http: server gave HTTP response to HTTPS client'),
        (500, 'Get "https://auth.example/denied/token?scope=repository": dial tcp: connect: connection refused'),
        (500, "received unexpected HTTP status: 503 Service Unavailable"),
        (500, "toomanyrequests: You have reached your pull rate limit."),
        (429, "toomanyrequests: too many requests of a denied kind"),
        (None, "write /var/lib/docker/tmp/GetImageBlob1: no space left on device"),
        (None, "failed to register layer: write /usr/share/not found/denied: no space left on device"),
        (None, "failed to register layer: exit status 1: unauthorized: input/output error"),
        (None, "unexpected EOF"),
        (None, 'Get "http://r/v2/some/image/blobs/sha256:12": dial tcp 10.0.0.1:5000: i/o timeout'),
    ],
)
def test_registry_in_trouble(status: int | None, words: str) -> None:
    error = failure_of(words, status)

    assert isinstance(error, PullFailed)
    assert IMAGE in str(error)
    assert words in str(error)


@pytest.mark.parametrize("name", ["denied", "unauthorized/denied", "registry:5000/denied", "library/denied"])
def test_name_that_speaks_of_a_refusal_is_none(name: str) -> None:
    path = name.removeprefix("registry:5000/")

    for words in (
        f'Head "http://registry:5000/v2/{path}/manifests/latest": connection refused',
        f"{name}: connection refused",
        f"{name}:latest: connection refused",
    ):
        assert isinstance(failure_of(words, image=f"{name}:latest"), PullFailed)


def test_hint_says_what_to_do_about_credentials() -> None:
    words = "unauthorized: authentication required"

    assert "there are no credentials for 127.0.0.1:5000" in str(failure_of(words))
    assert "do not allow it" in str(failure_of(words, credentials=Credentials(header="x")))
    unknown = failure_of(words, credentials=Credentials(trouble="the program cannot be run"))
    assert isinstance(unknown, PullFailed)
    assert "the program cannot be run" in str(unknown)
    assert "credentials" not in str(failure_of("manifest unknown", 404))
