"""The PEM files of a farm's `tls`: made into what connections use, with a sentence for each way they can be wrong."""

from __future__ import annotations

import base64
import os
import re
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime

import certifi
import structlog
from docker.errors import DockerException

from fastlane_core.errors import SettingsError
from fastlane_docker.engines.addresses import TlsFiles

log = structlog.get_logger(__name__)

_PEM_CERTIFICATE = re.compile(rb"-----BEGIN ((?:X509 )?CERTIFICATE)-----(.+?)-----END \1-----", re.DOTALL)
#: Bytes read of one file; those of all public authorities are some 250,000.
_LARGEST = 16 * 1024 * 1024
#: What OpenSSL says of a key of another certificate, and of one of another kind than the certificate's.
_MISFITS = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
#: Tags of DER.
_VERSION = 0xA0
_UTC_TIME = 0x17


class TlsFileError(DockerException):  # type: ignore[misc]
    """A file of a farm's `tls` cannot be used; names its key, its path and why."""

    def __init__(self, key: str, path: str, why: str) -> None:
        super().__init__(f"tls.{key} = {path!r}: {why}")


def check_files(farms: Mapping[str, TlsFiles]) -> None:
    """Look at the files of each farm's `tls`, by the farm's name; blocks.

    Raises SettingsError with everything that can never work. A client certificate that has expired is only warned of:
    once it is renewed the farm works again, and until then the other farms do.
    """
    wrong = []
    for name, files in farms.items():
        try:
            make_context(files)
            expiry = expiry_of(files)
        except TlsFileError as error:
            wrong.append(f"the farm {name} in DOCKER_HOSTS cannot use TLS: {error}")
            continue
        if expiry is not None and expiry < datetime.now(UTC):
            log.warning(
                "the client certificate of a Docker farm has expired: its engines will refuse it until it is renewed",
                farm=name,
                key="tls.cert",
                path=files.cert,
                expired=expiry.isoformat(),
            )
    if wrong:
        raise SettingsError("\n".join(wrong))


def make_context(files: TlsFiles) -> ssl.SSLContext:
    """What TLS connections to an engine are made with: certificate and name of the engine are verified.

    Raises TlsFileError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if files.ca is None:
        _trust_the_system_s_authorities(context)
    else:
        _trust(context, files.ca)
    if files.cert is not None and files.key is not None:
        _identify(context, files.cert, files.key)
    return context


def state_of(files: TlsFiles) -> tuple[tuple[int, int, int], ...]:
    """Differs once one of the files was replaced or changed."""
    return tuple(_stamp(path) for path in (files.ca, files.cert, files.key) if path is not None)


def expiry_of(files: TlsFiles) -> datetime | None:
    """When the client certificate expires; None if there is none, or if it says so in no known way.

    Raises TlsFileError.
    """
    if files.cert is None:
        return None
    certificate = _first_certificate("cert", files.cert)
    try:
        return _not_after(certificate)
    except (ValueError, IndexError):
        # Whether such a certificate is good is for its engine to say.
        return None


def _trust(context: ssl.SSLContext, path: str) -> None:
    _first_certificate("ca", path)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise TlsFileError("ca", path, "it holds no certificate that can be read") from error
    if not context.cert_store_stats()["x509_ca"]:
        raise TlsFileError("ca", path, "none of its certificates is that of an authority (CA:TRUE)")


def _trust_the_system_s_authorities(context: ssl.SSLContext) -> None:
    system = ssl.get_default_verify_paths()
    if system.cafile or (system.capath and os.listdir(system.capath)):
        context.load_default_certs()
    else:
        # Small container images have none.
        context.load_verify_locations(cafile=certifi.where())


def _identify(context: ssl.SSLContext, cert: str, key: str) -> None:
    _first_certificate("cert", cert)
    _read("key", key)

    def password() -> str:
        # OpenSSL would ask for it on the terminal.
        raise TlsFileError("key", key, "it is encrypted; write it without a password, readable for this user alone")

    try:
        context.load_cert_chain(cert, key, password)
    except ssl.SSLError as error:
        if error.reason in _MISFITS:
            raise TlsFileError("key", key, f"it does not belong to the certificate tls.cert = {cert!r}") from error
        if error.reason is not None:
            raise TlsFileError("cert", cert, f"OpenSSL refuses it: {error.reason.replace('_', ' ').lower()}") from error
        raise TlsFileError("key", key, "it holds no PEM private key") from error


def _first_certificate(key: str, path: str) -> bytes:
    """The DER form of a file's first certificate."""
    found = _PEM_CERTIFICATE.search(_read(key, path))
    if found is None:
        raise TlsFileError(key, path, "it holds no PEM certificate")
    try:
        der = base64.b64decode(found[2])
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=der)
    except (ValueError, ssl.SSLError) as error:
        raise TlsFileError(key, path, "it holds no certificate that can be read") from error
    return der


def _read(key: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_LARGEST)
    except OSError as error:
        raise TlsFileError(key, path, f"it cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise TlsFileError(key, path, f"this is no path: {error}") from error


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def _not_after(certificate: bytes) -> datetime:
    """The end of a DER certificate's validity, which Python tells of verified ones only (RFC 5280, 4.1)."""
    ((_, whole),) = _elements(certificate)
    (_, signed), *_ = _elements(whole)
    fields = [content for tag, content in _elements(signed) if tag != _VERSION]
    _serial, _algorithm, _issuer, validity, *_ = fields
    _, (kind, end) = _elements(validity)
    text = end.decode("ascii")
    if kind == _UTC_TIME:
        text = f"{'19' if text[:2] >= '50' else '20'}{text}"
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element of a DER sequence."""
    found = []
    at = 0
    while at < len(data):
        tag, size, start = data[at], data[at + 1], at + 2
        if size & 0x80:
            start += size & 0x7F
            size = int.from_bytes(data[at + 2 : start], "big")
        found.append((tag, data[start : start + size]))
        at = start + size
    return found
