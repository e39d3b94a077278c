"""Start `fastlane dev`, run a hello-world job on it, show what it does, and go on serving.

With ONCE=1 in the environment it ends after the job, with the job's exit code.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

FOLDER = Path("fastlane-data")
PATIENCE = 60.0
#: Looked for on the engine before anything is pulled.
IMAGES = ("busybox:latest", "alpine:latest", "ubuntu:latest", "debian:latest")
SCRIPT = 'for i in 1 2 3; do echo "hello world, line $i"; sleep 0.5; done; echo "and a word on stderr" >&2'


def engine() -> tuple[str, str] | None:
    """A Docker engine in reach and an image for the job, or None."""
    import docker
    from docker.errors import DockerException

    url = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    try:
        client = docker.DockerClient(base_url=url, timeout=5)
        client.ping()
        present = {tag for image in client.images.list() for tag in image.tags}
    except (DockerException, OSError):
        return None
    return url, next((image for image in IMAGES if image in present), IMAGES[0])


def free_port(wanted: int) -> int:
    """The wanted port, or a free one if something listens there already."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise SystemExit("No port of 127.0.0.1 is free.")


def main() -> int:
    """The demo's exit code."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    found = engine()
    settings = ['SQLITE_PATH = "fastlane-data/demo.db"']
    if found:
        url, image = found
        print(f"Docker engine: {url}; the job runs in the image {image}.")
        hosts = [{"match": "", "hosts": [url], "maxRunning": 4}]
        settings += ['RUNNERS = ["docker"]', f"DOCKER_HOSTS = {hosts!r}"]
    else:
        image = "none"
        print("There is no Docker engine in reach (DOCKER_HOST, /var/run/docker.sock), so the job runs as a plain")
        print("process of this machine, without isolation.")
        settings += ['RUNNERS = ["process"]', 'PROCESS_FOLDER = "fastlane-data/process"']
    config = FOLDER / "demo.conf"
    config.write_text("\n".join(settings) + "\n")
    port = free_port(10000)
    address = f"http://127.0.0.1:{port}"

    program = [str(Path(sys.executable).with_name("fastlane"))]
    log = FOLDER / "demo.log"
    with log.open("ab") as output:
        server = subprocess.Popen(
            [*program, "dev", "-c", str(config), "-p", str(port), "-v"],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        wait_for(server, address, log)
        print(f"\n$ fastlane run {image} -- sh -c '{SCRIPT}'\n", flush=True)
        job = [*program, "run", "--url", address, "--task", "hello-world", image, "--", "sh", "-c", SCRIPT]
        exit_code = subprocess.run(job, check=False).returncode
        print(f"\nThe job ended with exit code {exit_code}. Where to look next:")
        print(f"  {address}/tasks/hello-world/    the task and its jobs")
        print(f"  {address}/status/               lanes, queues and workers")
        print(f"  {log}    what Fastlane itself says")
        if os.environ.get("ONCE"):
            return exit_code
        print(f"\nServing on {address} until Ctrl-C. Try:")
        body = json.dumps({"image": image, "command": "ls -lah"})
        print(f"  curl -d '{body}' {address}/tasks/my-task", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(PATIENCE)


def wait_for(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Return when Fastlane answers; ends the demo if it does not."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            if httpx.get(f"{address}/healthcheck", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit(f"fastlane dev did not start; the end of {log}:\n{log.read_text()[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
