"""Who this worker is to registries: by Fastlane's settings, else by Docker's own configuration file.

The file is the one that `docker login` writes (`$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`). It may name
programs that keep the secrets (`credsStore`, `credHelpers`); their protocol is docker/docker-credential-helpers'.
It is read for each pull, so that a new login counts at once. Everything here blocks.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from docker import auth
from docker.errors import DockerException
from docker.utils.config import find_config_file

from fastlane_docker.settings import RegistrySettings

#: A program that keeps secrets may ask a service of its cloud for a new one.
_HELPER_SECONDS = 30.0
_NOTHING_KEPT = "credentials not found"
#: The name under which programs keep the secrets of the default registry.
_DEFAULT_REGISTRY_KEY = auth.INDEX_URL
#: Stands in the place of the user for what is a token.
_TOKEN_USER = auth.TOKEN_USERNAME


@dataclass(frozen=True, slots=True)
class Credentials:
    """What to show a registry."""

    #: Value of the engine's header `X-Registry-Auth`; None where there are no credentials. Never to be logged.
    header: str | None = None
    #: Why there are none although there should be; "" if all is well.
    trouble: str = ""

    def __repr__(self) -> str:
        return f"Credentials(header={'...' if self.header else None}, trouble={self.trouble!r})"


def credentials_for(registry: str, settings: Mapping[str, RegistrySettings]) -> Credentials:
    """The credentials for a registry, named as in `Reference.registry`. Raises nothing: a pull may do without."""
    own = settings.get(registry)
    if own is not None:
        return _credentials(
            registry, own.username, own.password.get_secret_value(), own.identityToken.get_secret_value()
        )
    found = find_config_file()
    if found is None:
        return Credentials()
    try:
        return _configured(registry, Path(found))
    except (OSError, ValueError, TypeError, AttributeError, DockerException) as error:
        return Credentials(trouble=f"Docker's configuration {found} cannot be used: {error}")
    except _HelperFailed as error:
        return Credentials(trouble=f"{error} (it is named in {found})")


def _configured(registry: str, path: Path) -> Credentials:
    document = json.loads(path.read_bytes())
    if not isinstance(document, dict):
        raise ValueError("it holds no object")
    config = auth.AuthConfig.load_config(None, document) if document else auth.AuthConfig({})
    helper = config.get_credential_store(registry)
    if helper and (kept := _kept(registry, str(helper))) is not None:
        return kept
    entry = auth.AuthConfig({"auths": config.auths}).resolve_authconfig(registry) or {}
    return _credentials(
        registry, entry.get("username") or "", entry.get("password") or "", entry.get("IdentityToken") or ""
    )


def _kept(registry: str, helper: str) -> Credentials | None:
    """What the program `docker-credential-<helper>` keeps for the registry; None if it keeps nothing."""
    name = f"docker-credential-{helper}"
    program = shutil.which(name)
    if program is None:
        raise _HelperFailed(f"the program {name} is not installed")
    key = _DEFAULT_REGISTRY_KEY if registry == auth.INDEX_NAME else registry
    try:
        done = subprocess.run(
            [program, "get"], input=key.encode(), capture_output=True, check=False, timeout=_HELPER_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise _HelperFailed(f"the program {name} did not answer within {_HELPER_SECONDS:g} s") from error
    except OSError as error:
        raise _HelperFailed(f"the program {name} cannot be run: {error}") from error
    if done.returncode != 0:
        if _NOTHING_KEPT in done.stdout.decode(errors="replace"):
            return None
        # What it wrote is not told: it may be what it keeps.
        raise _HelperFailed(f"the program {name} failed with exit code {done.returncode}")
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError):
        raise _HelperFailed(f"the program {name} did not answer with a user name and a secret") from None
    if not (user or secret):
        return None
    if user == _TOKEN_USER:
        return _credentials(registry, "", "", secret)
    return _credentials(registry, user, secret, "")


def _credentials(registry: str, username: str, password: str, identity_token: str) -> Credentials:
    if identity_token:
        fields = {"identitytoken": identity_token}
    elif username or password:
        fields = {"username": username, "password": password}
    else:
        return Credentials()
    address = _DEFAULT_REGISTRY_KEY if registry == auth.INDEX_NAME else registry
    text = json.dumps({**fields, "serveraddress": address})
    return Credentials(header=base64.urlsafe_b64encode(text.encode()).decode())


class _HelperFailed(Exception):
    """A program that keeps secrets gave none."""
