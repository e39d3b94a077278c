"""What never leaves: values under keys that name a secret, and passwords inside URLs.

A configured word names a secret where it stands among the words of a key. Keys are cut at everything that is not a
letter and at changes of case, and compared without case: `API_KEY`, `apiKey` and `api-key` all read "api key".

- A word matches the whole of a key's word, or its plural: `key` is in `API_KEY`, `apiKeys` and `KEY2`, but not in
  `MONKEY` or `keyboard`.
- Words of five letters and more also match inside a key, wherever it is cut: `password` is in `PGPASSWORD` and
  `PASS_WORD`, `client_id` in `CLIENTID`.
- Shorter words also match behind the usual first halves of undivided names: `APIKEY`, `sshkey`.

When in doubt it redacts: `max_tokens` is taken for a secret where `token` is one of the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from functools import lru_cache

#: What stands in place of a secret.
REDACTED = "***"

_CASE_CHANGE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_LETTERS = re.compile(r"[^\W\d_]+")
#: Shortest word that is looked for inside other words: shorter ones are part of too many innocent ones.
_LONG = 5
#: First halves of names like `apikey`, which nothing divides.
_FIRST_HALVES = (
    "access|account|admin|aes|api|app|auth|aws|db|deploy|encryption|gpg|hmac|host|jwt|license|master|pg|pgp|private|"
    "public|rsa|secret|service|session|shared|sign|signing|ssh|ssl|storage|tls|user"
)
#: Deeper than any honest data; what is below is not looked at but replaced.
_DEEPEST = 64

_PASSWORD_IN_URL = re.compile(r"(?<=://)([^\s:/@?#'\"]*):[^\s/?#'\"]*@")
_TOKEN_IN_URL = re.compile(r"(?i)\b(https?://)[^\s:/@?#'\"]+@")


def is_secret(key: str, words: Iterable[str]) -> bool:
    """Whether a value under `key` is a secret, by the rule at the top of this module."""
    return _is_secret(key, tuple(words))


def redact(value: object, words: Iterable[str]) -> object:
    """A copy of JSON-like `value` with `***` for whatever stands under a key that names a secret, at any depth.

    No words, nothing redacted.
    """
    wanted = tuple(words)
    return _redact(value, wanted, 0) if wanted else value


def redact_url(text: str) -> str:
    """`text` with `***` for each password in a URL, and for a user name alone in an HTTP one (a token, as a rule)."""
    if "://" not in text:
        return text
    return _TOKEN_IN_URL.sub(rf"\1{REDACTED}@", _PASSWORD_IN_URL.sub(rf"\1:{REDACTED}@", text))


def _redact(value: object, words: tuple[str, ...], depth: int) -> object:
    if isinstance(value, str | bytes | bytearray):
        return value
    if depth > _DEEPEST:
        return REDACTED
    if isinstance(value, Mapping):
        return {
            key: REDACTED if _is_secret(str(key), words) else _redact(below, words, depth + 1)
            for key, below in value.items()
        }
    if isinstance(value, Sequence | Set):
        return [_redact(below, words, depth + 1) for below in value]
    return value


@lru_cache(maxsize=4096)
def _is_secret(key: str, words: tuple[str, ...]) -> bool:
    parts = _parts(key)
    joined = "".join(parts)
    return any(_names(tuple(_parts(word)), parts, joined) for word in words)


def _names(word: tuple[str, ...], parts: Sequence[str], joined: str) -> bool:
    if not word:
        return False
    whole = "".join(word)
    if len(whole) >= _LONG and whole in joined:
        return True
    for start in range(len(parts) - len(word) + 1):
        *firsts, last = parts[start : start + len(word)]
        if firsts == list(word[:-1]) and last in (word[-1], word[-1] + "s"):
            return True
    undivided = re.compile(rf"(?:{_FIRST_HALVES}){re.escape(whole)}s?")
    return any(undivided.fullmatch(part) for part in parts)


def _parts(key: str) -> list[str]:
    # A key is a name: only its first thousand characters can make it one.
    return [part.lower() for part in _LETTERS.findall(_CASE_CHANGE.sub(" ", key[:1000]))]
