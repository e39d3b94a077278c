"""Getting images onto engines: one pull per worker, engine and image at a time, however many runs want it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog
from docker.errors import APIError
from docker.errors import ImageNotFound as NoSuchImage

from fastlane_core.contracts.runner import ProgressCallback
from fastlane_core.errors import ImageNotFound
from fastlane_core.models import Progress
from fastlane_docker.engines.client import Client
from fastlane_docker.engines.engine import PULLS, Engine, Kind
from fastlane_docker.images.image_pull import ImagePull
from fastlane_docker.images.known_images import KnownImages
from fastlane_docker.images.pull_policy import PullPolicy
from fastlane_docker.images.references import Reference, parse_reference
from fastlane_docker.settings import DockerSettings

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a pull is for."""

    reference: Reference
    #: "" for the engine's own.
    platform: str


@dataclass(eq=False, slots=True)
class _Pull:
    """A pull under way."""

    newest: Progress
    work: ImagePull = field(init=False)
    task: asyncio.Task[None] = field(init=False)
    listeners: list[ProgressCallback] = field(default_factory=list)

    def tell(self, progress: Progress) -> None:
        if progress == self.newest:
            return
        self.newest = progress
        for listener in self.listeners:
            listener(progress)

    def give_up(self) -> None:
        self.work.give_up()
        self.task.cancel()


class Puller:
    """Pulls images onto one engine."""

    def __init__(self, engine: Engine, settings: DockerSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._pulls: dict[_Wanted, _Pull] = {}
        self.known = KnownImages(engine)

    async def ensure(self, image: str, policy: PullPolicy, progress: ProgressCallback, *, platform: str = "") -> None:
        """Return when the engine has the image, pulled as the policy says; `platform` is "" for the engine's own.

        Raises ImageNotFound, PullFailed, EngineUnavailable.
        """
        try:
            reference = parse_reference(image)
        except ValueError as error:
            raise ImageNotFound(f"there can be no such image: {error}") from error
        if policy != "always":
            if await self._engine.call("inspect image", lambda client: _is_there(client, image, platform), Kind.IMAGE):
                self.known.add(reference)
                return
            self.known.discard(reference)
            if policy == "never":
                of_platform = f" for {platform}" if platform else ""
                raise ImageNotFound(
                    f"the host {self._engine.address.key} has no image {image}{of_platform}, and the pull policy "
                    "`never` forbids to pull it"
                )
        await self._pulled(image, _Wanted(reference, platform), progress)
        self.known.add(reference)

    async def restore(self, image: str, policy: PullPolicy, *, platform: str = "") -> None:
        """Get an image again that was there a moment ago, unless the policy forbids to. Raises as `ensure` does."""
        log.warning("an image was removed before its container was made", image=image, host=self._engine.address.key)
        self.known.discard(parse_reference(image))
        await self.ensure(image, "never" if policy == "never" else "missing", lambda progress: None, platform=platform)

    def has(self, image: str) -> bool:
        """Whether the host is known to have the image; asks nobody."""
        try:
            return parse_reference(image) in self.known
        except ValueError:
            return False

    async def close(self) -> None:
        """Give up what is under way."""
        pulls = list(self._pulls.values())
        for pull in pulls:
            pull.give_up()
        await asyncio.gather(*(pull.task for pull in pulls), return_exceptions=True)

    async def _pulled(self, image: str, wanted: _Wanted, progress: ProgressCallback) -> None:
        """Join the pull of the image, or begin it."""
        pull = self._pulls.get(wanted) or self._begin(image, wanted)
        pull.listeners.append(progress)
        progress(pull.newest)
        try:
            # One run that is stopped does not end the pull that others wait for.
            await asyncio.shield(pull.task)
        finally:
            pull.listeners.remove(progress)
            if not pull.listeners and not pull.task.done():
                pull.give_up()
                self._remove(wanted, pull)

    def _begin(self, image: str, wanted: _Wanted) -> _Pull:
        host, loop = self._engine.address.key, asyncio.get_running_loop()
        waits = len(self._pulls) >= PULLS
        first = f"waiting to pull {image}: {PULLS} other images are being pulled onto {host}"
        pull = self._pulls[wanted] = _Pull(Progress(message=first if waits else f"pulling {image}"))

        def tell(progress: Progress) -> None:
            loop.call_soon_threadsafe(pull.tell, progress)

        async def run() -> None:
            begun = loop.time()
            await self._engine.pull_call(f"pull of {image}", pull.work.run)
            log.info("pulled", image=image, host=host, seconds=round(loop.time() - begun, 1))

        pull.work = ImagePull(image, wanted.reference, self._settings, platform=wanted.platform, tell=tell)
        pull.task = asyncio.create_task(run())
        pull.task.add_done_callback(lambda done: self._forget(wanted, pull, done))
        return pull

    def _forget(self, wanted: _Wanted, pull: _Pull, task: asyncio.Task[None]) -> None:
        self._remove(wanted, pull)
        if not task.cancelled():
            # Seen here, so that a pull whose askers are all gone leaves no warning behind.
            task.exception()

    def _remove(self, wanted: _Wanted, pull: _Pull) -> None:
        if self._pulls.get(wanted) is pull:
            del self._pulls[wanted]


def _is_there(client: Client, image: str, platform: str) -> bool:
    try:
        found = client.inspect_image(image)
    except NoSuchImage:
        return False
    except APIError as error:
        if error.status_code in (400, 404):
            return False
        raise
    # Of the same name an engine may have the image of another platform; variants are left to it.
    has = {found["Os"], found["Architecture"], f"{found['Os']}/{found['Architecture']}"}
    return not platform or "/".join(platform.split("/")[:2]) in has
