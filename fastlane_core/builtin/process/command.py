"""From a request to the command and environment of a process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from fastlane_core.builtin.process.settings import ProcessOptions
from fastlane_core.builtin.process.shim import Launch
from fastlane_core.errors import StartRejected
from fastlane_core.models import RunRequest

#: The environment of a run before the job's own. The worker's, which may hold secrets, is not passed on.
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def command_of(request: RunRequest, home: Path) -> Launch:
    """What to execute, in the folder `home`. Raises StartRejected for what no process can be given."""
    environment = {**_ENVIRONMENT, "HOME": str(home), **request.spec.env}
    for name in environment:
        if not name or "=" in name:
            raise StartRejected(f"{name!r} cannot be the name of an environment variable")
    return Launch(
        [_encode(argument, "the command") for argument in _argv(request)],
        {
            _encode(name, "the name of an environment variable"): _encode(value, f"the environment variable {name}")
            for name, value in environment.items()
        },
    )


def _argv(request: RunRequest) -> Sequence[str]:
    try:
        options = ProcessOptions.model_validate(request.spec.options.get("process", {}))
    except ValidationError as error:
        raise StartRejected(f"the job option `process` cannot be used: {error.errors()[0]['msg']}") from error
    if not request.argv:
        raise StartRejected("the process runner needs a command: it has no images that could bring one")
    return ("/bin/sh", "-c", request.spec.command) if options.shell else request.argv


def _encode(text: str, what: str) -> bytes:
    if "\0" in text:
        raise StartRejected(f"{what} holds a NUL character, which no process can be given")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise StartRejected(f"{what} holds half of a character (a lone surrogate)") from error
