"""Getting images onto engines: one pull per engine and image at a time, however many runs want it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from docker.errors import APIError
from docker.errors import ImageNotFound as NoSuchImage
from docker.utils import parse_repository_tag

from fastlane_core.contracts.runner import ProgressCallback
from fastlane_core.errors import ImageNotFound, StartRejected
from fastlane_core.models import Progress
from fastlane_docker.client import Client, lines_of
from fastlane_docker.engine import Engine, explanation

#: What engines and registries say of images that are not to be had, in any engine's words.
_NOT_THERE = (
    "not found",
    "manifest unknown",
    "no such image",
    "does not exist",
    "pull access denied",
    "unauthorized",
    "denied",
    "invalid reference",
    "no basic auth",
    "repository name not known",
)
#: Statuses that say the same: a reference that is none, wrong credentials, no such image.
_REFUSED = (400, 401, 403, 404)
#: Seconds without a word from the engine after which a pull is given up.
_QUIET_SECONDS = 120.0


class Puller:
    """Pulls images onto one engine."""

    def __init__(self, engine: Engine, timeout: float) -> None:
        self._engine = engine
        self._timeout = timeout
        self._pulls: dict[str, tuple[asyncio.Task[None], list[ProgressCallback]]] = {}

    async def ensure(self, image: str, progress: ProgressCallback) -> None:
        """Return when the engine has the image. Raises ImageNotFound, StartRejected, EngineUnavailable."""
        if await self._engine.call("inspect image", lambda client: _is_there(client, image)):
            return
        under_way = self._pulls.get(image)
        if under_way is None:
            listeners: list[ProgressCallback] = []
            task = asyncio.create_task(self._pull(image, listeners))
            under_way = self._pulls[image] = (task, listeners)
            task.add_done_callback(lambda done: self._forget(image, done))
        task, listeners = under_way
        listeners.append(progress)
        try:
            # One run that is stopped does not end the pull that others wait for.
            await asyncio.shield(task)
        finally:
            listeners.remove(progress)

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = [task for task, _ in self._pulls.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, image: str, task: asyncio.Task[None]) -> None:
        self._pulls.pop(image, None)
        if not task.cancelled():
            # Seen here, so that a pull whose askers are all gone leaves no warning behind.
            task.exception()

    async def _pull(self, image: str, listeners: list[ProgressCallback]) -> None:
        loop = asyncio.get_running_loop()

        def tell(progress: Progress) -> None:
            for listener in listeners:
                listener(progress)

        def tell_from_thread(progress: Progress) -> None:
            loop.call_soon_threadsafe(tell, progress)

        def pull(client: Client) -> None:
            _pull(client, image, self._timeout, tell_from_thread)

        await self._engine.pull_call(f"pull of {image}", pull)


def _is_there(client: Client, image: str) -> bool:
    try:
        client.inspect_image(image)
    except NoSuchImage:
        return False
    except APIError as error:
        if error.status_code in (400, 404):
            return False
        raise
    return True


def _pull(client: Client, image: str, timeout: float, tell: ProgressCallback) -> None:
    """Pull in this thread, telling once per second how far it is."""
    repository, tag = parse_repository_tag(image)
    deadline = time.monotonic() + timeout
    layers: dict[str, tuple[int, int]] = {}
    told = 0.0
    tell(Progress(message=f"pulling {image}"))
    try:
        with client.pulling(repository, tag or "latest", quiet_seconds=_QUIET_SECONDS) as answer:
            for line in lines_of(answer):
                step: dict[str, Any] = json.loads(line)
                if "error" in step:
                    raise _refusal(image, str(step["error"]))
                detail = step.get("progressDetail") or {}
                if "id" in step and detail.get("total"):
                    layers[step["id"]] = (int(detail.get("current", 0)), int(detail["total"]))
                now = time.monotonic()
                if now > deadline:
                    raise StartRejected(f"pulling the image {image} took longer than {timeout:g} s; it is given up")
                if layers and now - told >= 1.0:
                    told = now
                    current, total = (sum(layer[part] for layer in layers.values()) for part in (0, 1))
                    tell(Progress(message=f"pulling {image}: {current} of {total} bytes", current=current, total=total))
    except APIError as error:
        words = explanation(error)
        if error.status_code in _REFUSED:
            raise _not_there(image, words) from error
        raise _refusal(image, words) from error
    tell(Progress(message=f"pulled {image}"))


def _refusal(image: str, words: str) -> ImageNotFound | StartRejected:
    if any(each in words.lower() for each in _NOT_THERE):
        return _not_there(image, words)
    return StartRejected(f"the image {image} could not be pulled: {words}")


def _not_there(image: str, words: str) -> ImageNotFound:
    return ImageNotFound(f"there is no image {image}, or it may not be pulled: {words}")
