"""Keys that no installed section owns: what to say of them."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def _comes_with(distribution: str) -> str:
    return f"it comes with the plugin {distribution}, which is not in use here: install it, or remove the key"


_NO_BASIC_AUTH = (
    "this version asks nobody for a password: put a proxy that does in front of the API, and remove the key"
)

#: Keys of the first Fastlane (2019) that belong to a plugin, or are gone.
_ELSEWHERE = {
    "DOCKER_HOSTS": _comes_with("fastlane-docker"),
    "DOCKER_CIRCUIT_BREAKER_MAX_FAILS": _comes_with("fastlane-docker"),
    "DOCKER_CIRCUIT_BREAKER_RESET_TIMEOUT_SECONDS": _comes_with("fastlane-docker"),
    "SMTP_USE_SSL": _comes_with("fastlane-notify"),
    "SMTP_HOST": _comes_with("fastlane-notify"),
    "SMTP_PORT": _comes_with("fastlane-notify"),
    "SMTP_USER": _comes_with("fastlane-notify"),
    "SMTP_PASSWORD": _comes_with("fastlane-notify"),
    "SMTP_FROM": _comes_with("fastlane-notify"),
    "WEBHOOKS_EXPONENTIAL_BACKOFF_MIN_MS": _comes_with("fastlane-notify"),
    "WEBHOOKS_EXPONENTIAL_BACKOFF_FACTOR": _comes_with("fastlane-notify"),
    "SENTRY_DSN": _comes_with("fastlane-sentry"),
    "ERROR_HANDLERS": "it is gone: each installed error reporter (like fastlane-sentry) is used; remove the key",
    "EXECUTOR": "it is gone: runners are plugins, and RUNNERS names those to use; remove the key",
    "ENV": "it is gone: nothing depends on it; remove the key",
    "SECRET_KEY": "it is gone: Fastlane signs nothing with a key of yours; remove the key",
    "ENABLE_CORS": "it is gone: CORS_ORIGINS alone names the origins whose pages may use the API; remove the key",
    "BASIC_AUTH_USERNAME": _NO_BASIC_AUTH,
    "BASIC_AUTH_PASSWORD": _NO_BASIC_AUTH,
    "BASIC_AUTH_REALM": _NO_BASIC_AUTH,
}

#: Refused even as bare variables: whoever sets them believes that the API is protected.
REFUSED_BARE = frozenset({"BASIC_AUTH_USERNAME", "BASIC_AUTH_PASSWORD"})
#: Noticed as bare variables, but not refused: other programs on the machine may use the same names.
NOTICED_BARE = frozenset(_ELSEWHERE) - REFUSED_BARE - {"ENV", "SECRET_KEY"}


def explain_unknown(key: str, known: Collection[str]) -> str:
    """Why `key` is not accepted and what to do instead."""
    if key in _ELSEWHERE:
        return _ELSEWHERE[key]
    nearest = difflib.get_close_matches(key.upper(), known, n=1, cutoff=0.6)
    if nearest:
        return f"no such setting; did you mean {nearest[0]}?"
    return "neither Fastlane nor an installed plugin has such a setting; `fastlane config` prints all there are"
