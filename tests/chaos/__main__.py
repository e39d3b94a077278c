"""A long storm: `python -m tests.chaos [--seed N] [--jobs 300] [--seconds 300] [--sqlite] [--folder F]`."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.chaos.servers import on_mongo_and_redis, on_sqlite
from tests.chaos.storm import storm


def main() -> int:
    """Storm and print the report; 1 if anything was lost, doubled or left behind, or not hurt."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of what is hurt, and when")
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=300.0, help="of damage; then everything may end")
    parser.add_argument("--sqlite", action="store_true", help="instead of MongoDB and Redis")
    parser.add_argument("--folder", type=Path, help="a new one with a short name, to keep all logs and settings in")
    options = parser.parse_args()
    print(f"seed {options.seed}: {options.jobs} jobs over {options.seconds:g} s of damage ...", flush=True)
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fl")))
        folder.mkdir(exist_ok=True)
        beneath = on_sqlite(folder) if options.sqlite else stack.enter_context(on_mongo_and_redis(folder))
        report = storm(folder, beneath, seed=options.seed, jobs=options.jobs, seconds=options.seconds)
    print(report)
    return 1 if report.problems or report.undone else 0


if __name__ == "__main__":
    sys.exit(main())
