"""How far a pull is: the engine's steps, layer by layer, as one sentence for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastlane_core.models import Progress

_MIB = 1024**2
#: What the engine says of a layer that it has: nothing is left to download, or nothing at all.
_DOWNLOADED = ("Verifying Checksum", "Download complete", "Extracting")
_COMPLETE = ("Pull complete", "Already exists")


@dataclass(slots=True)
class _Layer:
    total: int = 0
    downloaded: int = 0
    extracted: int = 0
    is_downloaded: bool = False
    is_complete: bool = False
    #: `Retrying in 5 seconds`, while that is so.
    trouble: str = ""


class PullProgress:
    """What the steps of one pull add up to."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._layers: dict[str, _Layer] = {}

    def heed(self, step: Mapping[str, Any]) -> None:
        """Take in one step, an object of the answer of `POST /images/create`."""
        status = str(step.get("status", ""))
        if "id" not in step or status.startswith("Pulling from"):
            return
        layer = self._layers.setdefault(str(step["id"]), _Layer())
        detail = step.get("progressDetail") or {}
        # With a unit it is no number of bytes: engines on containerd count the seconds that extracting takes.
        current, total = (0 if detail.get("units") else int(detail.get(key) or 0) for key in ("current", "total"))
        layer.trouble = status if status.startswith("Retrying") else ""
        layer.total = max(layer.total, total)
        if status in _COMPLETE:
            layer.is_complete = layer.is_downloaded = True
            layer.extracted = layer.total
        elif status in _DOWNLOADED:
            layer.is_downloaded = True
            layer.extracted = current if status == "Extracting" else 0
        else:
            layer.downloaded = current
        if layer.is_downloaded:
            layer.downloaded = layer.total

    def now(self) -> Progress:
        """Bytes of the layers whose size is known: downloaded first, then extracted."""
        layers = self._layers.values()
        total = sum(layer.total for layer in layers)
        if not total:
            return Progress(message=f"pulling {self._image}")
        extracting = all(layer.is_downloaded for layer in layers)
        current = sum(layer.extracted if extracting else layer.downloaded for layer in layers)
        words = f"{current / _MIB:.1f} of {total / _MIB:.1f} MiB"
        if extracting:
            words = f"extracting, {words}" if current else f"extracting {total / _MIB:.1f} MiB"
        if len(layers) > 1:
            words += f", {sum(layer.is_complete for layer in layers)} of {len(layers)} layers complete"
        troubles = sorted({layer.trouble for layer in layers if layer.trouble})
        if troubles:
            words += f" ({troubles[0].lower()})"
        return Progress(message=f"pulling {self._image}: {words}", current=current, total=total)
