"""What operators see of a service that cannot start."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path


def test_an_address_in_use_is_one_clear_error_before_anything_is_opened(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "fastlane_core", "dev", "-p", str(port)]
        done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
