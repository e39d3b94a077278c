"""What is wrong when TLS with an engine fails, as sentences that name the setting to look at."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime

import requests

from fastlane_docker.engines.addresses import TlsFiles
from fastlane_docker.engines.certificates import TlsFileError, expiry_of

#: Seconds that an engine has for saying why it hung up.
_PROBE_SECONDS = 2.0

#: The other end has closed the connection, or it was cut.
_HUNG_UP = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError, BrokenPipeError, ConnectionAbortedError)

# Codes of verification, from OpenSSL's x509_vfy.h.
_NOT_YET_VALID = 9
_EXPIRED = 10
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
_OTHER_NAME = (62, 64)
#: Reasons of OpenSSL 3 for an answer that is no TLS.
_NO_TLS = re.compile(r"WRONG_VERSION_NUMBER|PACKET_LENGTH_TOO_LONG|RECORD_LAYER_FAILURE")
#: What engines tell of a client's certificate, or of there being none.
_CLIENT_CERTIFICATE = re.compile(r"ALERT_(.*CERTIFICATE.*|UNKNOWN_CA|ACCESS_DENIED|DECRYPT_ERROR)")
_PROTOCOL = re.compile(r"PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL")
#: The answers of Go's and of nginx's servers to plain HTTP.
_WANTS_TLS = re.compile(rb"(?i)HTTP request .{0,20}to (an )?HTTPS (server|port)")


class TlsTrouble(requests.exceptions.SSLError):
    """An engine cannot be spoken to because of TLS; the message is a sentence for its operator."""


def trouble_of_plain_http(answer: requests.Response) -> TlsTrouble | None:
    """What the answer to a request without TLS tells if the engine wants TLS; else None."""
    if answer.status_code != 400 or not _WANTS_TLS.search(answer.content):
        return None
    return TlsTrouble("the engine wants TLS: give its farm in DOCKER_HOSTS a `tls`, or write the host as https://")


def trouble_of_tls(
    error: Exception, where: tuple[str, int], files: TlsFiles, context: ssl.SSLContext
) -> TlsTrouble | None:
    """What TLS has to do with a failed request to host and port `where`; None if nothing. May block for seconds."""
    causes = list(_chain(error))
    failure = next((each for each in causes if isinstance(each, ssl.SSLError) and not isinstance(each, _HUNG_UP)), None)
    if failure is None and any(isinstance(each, _HUNG_UP) for each in causes):
        # An engine that refuses the client may hang up so fast that its reason is lost while the request is sent.
        failure = _probe(where, context)
    return TlsTrouble(_sentence(failure, where[0], files)) if failure is not None else None


def _sentence(error: ssl.SSLError, host: str, files: TlsFiles) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _unverified(error, host, files)
    reason = error.reason or str(error)
    words = reason.replace("_", " ").lower()
    if _NO_TLS.search(reason):
        return (
            "it does not speak TLS on this port: name its port for TLS in `hosts` of its farm in DOCKER_HOSTS, or take "
            "away `tls` or https:// there"
        )
    if _CLIENT_CERTIFICATE.search(reason):
        alert = words.rpartition("alert ")[2]
        if files.cert is None:
            return f"it wants a client certificate: name one in `tls.cert` and `tls.key` of its farm ({alert})"
        return (
            f"it refuses the client certificate {files.cert!r}{_expired(files)}: see `tls.cert` of its farm ({alert})"
        )
    if _PROTOCOL.search(reason):
        return f"it speaks no TLS from 1.2 on; no setting of its farm's `tls` changes that ({words})"
    return f"TLS with it fails: see `tls` of its farm ({words})"


def _unverified(error: ssl.SSLCertVerificationError, host: str, files: TlsFiles) -> str:
    code, words = error.verify_code, error.verify_message
    if code in _UNKNOWN_AUTHORITY:
        if files.ca is None:
            return f"its certificate is signed by nobody that this system trusts: name a `tls.ca` in its farm ({words})"
        return f"its certificate is not signed by an authority in {files.ca!r}: see `tls.ca` of its farm ({words})"
    if code in _OTHER_NAME:
        return (
            f"its certificate is not for {host!r}: write the host in `hosts` of its farm by a name that is in the "
            "certificate, or give the engine a certificate for this one"
        )
    if code == _EXPIRED:
        return (
            "its certificate, or that of the authority that signed it, has expired: renew it (the engine's --tlscert, "
            "and `tls.ca` of its farm if it is the authority's)"
        )
    if code == _NOT_YET_VALID:
        return "its certificate is not valid yet: compare the clocks of both machines, and the engine's --tlscert"
    return f"its certificate cannot be verified: see the engine's --tlscert, and `tls.ca` of its farm ({words})"


def _expired(files: TlsFiles) -> str:
    try:
        expiry = expiry_of(files)
    except TlsFileError:
        # It has changed since; there is more to say of it at the next try.
        return ""
    if expiry is None or expiry > datetime.now(UTC):
        return ""
    return f", which expired on {expiry:%Y-%m-%d %H:%M} UTC"


def _probe(where: tuple[str, int], context: ssl.SSLContext) -> ssl.SSLError | None:
    """Connect and only listen: what the engine has against it."""
    try:
        with (
            socket.create_connection(where, _PROBE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=where[0]) as connection,
        ):
            connection.recv(1)
    except _HUNG_UP:
        # It does not say more than before.
        return None
    except ssl.SSLError as error:
        return error
    except OSError:
        return None
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that led to it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]
        waiting += [inner for inner in (*each.args, getattr(each, "reason", None)) if isinstance(inner, BaseException)]
