"""Distributes work among processes on a CPU, for models that are too small for threads."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch

PR_SET_PDEATHSIG = 1  # Linux: a process gets a signal when its parent ends
SMALL = 1 << 30  # bytes of the weights of a small model, at most


def processes(model: Any) -> int:
    """Returns the best number of processes: torch's threads, or 1 for a large model or one on another device."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    single = model.device.type != "cpu" or weights > SMALL or not hasattr(os, "fork")
    return 1 if single else torch.get_num_threads()


def share(tasks: Sequence[Callable[[], Any]], count: int) -> Iterator[Any]:
    """Yields the results of the tasks in order; with `count` above 1, from that many forked processes, as plain JSON.

    A process that is done with one task takes the next that none has begun. Tensors are shared until they are written
    to. Every process computes with one thread, as torch's data loaders do, because a fork does not copy the threads of
    its parent. A task that fails in a process is repeated here, so that its error is raised.
    """
    count = min(count, len(tasks))
    if count < 2:
        for task in tasks:
            yield task()
        return
    with TemporaryDirectory(prefix="sparsemm-") as name:
        folder = Path(name)
        children = []
        try:
            for _ in range(count):
                children.append(_fork(tasks, folder))
            while children:
                os.waitpid(children[-1], 0)
                children.pop()
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        for i, task in enumerate(tasks):
            path = folder / f"{i}.json"
            yield json.loads(path.read_text(encoding="utf-8")) if path.is_file() else task()


def _fork(tasks: Sequence[Callable[[], Any]], folder: Path) -> int:
    """Starts a process that runs the tasks that no other one has begun, with results in the folder; returns its id."""
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, which the child needs not
        child = os.fork()
    return child or _run_tasks(tasks, folder, parent)


def _run_tasks(tasks: Sequence[Callable[[], Any]], folder: Path, parent: int) -> NoReturn:
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        torch.set_num_threads(1)
        for i in range(len(tasks)):
            if os.getppid() != parent:  # on other systems, end here if the parent has ended
                break
            try:
                (folder / f"{i}.begun").touch(exist_ok=False)
            except FileExistsError:
                continue
            partial = folder / f"{i}.part"
            partial.write_text(json.dumps(tasks[i]()), encoding="utf-8")
            partial.rename(folder / f"{i}.json")
    finally:
        os._exit(0)  # skip the parent's exit handlers: no buffers written twice, no files removed
