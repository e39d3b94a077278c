"""One pull, from a thread.

The engine is at fault for a pull that fails only if it does not answer a ping either; all else is its registry's
trouble, or the job's.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping

import requests
import structlog
import urllib3
from docker.errors import APIError, DockerException

from fastlane_core.errors import ImageNotFound, PullFailed
from fastlane_core.models import Progress
from fastlane_docker.engines.client import Client, hang_up, limit_silence, lines_of
from fastlane_docker.engines.engine import explanation
from fastlane_docker.images.pull_failures import is_refusal, pull_failure
from fastlane_docker.images.pull_progress import PullProgress
from fastlane_docker.images.references import Reference
from fastlane_docker.images.registry_credentials import Credentials, credentials_for
from fastlane_docker.settings import DockerSettings

log = structlog.get_logger(__name__)

#: What is raised for an answer, or its beginning, that does not come in time.
_SILENCE = (requests.exceptions.ReadTimeout, urllib3.exceptions.ReadTimeoutError, TimeoutError)
#: Seconds between two words of progress, and to see whether an engine is still there.
_PACE = 1.0
_PING_SECONDS = 5.0


class ImagePull:
    """A pull, which a thread runs and the event loop may give up."""

    def __init__(
        self,
        image: str,
        reference: Reference,
        settings: DockerSettings,
        *,
        platform: str,
        tell: Callable[[Progress], None],
    ) -> None:
        """`tell` is called in the thread, about once a second; `platform` is "" for the engine's own."""
        self._image = image
        self._reference = reference
        self._platform = platform
        self._settings = settings
        self._tell = tell
        self._is_wanted = True
        self._answer: requests.Response | None = None

    def run(self, client: Client) -> None:
        """Return when the engine has the image, or soon after it was given up. Blocks.

        Raises ImageNotFound, PullFailed, and what the SDK raises for an engine in trouble.
        """
        try:
            self._pull(client)
        except Exception:
            # Hanging up looks like trouble here, and nobody is left to hear of it.
            if self._is_wanted:
                raise

    def give_up(self) -> None:
        """End it, on the engine too; from another thread."""
        self._is_wanted = False
        if self._answer is not None:
            hang_up(self._answer)

    def _pull(self, client: Client) -> None:
        self._tell(Progress(message=f"pulling {self._image}"))
        registry = self._reference.registry
        credentials = credentials_for(registry, self._settings.docker_registries)
        if credentials.trouble:
            log.warning("pulling without credentials", registry=registry, error=credentials.trouble)
        longest, quiet = self._settings.docker_pull_timeout_seconds, self._settings.docker_pull_quiet_seconds
        deadline = time.monotonic() + longest
        try:
            with client.pulling(
                self._reference.name,
                self._reference.version,
                platform=self._platform,
                credentials=credentials.header,
                quiet_seconds=min(quiet, longest),
            ) as answer:
                self._answer = answer
                if not self._is_wanted:
                    return
                self._read(answer, credentials, deadline)
        except _SILENCE as error:
            client.ping_within(_PING_SECONDS)
            if time.monotonic() >= deadline:
                raise self._too_slow() from error
            raise PullFailed(
                f"pulling the image {self._image} was given up: the engine had no news of the registry {registry} for "
                f"{quiet:g} s"
            ) from error
        except APIError as error:
            if not is_refusal(error.status_code):
                client.ping_within(_PING_SECONDS)
            raise self._failure(credentials, explanation(error), error.status_code) from error
        self._tell(Progress(message=f"pulled {self._image}"))

    def _read(self, answer: requests.Response, credentials: Credentials, deadline: float) -> None:
        progress, told = PullProgress(self._image), 0.0
        for line in lines_of(answer):
            step = _step(line)
            if "error" in step:
                raise self._failure(credentials, str(step["error"]))
            progress.heed(step)
            now = time.monotonic()
            if now >= deadline:
                raise self._too_slow()
            limit_silence(answer, min(self._settings.docker_pull_quiet_seconds, deadline - now))
            if now - told >= _PACE:
                told = now
                self._tell(progress.now())

    def _failure(self, credentials: Credentials, words: str, status: int | None = None) -> ImageNotFound | PullFailed:
        return pull_failure(self._image, self._reference, credentials, words, status=status)

    def _too_slow(self) -> PullFailed:
        longest = self._settings.docker_pull_timeout_seconds
        return PullFailed(f"pulling the image {self._image} took longer than {longest:g} s; it was given up")


def _step(line: bytes) -> Mapping[str, object]:
    try:
        step = json.loads(line)
    except ValueError as error:
        raise DockerException(f"it answers a pull with something that is not JSON: {line[:100]!r}") from error
    if not isinstance(step, dict):
        raise DockerException(f"it answers a pull with something that is no step of it: {line[:100]!r}")
    return step
