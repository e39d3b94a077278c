"""Certificates of the tests' own: authorities, and what they sign for engines and for their clients."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import trustme


@dataclass(frozen=True)
class Identity:
    """A certificate with the authorities between it and the one that is trusted, and its key: paths of PEM files."""

    cert: str
    key: str


class Authority:
    """Signs certificates."""

    def __init__(self, folder: Path) -> None:
        """`folder` is new and its own."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._authority = trustme.CA()
        #: Path of its own certificate.
        self.ca = str(folder / "ca.pem")
        self._authority.cert_pem.write_to_path(self.ca)

    def issue(self, name: str, *, not_before: datetime | None = None, not_after: datetime | None = None) -> Identity:
        """A new certificate for a host name or an address, or for a client of any name."""
        leaf = self._authority.issue_cert(name, not_before=not_before, not_after=not_after)
        number = len(list(self._folder.iterdir()))
        identity = Identity(str(self._folder / f"{number}-cert.pem"), str(self._folder / f"{number}-key.pem"))
        Path(identity.cert).write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(identity.key)
        return identity
