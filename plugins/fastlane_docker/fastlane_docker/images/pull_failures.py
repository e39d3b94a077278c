"""What an engine says of a pull that failed, and whose fault that is.

Engines tell of a registry's refusal and of its trouble alike in words, most of them with status 500, so the words
decide: an image that is not to be had is the job's fault, a registry out of reach is nobody's, and may be better the
next time.
"""

from __future__ import annotations

import re

from fastlane_core.errors import ImageNotFound, PullFailed
from fastlane_docker.images.references import Reference
from fastlane_docker.images.registry_credentials import Credentials

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
)
#: What they say of images that this worker may not have, as it is known to them.
_NOT_ALLOWED = ("denied", "unauthorized", "no basic auth")
#: What they say of trouble in whose description any of the above may stand, as the name of a file or of a limit.
_TROUBLE = ("no space left on device", "failed to register layer", "toomanyrequests", "too many requests")
#: Statuses of an engine that refuses: a name that is none, wrong credentials, no such image.
_REFUSED = (400, 401, 403, 404)
_URL = re.compile(r"https?://[^\s\"]+")


def is_refusal(status: int | None) -> bool:
    """Whether an engine that answers with this status has refused, and is well itself."""
    return status in _REFUSED


def pull_failure(
    image: str, reference: Reference, credentials: Credentials, words: str, *, status: int | None
) -> ImageNotFound | PullFailed:
    """The error for a pull of `image` of which an engine said `words`; `status` is None where it said so in between."""
    # Names may hold any of the words that are looked for.
    plain = _URL.sub("", words)
    for name in (image, reference.name, reference.repository, reference.repository.removeprefix("library/")):
        plain = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "", plain)
    plain = plain.lower()
    is_not_allowed = any(each in plain for each in _NOT_ALLOWED)
    is_refused = is_refusal(status) or is_not_allowed or any(each in plain for each in _NOT_THERE)
    if not is_refused or any(each in plain for each in _TROUBLE):
        return PullFailed(f"the image {image} could not be pulled: {words}")
    if not is_not_allowed:
        return ImageNotFound(f"there is no image {image}: {words}")
    if credentials.trouble:
        return PullFailed(f"the image {image} could not be pulled: {words}; {credentials.trouble}")
    if credentials.header:
        hint = f"the credentials for {reference.registry} do not allow it"
    else:
        hint = f"there are no credentials for {reference.registry}: set DOCKER_REGISTRIES, or use `docker login`"
    return ImageNotFound(f"there is no image {image}, or it may not be pulled: {words}; {hint}")
