"""The whole pipeline on the pretrained model with few pages: `python -m examples.demo`, or `make demo`.

It works in build/demo, a copy of the last commit; the results in Git, which come from more pages, stay as they are.
Run again, it continues where it was stopped.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from flows.copies import copy_of_head, demo

FOLDER = Path("build") / "demo"


def stage_seconds(lines: Iterable[str]) -> dict[str, float]:
    """Prints the lines of `dvc repro` as they come; returns the wall-clock seconds of every stage that it ran."""
    starts: dict[str, float] = {}
    for line in lines:
        print(line, end="", flush=True)
        if stage := re.match(r"Running stage '(.+)':", line):
            starts[stage[1]] = time.monotonic()
    ends = [*starts.values(), time.monotonic()][1:]
    return {name: end - start for (name, start), end in zip(starts.items(), ends, strict=True)}


def main() -> int:
    """Makes the copy unless there is one of this commit, runs `dvc repro` in it, and says where the report is."""
    argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__).parse_args()
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    stamp = FOLDER / ".copied"
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != head:
        copy_of_head(Path("."), FOLDER, demo)
        stamp.write_text(head, encoding="utf-8")
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    command = [str(programs / "dvc"), "repro"]
    with subprocess.Popen(command, cwd=FOLDER, env=environment, stdout=subprocess.PIPE, text=True) as done:
        assert done.stdout is not None
        seconds = stage_seconds(done.stdout)
    for name, spent in sorted(seconds.items(), key=lambda one: -one[1]):
        print(f"{spent:6.0f} s  {name}")
    if done.returncode:
        print("It stopped; the same command continues from there.", file=sys.stderr)
        return done.returncode
    print(f"The report is in {FOLDER / 'artifacts' / 'report' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
