"""What a pull's steps add up to, as people read it."""

from __future__ import annotations

import pytest

from fastlane_core.models import Progress
from fastlane_docker.images.pull_progress import PullProgress

MIB = 1024**2


def step(status: str, layer: str = "", current: int = 0, total: int = 0, **more: object) -> dict[str, object]:
    detail = {"current": current, "total": total, **more} if total or more else {}
    return {"status": status, "progressDetail": detail, **({"id": layer} if layer else {})}


def message_of(*steps: dict[str, object]) -> str:
    return progress_of(*steps).message


def progress_of(*steps: dict[str, object]) -> Progress:
    progress = PullProgress("a:b")
    for each in steps:
        progress.heed(each)
    return progress.now()


DOWNLOADING = (
    {"status": "Pulling from a", "id": "b"},
    step("Already exists", "base"),
    step("Pulling fs layer", "one"),
    step("Pulling fs layer", "two"),
    step("Waiting", "two"),
    step("Downloading", "one", 3 * MIB, 10 * MIB),
)
DOWNLOADED = (
    *DOWNLOADING,
    step("Verifying Checksum", "one"),
    step("Download complete", "one"),
    step("Downloading", "two", 2 * MIB, 2 * MIB),
    step("Download complete", "two"),
)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((), "pulling a:b"),
        (DOWNLOADING[:5], "pulling a:b"),
        (DOWNLOADING, "pulling a:b: 3.0 of 10.0 MiB, 1 of 3 layers complete"),
        (
            (*DOWNLOADING, step("Retrying in 5 seconds", "one")),
            "pulling a:b: 0.0 of 10.0 MiB, 1 of 3 layers complete (retrying in 5 seconds)",
        ),
        (DOWNLOADED, "pulling a:b: extracting 12.0 MiB, 1 of 3 layers complete"),
        (
            (*DOWNLOADED, step("Extracting", "one", 5 * MIB, 10 * MIB)),
            "pulling a:b: extracting, 5.0 of 12.0 MiB, 1 of 3 layers complete",
        ),
        (
            (*DOWNLOADED, step("Pull complete", "one"), step("Extracting", "two", 1 * MIB, 2 * MIB)),
            "pulling a:b: extracting, 11.0 of 12.0 MiB, 2 of 3 layers complete",
        ),
        (
            (step("Downloading", "one", MIB // 2, 2 * MIB),),
            "pulling a:b: 0.5 of 2.0 MiB",
        ),
    ],
)
def test_steps_become_a_sentence(steps: tuple[dict[str, object], ...], message: str) -> None:
    assert message_of(*steps) == message


def test_bytes_are_told_beside_the_sentence() -> None:
    progress = progress_of(*DOWNLOADING)

    assert (progress.current, progress.total) == (3 * MIB, 10 * MIB)


def test_seconds_are_not_taken_for_bytes() -> None:
    steps = (*DOWNLOADED, step("Extracting", "one", 7, units="s"))

    assert message_of(*steps) == "pulling a:b: extracting 12.0 MiB, 1 of 3 layers complete"


def test_steps_of_another_kind_are_passed_over() -> None:
    assert message_of({}, {"status": "Digest: sha256:12"}, {"aux": {}}, {"id": "x"}) == "pulling a:b"
