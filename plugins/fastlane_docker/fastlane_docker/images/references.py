"""Names of images: every form that Docker takes, and why another is none.

The grammar, the lengths and how short forms are completed are those of the distribution project's `reference` package
(github.com/distribution/reference: `regexp.go`, `reference.go`, `normalize.go`), which Docker engines use as well;
digests are those that its `go-digest` package takes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from fastlane_core.errors import InvalidInput

#: The registry of names that tell none, and the folder of those that tell no folder either.
DEFAULT_REGISTRY = "docker.io"
_OLD_DEFAULT_REGISTRY = "index.docker.io"
_DEFAULT_FOLDER = "library"
_DEFAULT_TAG = "latest"
_LONGEST_REPOSITORY = 255
#: Longer than any reference: what is longer is not looked at.
_LONGEST = 2048

_NAME_PART = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_NAME_PART}(?:\.{_NAME_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
#: Digits of the digests that registries know, in lower case.
_DIGEST_DIGITS = {"sha256": 64, "sha384": 96, "sha512": 128}


@dataclass(frozen=True, slots=True)
class Reference:
    """An image's name, completed."""

    #: `docker.io` where the name told none; with its port if it has one.
    registry: str
    #: Path within the registry: `library/busybox`.
    repository: str
    #: What is asked for if there is no digest.
    tag: str
    #: `sha256:...`, or "" where the tag decides.
    digest: str = ""

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    @property
    def version(self) -> str:
        """What of the repository is asked for. A digest wins over a tag, as it does on engines."""
        return self.digest or self.tag

    def __str__(self) -> str:
        """The one form that all names of the same image have."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def check_image(image: str) -> None:
    """Raise InvalidInput, for the field `image`, for what names no image."""
    try:
        parse_reference(image)
    except ValueError as error:
        raise InvalidInput("image", str(error)) from error


def registry_of(address: str) -> str:
    """The registry at `address`, as references name it: `host`, `host:port`, or a URL as `docker login` keeps it.

    Raises ValueError for anything else.
    """
    scheme, separator, rest = address.partition("://")
    host = rest.partition("/")[0] if separator and scheme in ("http", "https") else address
    if not _REGISTRY.fullmatch(host):
        raise ValueError(f"{address!r} is no registry: expected host or host:port")
    return DEFAULT_REGISTRY if host == _OLD_DEFAULT_REGISTRY else host


@lru_cache(maxsize=4096)
def parse_reference(text: str) -> Reference:
    """What `text` names. Raises ValueError with a sentence that says what is wrong with it."""
    if not text or len(text) > _LONGEST:
        raise ValueError(f"expected the name of an image of 1 to {_LONGEST} characters, such as busybox:1.36")
    if _IDENTIFIER.fullmatch(text):
        raise ValueError(f"{text!r} is an image's id: expected a name, since hosts get images by name")
    rest, at, digest = text.partition("@")
    if at:
        _check_digest(text, digest)
    registry, rest = _split_registry(rest)
    repository, colon, tag = rest.partition(":")
    if not _REGISTRY.fullmatch(registry):
        raise ValueError(f"{text!r}: {registry!r} is no registry: expected a host name or address, and a port or none")
    if repository != repository.lower():
        raise ValueError(f"{text!r}: the repository {repository!r} must be in lower case")
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(
            f"{text!r}: {repository!r} is no repository: expected letters, digits, and single . or _ or any number of "
            "- between them, in parts that / divides"
        )
    if len(repository) > _LONGEST_REPOSITORY:
        raise ValueError(f"{text!r}: a repository's name may have {_LONGEST_REPOSITORY} characters at most")
    if colon and not _TAG.fullmatch(tag):
        raise ValueError(f"{text!r}: {tag!r} is no tag: expected letters, digits, _ . and -, at most 128")
    return Reference(registry, repository, tag or _DEFAULT_TAG, digest)


def _split_registry(text: str) -> tuple[str, str]:
    """The registry, and what follows it: the first part is one if it could not be part of a repository's name."""
    first, slash, rest = text.partition("/")
    if not slash or not (first == "localhost" or "." in first or ":" in first or first != first.lower()):
        first, rest = DEFAULT_REGISTRY, text
    if first == _OLD_DEFAULT_REGISTRY:
        first = DEFAULT_REGISTRY
    if first == DEFAULT_REGISTRY and "/" not in rest:
        rest = f"{_DEFAULT_FOLDER}/{rest}"
    return first, rest


def _check_digest(text: str, digest: str) -> None:
    algorithm, _, digits = digest.partition(":")
    length = _DIGEST_DIGITS.get(algorithm)
    if length is None:
        known = ", ".join(f"@{each}:" for each in _DIGEST_DIGITS)
        raise ValueError(f"{text!r}: {digest!r} is no digest: expected one of {known} and digits")
    if not re.fullmatch(rf"[a-f0-9]{{{length}}}", digits):
        raise ValueError(f"{text!r}: expected {length} digits 0-9 and a-f behind {algorithm}:, not {len(digits)}")
