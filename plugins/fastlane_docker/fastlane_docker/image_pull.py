"""One pull in the thread that calls it, and what its failures mean.

Engines tell of a registry's trouble in words, most of it with status 500, so the words decide whose fault it is: an
image that is not to be had is the job's, a registry out of reach is nobody's. The engine itself is at fault only if it
does not answer a ping either.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping

import requests
import structlog
import urllib3
from docker.errors import APIError, DockerException

from fastlane_core.contracts.runner import ProgressCallback
from fastlane_core.errors import ImageNotFound, PullFailed
from fastlane_core.models import Progress
from fastlane_docker.client import Client, limit_silence, lines_of
from fastlane_docker.engine import explanation
from fastlane_docker.pull_progress import PullProgress
from fastlane_docker.references import Reference
from fastlane_docker.registry_credentials import Credentials, credentials_for
from fastlane_docker.settings import DockerSettings

log = structlog.get_logger(__name__)

#: What engines and registries say of images that are not to be had, whoever asks and however often.
_NOT_THERE = (
    "manifest unknown",
    "name unknown",
    "repository name not known",
    "not found",
    "does not exist",
    "no such image",
    "no matching manifest",
    "invalid reference",
    "denied",
    "unauthorized",
    "no basic auth",
)
#: ... and of those, what other credentials might change.
_NOT_ALLOWED = ("denied", "unauthorized", "no basic auth")
#: What they say of trouble in whose description any of the above may stand, as a file's name or a layer's.
_TROUBLE = ("no space left on device", "failed to register layer", "toomanyrequests", "too many requests")
#: Statuses of an engine that refuses: a name that is none, wrong credentials, no such image.
_REFUSED = (400, 401, 403, 404)
_URL = re.compile(r"https?://[^\s\"]+")
#: Seconds between two words of progress, and to see whether an engine is still there.
_PACE = 1.0
_PING_SECONDS = 5.0


def pull(
    client: Client,
    image: str,
    reference: Reference,
    settings: DockerSettings,
    *,
    platform: str = "",
    tell: ProgressCallback,
    is_wanted: Callable[[], bool],
) -> None:
    """Return when the engine has pulled the image; blocks. `tell` hears about once a second how far it is.

    It is given up, and this returns, once `is_wanted` says no.

    Raises ImageNotFound, PullFailed, and what the SDK raises for an engine in trouble.
    """
    tell(Progress(message=f"pulling {image}"))
    credentials = credentials_for(reference.registry, settings.docker_registries)
    if credentials.trouble:
        log.warning("pulling without credentials", registry=reference.registry, error=credentials.trouble)
    begun = time.monotonic()
    longest, quiet = settings.docker_pull_timeout_seconds, settings.docker_pull_quiet_seconds
    progress, told = PullProgress(image), 0.0
    try:
        with client.pulling(
            reference.name,
            reference.version,
            platform=platform,
            credentials=credentials.header,
            quiet_seconds=min(quiet, longest),
        ) as answer:
            for line in lines_of(answer):
                step = _step(line)
                if "error" in step:
                    raise _failure(image, reference, credentials, str(step["error"]))
                progress.heed(step)
                now = time.monotonic()
                left = begun + longest - now
                if not is_wanted():
                    return
                if left <= 0:
                    raise PullFailed(f"pulling the image {image} took longer than {longest:g} s; it was given up")
                limit_silence(answer, min(quiet, left))
                if now - told >= _PACE:
                    told = now
                    tell(progress.now())
    except (requests.exceptions.ReadTimeout, urllib3.exceptions.ReadTimeoutError) as error:
        client.ping_within(_PING_SECONDS)
        raise PullFailed(
            f"pulling the image {image} was given up: the engine had no news of the registry {reference.registry} "
            f"for {min(quiet, longest):g} s"
        ) from error
    except APIError as error:
        if error.status_code not in _REFUSED:
            client.ping_within(_PING_SECONDS)
        raise _failure(image, reference, credentials, explanation(error), error.status_code) from error
    tell(Progress(message=f"pulled {image}"))


def _step(line: bytes) -> Mapping[str, object]:
    try:
        step = json.loads(line)
    except ValueError as error:
        raise DockerException(f"it answers a pull with something that is not JSON: {line[:100]!r}") from error
    if not isinstance(step, dict):
        raise DockerException(f"it answers a pull with something that is no step of it: {line[:100]!r}")
    return step


def _failure(
    image: str, reference: Reference, credentials: Credentials, words: str, status: int | None = None
) -> ImageNotFound | PullFailed:
    # Names may hold any of the words that are looked for.
    plain = _URL.sub("", words)
    for name in (image, reference.name, reference.repository):
        plain = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "", plain)
    plain = plain.lower()
    is_refused = status in _REFUSED or any(each in plain for each in _NOT_THERE)
    if not is_refused or any(each in plain for each in _TROUBLE):
        return PullFailed(f"the image {image} could not be pulled: {words}")
    if not any(each in plain for each in _NOT_ALLOWED):
        return ImageNotFound(f"there is no image {image}: {words}")
    if credentials.trouble:
        return PullFailed(f"the image {image} could not be pulled: {words}; {credentials.trouble}")
    if credentials.header:
        hint = f"the credentials for {reference.registry} do not allow it"
    else:
        hint = f"there are no credentials for {reference.registry}: set DOCKER_REGISTRIES, or use `docker login`"
    return ImageNotFound(f"there is no image {image}, or it may not be pulled: {words}; {hint}")
