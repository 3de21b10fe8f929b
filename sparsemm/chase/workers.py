"""Several processes for one chase, one per GPU: each computes its part of the shards and keeps them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from sparsemm.chase.work import Work
from sparsemm.errors import ParamsError, PipelineError
from sparsemm.params import Params
from sparsemm.pipeline.gpus import visible_gpus
from sparsemm.progress import progress


def parse_part(text: str) -> tuple[int, int]:
    """ "I/N" -> (I, N): the shards whose number is I modulo N.

    Raises:
        ParamsError: if it is not two whole numbers with 0 <= I < N.
    """
    first, _, of = text.partition("/")
    if first.isdecimal() and of.isdecimal() and int(first) < int(of):
        return int(first), int(of)
    raise ParamsError(f"{text!r} is no part of the shards", where="--shards", hint="I/N with 0 <= I < N, as in 0/4")


def compute(
    params: Params, key: str, part: tuple[int, int], root: Path = Path("."), dataset: str | None = None
) -> None:
    """Compute a part of the shards, and keep them where the chase stage finds them.

    With `chase.stop` it ends where the shards that are there already settle the scores.

    Args:
        part: (i, n): the shards whose number is i modulo n.
        dataset: of `robustness`; None for `chase.dataset`.

    Raises:
        AlignError: if the align stage's file is missing or does not fit the data set.
    """
    work = Work(params, key, root, dataset)
    numbers = range(part[0], work.count, part[1])
    for number in progress(numbers, len(numbers), f"chase {key}, shards {part[0]}/{part[1]}"):
        enough = work.settled()
        if enough is not None and number >= enough:
            break
        work.shard(number)


def how_many(params: Params, key: str, dataset: str | None = None) -> int:
    """Processes that a chase is worth here: one per visible GPU, but one where a model is spread over all of them."""
    settings = params.of(key).over(dataset).chase
    shards = -(-params.datasets[settings.dataset].samples // settings.shard_size)
    return 1 if params.model(key).device_map else max(1, min(len(visible_gpus()), shards))


def spread(command: list[str], count: int) -> None:
    """Run `count` processes of `command --shards I/count`, each with a visible GPU of its own where there are any.

    Raises:
        PipelineError: if one of them fails; the others are stopped, and what is whole is kept.
    """
    gpus = visible_gpus()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for i in range(count):
            variables = {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)].strip()} if gpus else {}
            part = [sys.executable, "-m", "sparsemm.cli", *command, "--shards", f"{i}/{count}"]
            processes.append(subprocess.Popen(part, env=os.environ | variables))
        while any(process.poll() is None for process in processes):
            _check(processes)
            time.sleep(0.1)
        _check(processes)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _check(processes: list[subprocess.Popen[bytes]]) -> None:
    for i, process in enumerate(processes):
        if process.poll():
            hint = "run it again: whole shards are kept"
            raise PipelineError(f"ended with {process.returncode}", where=f"chase process {i}", hint=hint)
