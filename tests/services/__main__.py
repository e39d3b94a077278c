"""`python -m tests.services install|docker`."""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
from pathlib import Path

from tests.services import debian


def main() -> int:
    """The exit code."""
    wanted = sys.argv[1:]
    if wanted == ["install"]:
        return debian.install()
    if wanted == ["docker"]:
        return _docker()
    print(f"usage: python -m tests.services install|docker, not {' '.join(wanted)!r}", file=sys.stderr)
    return 2


def _docker() -> int:
    from tests.services.docker_engine import DockerEngine
    from tests.services.images import add_busybox, add_hello_world

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with tempfile.TemporaryDirectory(prefix="fastlane-engine-") as folder, DockerEngine(Path(folder)) as engine:
        add_busybox(engine.url)
        add_hello_world(engine.url)
        print(f"DOCKER_HOST={engine.url}", flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
