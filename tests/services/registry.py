"""An image registry of the tests' own on the loopback address: Debian's `docker-registry`."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from pathlib import Path

import docker

from tests.services.debian import program
from tests.services.docker_engine import PATIENCE, free_port

_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {folder}/data}}
http:
  addr: 127.0.0.1:{port}
"""


class Registry:
    """A registry without credentials; engines of this machine take it without TLS, as it is on loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def unavailable() -> str:
        """Why none can be started here; "" if one can."""
        return "" if program("docker-registry") else "docker-registry is not installed"

    def __enter__(self) -> Registry:
        config = self._folder / "config.yml"
        config.write_text(_CONFIG.format(folder=self._folder, port=self.port))
        with (self._folder / "registry.log").open("ab") as log:
            command = [program("docker-registry") or "docker-registry", "serve", str(config)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            time.sleep(0.05)
        self.__exit__()
        raise RuntimeError(f"docker-registry did not start: {(self._folder / 'registry.log').read_text()[-2000:]}")

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(PATIENCE)

    def push(self, url: str, image: str, name: str) -> str:
        """Push an image of the engine at `url` under a new name, forget it there, and return its reference."""
        repository, _, tag = name.partition(":")
        reference = f"{self.address}/{repository}:{tag or 'latest'}"
        with contextlib.closing(docker.APIClient(base_url=url, version="auto", timeout=120)) as client:
            client.tag(image, f"{self.address}/{repository}", tag or "latest")
            for step in client.push(f"{self.address}/{repository}", tag or "latest", stream=True, decode=True):
                if "error" in step:
                    raise RuntimeError(step["error"])
            client.remove_image(reference)
        return reference
