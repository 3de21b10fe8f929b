"""Computes the shards of a large chase on a Dask cluster: `python -m flows.shards MODEL --workers 8`.

DVC still runs the chase stage, which finds the finished shards and adds them up.
"""

from __future__ import annotations

import argparse
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect_dask import DaskTaskRunner

from flows.deploy import at_least_one
from sparsemm.chase.sharded import ShardedChase
from sparsemm.errors import SparseMMError
from sparsemm.params import load_params


@lru_cache(maxsize=1)
def _chase(root: str, key: str) -> ShardedChase:
    """Loads the model, once in each Dask worker."""
    return ShardedChase(load_params(Path(root) / "params.yaml"), key, Path(root))


@task(task_run_name="{key} shard {number}", cache_policy=NO_CACHE, retries=1)
def score_shard(root: str, key: str, number: int) -> int:
    """Scores one shard and returns the number of its samples."""
    return len(_chase(root, key).shard(number).counts)


@flow(flow_run_name="shards of {key}")
def shards(key: str, root: str = ".") -> int:
    """Computes every missing shard of a model's chase and returns the number of samples.

    The align stage must have run, and all Dask workers must share the folder `root`.
    """
    count = _chase(root, key).count
    futures = [score_shard.submit(root, key, number) for number in range(count)]
    return sum(future.result() for future in futures)


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, runs and returns 0, or 1 after printing what is wrong and what to do."""
    example = "example: python -m flows.shards tiny-qwen2-vl --workers 8"
    parser = argparse.ArgumentParser(prog="python -m flows.shards", description=__doc__, epilog=example)
    parser.add_argument("key", help="model key")
    parser.add_argument("--root", default=".", help="the repository (here)")
    parser.add_argument("--address", help="address of a Dask scheduler; without it workers are started on this host")
    parser.add_argument("--workers", type=at_least_one, default=2, help="processes to start on this host (2)")
    args = parser.parse_args(arguments)
    options: dict[str, Any] = (
        {"address": args.address}
        if args.address
        else {"cluster_kwargs": {"n_workers": args.workers, "threads_per_worker": 1, "dashboard_address": None}}
    )
    runner: Any = DaskTaskRunner(**options)
    try:
        load_params(Path(args.root) / "params.yaml").model(args.key)  # before a server and a cluster start
        samples = shards.with_options(task_runner=runner)(args.key, args.root)
    except SparseMMError as error:
        print(f"sparsemm: {error}", file=sys.stderr)
        return 1
    print(f"{samples} samples scored; `dvc repro chase@{args.key}` adds them up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
