"""Runs one chase in several processes, one per GPU; each computes and stores its part of the shards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from sparsemm.chase.sharded import ShardedChase
from sparsemm.errors import ParamsError, PipelineError
from sparsemm.params import Params
from sparsemm.pipeline.gpus import visible_gpus
from sparsemm.progress import progress


def parse_part(text: str) -> tuple[int, int]:
    """Parses "I/N", the shards whose number is I modulo N, into (I, N).

    Raises ParamsError if it is not two whole numbers with 0 <= I < N.
    """
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return int(index), int(count)
    raise ParamsError(f"{text!r} is no part of the shards", where="--shards", hint="I/N with 0 <= I < N, as in 0/4")


def compute_part(
    params: Params, key: str, part: tuple[int, int], root: Path = Path("."), dataset: str | None = None
) -> None:
    """Computes a part of the shards, and stores them where the chase stage finds them.

    With `chase.stop` it ends when the stored shards show that no more are needed.

    Args:
        params: the parsed params.yaml.
        key: name of the model there.
        part: (i, n): the shards whose number is i modulo n.
        root: root folder of the project.
        dataset: a data set of `robustness`; None for `chase.dataset`.

    Raises:
        AlignError: if the align stage's file is missing or does not fit the data set.
    """
    chase = ShardedChase(params, key, root, dataset)
    numbers = range(part[0], chase.count, part[1])
    for number in progress(numbers, len(numbers), f"chase {key}, shards {part[0]}/{part[1]}"):
        needed = chase.shards_needed()
        if needed is not None and number >= needed:
            break
        chase.shard(number)


def process_count(params: Params, key: str, dataset: str | None = None) -> int:
    """Returns how many processes to use: one per visible GPU, but a single one for a model that is spread over them."""
    settings = params.of(key).over(dataset).chase
    shards = -(-params.datasets[settings.dataset].samples // settings.shard_size)
    return 1 if params.model(key).device_map else max(1, min(len(visible_gpus()), shards))


def run_processes(command: list[str], count: int) -> None:
    """Runs `count` processes of `command --shards I/count`, each with a visible GPU of its own if there are any.

    Raises PipelineError if one of them fails; the others are stopped, and complete shards stay.
    """
    gpus = visible_gpus()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for i in range(count):
            variables = {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)].strip()} if gpus else {}
            part = [sys.executable, "-m", "sparsemm.cli", *command, "--shards", f"{i}/{count}"]
            processes.append(subprocess.Popen(part, env=os.environ | variables))
        running = True
        while running:
            time.sleep(0.1)
            codes = [process.poll() for process in processes]
            running = None in codes
            for i, code in enumerate(codes):
                if code:
                    hint = "run it again: complete shards are kept"
                    raise PipelineError(f"ended with {code}", where=f"chase process {i}", hint=hint)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
