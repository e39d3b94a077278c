"""An image registry of the tests' own on the loopback address: Debian's `docker-registry`."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from pathlib import Path

import docker

from tests.services.debian import program
from tests.services.docker_engine import PATIENCE
from tests.services.ports import free_port

_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {folder}/data}}
http:
  addr: 127.0.0.1:{port}
"""
_AUTH = """\
auth:
  htpasswd: {{realm: tests, path: {folder}/htpasswd}}
"""

#: The one user whom a registry with credentials lets in. Such a registry wants passwords as bcrypt.
USER = "alice"
PASSWORD = "let-me-in"
_HTPASSWD = f"{USER}:$2b$05$L8YXfICvVxJdxLmVp4qGXO/uUNH.Fvnfhw3rZeQ6tB0jcxB8ZPbK.\n"


class Registry:
    """A registry; engines of this machine take it without TLS, as it is on loopback."""

    def __init__(self, folder: Path, *, with_credentials: bool = False) -> None:
        """With credentials it lets nobody in but `USER`."""
        self._folder = folder
        self._with_credentials = with_credentials
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def unavailable() -> str:
        """Why none can be started here; "" if one can."""
        return "" if program("docker-registry") else "docker-registry is not installed"

    def __enter__(self) -> Registry:
        config = self._folder / "config.yml"
        (self._folder / "htpasswd").write_text(_HTPASSWD)
        text = _CONFIG + (_AUTH if self._with_credentials else "")
        config.write_text(text.format(folder=self._folder, port=self.port))
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
            credentials = {"username": USER, "password": PASSWORD}
            steps = client.push(
                f"{self.address}/{repository}", tag or "latest", stream=True, decode=True, auth_config=credentials
            )
            for step in steps:
                if "error" in step:
                    raise RuntimeError(step["error"])
            client.remove_image(reference)
        return reference
