"""Locks between processes of one machine, which the kernel releases when their holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, on_wait: Callable[[str], None] | None = None) -> Iterator[int]:
    """Holds an exclusive lock on `path`, and yields its file descriptor.

    The kernel releases the lock (flock) when the last process that has the descriptor ends, so a killed holder leaves
    an empty file and no lock. Processes that inherit the descriptor (`run(keep=...)`) hold the lock too. `on_wait` is
    called once, with a message, if another process holds the lock.
    """
    while (free := first_free([path])) is None:
        if on_wait is not None:
            on_wait(f"another run holds {path.name}; waiting")
        on_wait = None
        time.sleep(0.1)  # short, so that a cancelled run ends at once
    try:
        yield free[1]
    finally:
        os.close(free[1])


def repository_locked(root: Path, on_wait: Callable[[str], None] | None = None) -> AbstractContextManager[int]:
    """Holds the lock for running DVC in the repository itself, and for writing its dvc.lock, params.yaml or commits.

    `dvc status` fails while a stage runs in the same folder, and git has one index.
    """
    return locked(root / "build" / "locks" / "integrate", on_wait=on_wait)


def first_free(paths: list[Path]) -> tuple[int, int] | None:
    """Locks the first of `paths` that is free, and returns (index, descriptor), or None if none is.

    Closing the descriptor releases the lock.
    """
    for index, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            return index, descriptor
    return None
