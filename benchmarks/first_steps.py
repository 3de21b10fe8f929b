"""Times what a newcomer does first, in a fresh clone of the last commit: `python -m benchmarks.first_steps`.

`make setup`, `make demo`, and in an environment of its own `pip install '.[pdf]'`, with the bytes that each leaves on
the disk. README states the figures, from artifacts/benchmarks/first-steps.json, which `--json` prints. Downloads are
part of the times, unless pip or uv have them in their caches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sparsemm.profiling.clock import heading

HERE = Path(__file__).parents[1]
STEPS = {  # name -> command in the clone, and the folder whose bytes it adds
    "setup": (["make", "setup"], ".venv"),
    "demo": (["make", "demo"], "build/demo"),
    "environment": ([sys.executable, "-m", "venv", "build/library"], "build/library"),
    "install": (["build/library/bin/python", "-m", "pip", "install", "--quiet", ".[pdf]"], "build/library"),
}


def bytes_below(folder: Path) -> int:
    """Returns the bytes that a folder takes on the disk; a file with several names in it counts once."""
    blocks = {(one.st_dev, one.st_ino): one.st_blocks for path in folder.rglob("*") if (one := path.lstat())}
    return 512 * sum(blocks.values())


def measure(clone: Path) -> list[dict[str, Any]]:
    """Runs the steps in a clone; returns for each its command, seconds of wall-clock time, and the bytes of its folder.

    Raises:
        subprocess.CalledProcessError: if a step fails; what it printed went to stderr.
    """
    here = {"VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "MAKELEVEL"}  # of the environment that this runs in
    environment = {name: value for name, value in os.environ.items() if name not in here}
    rows = []
    for name, (command, folder) in STEPS.items():
        start = time.monotonic()
        subprocess.run(command, cwd=clone, env=environment, check=True, stdout=sys.stderr)
        seconds = round(time.monotonic() - start, 1)
        words = " ".join(command).replace(sys.executable, "python3")
        rows.append({"step": name, "command": words, "seconds": seconds, "bytes": bytes_below(clone / folder)})
    return rows


def main() -> int:
    """Prints a line for each step, or with --json everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_steps", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    args = parser.parse_args()
    head = heading("first_steps", torch.device("cpu"), cores=os.cpu_count())
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(HERE), str(clone)], check=True)
        rows = measure(clone)
    for row in rows if not args.json else ():
        print(f"{row['seconds']:8.1f} s {row['bytes'] / 1e9:6.2f} GB  {row['command']}")
    if args.json:
        print(json.dumps(head | {"rows": rows}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
