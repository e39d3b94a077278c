"""Images made on this machine, since no registry need be in reach."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import docker

from tests.services.debian import program

_DEBOOTSTRAP_SECONDS = 900
_HELLO = "\nHello from Docker!\nThis message shows that your installation appears to be working correctly.\n\n"


def add_busybox(url: str) -> None:
    """`busybox:latest`, of Debian's static busybox, unless the engine has one."""
    if not _has(url, "busybox:latest"):
        _import(url, _busybox_root({}), "busybox", ["CMD sh"])


def add_hello_world(url: str) -> None:
    """`hello-world:latest`, which greets, unless the engine has one."""
    if not _has(url, "hello-world:latest"):
        script = f"#!/bin/sh\ncat <<'END'\n{_HELLO}END\n"
        _import(url, _busybox_root({"hello": script}), "hello-world", ['CMD ["/hello"]'])


def add_ubuntu(url: str) -> None:
    """`ubuntu:latest`, a small Debian root by that name, unless the engine has one. Slow the first time."""
    if not _has(url, "ubuntu:latest"):
        _import(url, _debian_root(), "ubuntu", ["CMD bash"])


def add_python(url: str) -> None:
    """`debian-python:latest`, a small Debian root with Python and its module venv, like `add_ubuntu`."""
    if not _has(url, "debian-python:latest"):
        _import(url, _debian_root("python3-venv"), "debian-python", ["CMD python3"])


def add_blob(url: str, name: str, size: int) -> None:
    """An image by that name (with its tag) that is busybox and `size` random bytes in the file `/blob`."""
    repository, _, tag = name.rpartition(":")
    with contextlib.closing(docker.APIClient(base_url=url, version="auto", timeout=300)) as client:
        root = _busybox_root({"blob": os.urandom(size)})
        client.import_image_from_data(root, repository=repository, tag=tag, changes=["CMD sh"])


def can_make_ubuntu() -> bool:
    """Whether `add_ubuntu` can work here."""
    return _can_make_root()


def can_make_python() -> bool:
    """Whether `add_python` can work here."""
    return _can_make_root("python3-venv")


def _can_make_root(*packages: str) -> bool:
    return _cached_root(*packages).exists() or (os.geteuid() == 0 and program("debootstrap") is not None)


def _has(url: str, tag: str) -> bool:
    with contextlib.closing(docker.APIClient(base_url=url, version="auto", timeout=60)) as client:
        return bool(client.images(name=tag, quiet=True))


def _import(url: str, root: bytes, repository: str, changes: list[str]) -> None:
    with contextlib.closing(docker.APIClient(base_url=url, version="auto", timeout=300)) as client:
        client.import_image_from_data(root, repository=repository, tag="latest", changes=changes)


def _busybox_root(files: Mapping[str, str | bytes]) -> bytes:
    busybox = program("/bin/busybox") or "/bin/busybox"
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777)):
            _add(tar, name, tarfile.DIRTYPE, mode)
        for name in ("dev", "proc", "sys", "usr", "usr/bin"):
            _add(tar, name, tarfile.DIRTYPE, 0o755)
        _add(tar, "bin/busybox", tarfile.REGTYPE, 0o755, Path(busybox).read_bytes())
        for applet in applets:
            if applet != "busybox":
                _add(tar, f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
        _add(
            tar,
            "etc/passwd",
            tarfile.REGTYPE,
            0o644,
            b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        )
        _add(tar, "etc/group", tarfile.REGTYPE, 0o644, b"root:x:0:\nnogroup:x:65534:\n")
        for name, data in files.items():
            _add(tar, name, tarfile.REGTYPE, 0o755, data.encode() if isinstance(data, str) else data)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(data), link
    tar.addfile(entry, io.BytesIO(data))


def _debian_root(*packages: str) -> bytes:
    """A tar of Debian's smallest root, and these packages."""
    cached = _cached_root(*packages)
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        _, codename = _own_release()
        with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
            root, packed = Path(folder) / "root", Path(folder) / "root.tar"
            debootstrap = [program("debootstrap") or "debootstrap", "--variant=minbase"]
            if packages:
                debootstrap.append(f"--include={','.join(packages)}")
            subprocess.run(
                [*debootstrap, codename, str(root), _own_mirror()],
                check=True,
                capture_output=True,
                timeout=_DEBOOTSTRAP_SECONDS,
            )
            shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
            subprocess.run(["tar", "-C", str(root), "-cf", str(packed), "."], check=True, timeout=_DEBOOTSTRAP_SECONDS)
            packed.rename(cached)
    return cached.read_bytes()


def _cached_root(*packages: str) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "fastlane-tests" / f"{'-'.join((_own_release()[1], *packages))}.tar"


def _own_release() -> tuple[str, str]:
    """Id and codename of the system that the tests run on."""
    lines = Path("/etc/os-release").read_text().splitlines()
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    return fields.get("ID", "").strip('"'), fields.get("VERSION_CODENAME", "stable").strip('"')


def _own_mirror() -> str:
    """The package mirror that this machine uses itself."""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    for source in sources:
        if not source.is_file():
            continue
        for line in source.read_text().splitlines():
            words = line.split()
            if words[:1] in (["deb"], ["URIs:"]):
                url = next((word for word in words[1:] if "://" in word), None)
                if url and "security" not in url:
                    return url
    raise RuntimeError("this machine's package mirror is not in /etc/apt")
