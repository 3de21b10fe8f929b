"""Times the recipes of all models, from nothing, in a copy of the last commit: `python -m benchmarks.recipe_time`.

That is data sets, scores, the search with its proof, and the table of all methods (the study `protocol`), one
stage after the other. docs/recipes.md states the figures, from artifacts/benchmarks/recipe-time.json, which `--json`
prints.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from flows.copies import copy_of_head
from sparsemm.params import Params, load_params
from sparsemm.profiling.clock import heading

HERE = Path(__file__).parents[1]
COPY = HERE / "build" / "recipe-time"
BEGINS = re.compile(r"Running stage '(.+)':")  # what DVC prints before a stage


def targets(params: Params) -> list[list[str]]:
    """Returns the targets of `dvc repro`, command by command.

    First the checkpoints, which no stage that loads them can name. Then the search and the table of every model, which
    bring along all they need.
    """
    proofs = [f"{stage}{key}" for key in params.models for stage in ("tune@", "study@protocol-")]
    checkpoints = [f"assemble@{key}" for key in params.assembled]
    return [checkpoints, proofs] if checkpoints else [proofs]


def measure(copy: Path) -> dict[str, Any]:
    """Runs everything in a copy of the repository; returns the seconds of every stage that ran, and of all together.

    Raises:
        subprocess.CalledProcessError: if a stage fails; what it printed went to stderr.
    """
    environment = os.environ | {"PYTHONPATH": str(copy)}
    begins: list[tuple[str, float]] = []
    begin = time.monotonic()
    for each in targets(load_params(copy / "params.yaml")):
        command = ["dvc", "repro", *each]
        with subprocess.Popen(command, cwd=copy, env=environment, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            for line in running.stdout:
                print(line, end="", file=sys.stderr, flush=True)
                if match := BEGINS.search(line):
                    begins.append((match[1], time.monotonic()))
        if running.returncode:
            raise subprocess.CalledProcessError(running.returncode, command)
    end = time.monotonic()
    ends = [at for _, at in begins[1:]] + [end]
    rows = [{"stage": name, "seconds": round(b - a, 1)} for (name, a), b in zip(begins, ends, strict=True)]
    return {"seconds": round(end - begin, 1), "rows": rows}


def main() -> int:
    """Prints the seconds of every stage, or with --json everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe_time", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    args = parser.parse_args()
    head = heading("recipe_time", torch.device("cpu"), cores=os.cpu_count())
    result = measure(copy_of_head(HERE, COPY, lambda params: None))
    for row in result["rows"] if not args.json else ():
        print(f"{row['seconds']:8.1f} s  {row['stage']}")
    print(json.dumps(head | result, indent=2) if args.json else f"{result['seconds']:8.1f} s  all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
