"""Work shared between the cores of a CPU by processes, where a model is too small for threads."""

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

PR_SET_PDEATHSIG = 1  # of Linux: a process ends with the one it came from
SMALL = 1 << 28  # bytes of weights


def processes(model: Any) -> int:
    """How many processes use the CPU well: torch's threads, or 1 for a large model or one on another device."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    alone = model.device.type != "cpu" or weights > SMALL or not hasattr(os, "fork")
    return 1 if alone else torch.get_num_threads()


def share(works: Sequence[Callable[[], Any]], count: int) -> Iterator[Any]:
    """What the works return, in their order; with `count` above 1 plain JSON, from as many forked processes.

    Tensors are shared until they are written to. Every process computes with one thread, as torch's own data loaders
    do: the threads of the process it came from are not there. A work that fails in one is done again here, where its
    error is raised.
    """
    count = min(count, len(works))
    if count < 2:
        for work in works:
            yield work()
        return
    with TemporaryDirectory(prefix="sparsemm-") as name:
        folder = Path(name)
        children = []
        try:
            for first in range(count):
                children.append(_fork(works, range(first, len(works), count), folder))
            while children:
                os.waitpid(children[-1], 0)
                children.pop()
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        for i, work in enumerate(works):
            path = folder / f"{i}.json"
            yield json.loads(path.read_text(encoding="utf-8")) if path.is_file() else work()


def _fork(works: Sequence[Callable[[], Any]], mine: Sequence[int], folder: Path) -> int:
    """Number of a process that does these works and leaves what they return in the folder."""
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, where there are threads: none is needed
        child = os.fork()
    return child or _work(works, mine, folder, parent)


def _work(works: Sequence[Callable[[], Any]], mine: Sequence[int], folder: Path, parent: int) -> NoReturn:
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        torch.set_num_threads(1)
        for i in mine:
            if os.getppid() != parent:  # elsewhere: at the next work
                break
            whole = folder / f"{i}.part"
            whole.write_text(json.dumps(works[i]()), encoding="utf-8")
            whole.rename(folder / f"{i}.json")
    finally:
        os._exit(0)  # nothing that the other process would do at its end: no buffers written twice, no files removed
