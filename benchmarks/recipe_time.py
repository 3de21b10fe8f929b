"""Times the recipes of all models, from nothing, in a copy of the last commit: `python -m benchmarks.recipe_time`.

That is data sets, scores, budgets, the search with its proof, and the table of methods (the study `protocol`). DVC
runs one stage at a time, so as many commands as there are cores run side by side, with one thread each. docs/recipes.md
states the figures, from artifacts/benchmarks/recipe-time.json, which `--json` prints.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from flows.copies import copy_of_head
from sparsemm.params import Params, load_params
from sparsemm.profiling.clock import heading

HERE = Path(__file__).parents[1]
COPY = HERE / "build" / "recipe-time"


def rounds(params: Params) -> list[list[list[str]]]:
    """Returns the targets of `dvc repro` in three rounds; a round is of commands that can run side by side.

    They are the data sets and checkpoints, the budgets of every model, and its search and table, in the order of
    params.yaml.
    """
    data = [f"download@{name}" for name in dict.fromkeys((params.chase.dataset, params.evaluate.dataset))]
    checkpoints = [f"assemble@{key}" for key in params.assembled]
    budgets = ("align", "chase", "allocate")
    proofs = [[f"{stage}{key}"] for key in params.models for stage in ("tune@", "study@protocol-")]
    return [[data + checkpoints], [[f"{stage}@{key}" for stage in budgets] for key in params.models], proofs]


def measure(copy: Path, lanes: int) -> dict[str, Any]:
    """Runs everything in a copy of the repository; returns the seconds of every command, and of all together.

    Raises:
        subprocess.CalledProcessError: if a stage fails; what it printed went to stderr.
    """
    threads = str(max(1, (os.cpu_count() or 1) // lanes))
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": threads}

    def repro(targets: list[str]) -> dict[str, Any]:
        begin = time.monotonic()
        # DVC locks what stages share, also stages that are not stale: without --single-item commands would collide.
        command = ["dvc", "repro", "--single-item", *targets]
        subprocess.run(command, cwd=copy, env=environment, check=True, stdout=sys.stderr)
        return {"targets": targets, "seconds": round(time.monotonic() - begin, 1)}

    rows: list[dict[str, Any]] = []
    begin = time.monotonic()
    with ThreadPoolExecutor(lanes) as pool:
        for commands in rounds(load_params(copy / "params.yaml")):
            rows += pool.map(repro, commands)
    return {"lanes": lanes, "seconds": round(time.monotonic() - begin, 1), "rows": rows}


def main() -> int:
    """Prints the seconds of every command, or with --json everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe_time", description=__doc__)
    parser.add_argument("--lanes", type=int, default=os.cpu_count(), help="commands side by side; default: cores")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    args = parser.parse_args()
    head = heading("recipe_time", torch.device("cpu"), cores=os.cpu_count())
    result = measure(copy_of_head(HERE, COPY, lambda params: None), args.lanes)
    for row in result["rows"] if not args.json else ():
        print(f"{row['seconds']:8.1f} s  {' '.join(row['targets'])}")
    print(json.dumps(head | result, indent=2) if args.json else f"{result['seconds']:8.1f} s  all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
