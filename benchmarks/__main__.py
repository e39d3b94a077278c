"""Every benchmark in its full size, held to what is promised: `python -m benchmarks`. Takes about half an hour.

Prints what each measures, and at the end which of them kept to its limits; the exit code is 1 when one did not. The
limits are meant for a machine that does nothing else meanwhile.
"""

from __future__ import annotations

import subprocess
import sys

#: Each module, and what holds it to its limit.
LIMITS = {
    "submit": ("--at-least", "0.7"),
    "bulk": ("--at-least", "15000"),
    "schedules": ("--check",),
    "queue": ("--check",),
    "history": ("--at-most", "2"),
    "hung_engine": ("--at-most-ms", "200"),
    "throughput": ("--at-least", "0.95", "--most-ms", "20", "--most-cpu-ms", "15"),
}


def main() -> int:
    """Run all, one after the other."""
    kept: dict[str, bool] = {}
    for name, limit in LIMITS.items():
        print(f"== {name}", flush=True)
        kept[name] = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *limit], check=False).returncode == 0
    print("== limits")
    for name, limit in LIMITS.items():
        print(f"{'kept' if kept[name] else 'NOT KEPT':9} {name} {' '.join(limit)}")
    return 0 if all(kept.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
