"""Locks between processes of one machine that die with their holders."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, on_wait: Callable[[str], None] | None = None) -> Iterator[int]:
    """Hold an exclusive lock on `path`; yields its file descriptor.

    The lock is the kernel's (flock): it is gone when every process that has the descriptor is, so a killed holder
    leaves an empty file and no lock. Processes that get the descriptor (`run(keep=...)`) hold it too.

    Args:
        path: file to lock, made if missing.
        on_wait: called once, with a sentence, if somebody else holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        told = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if on_wait is not None and not told:
                    on_wait(f"another run holds {path.name}; waiting")
                told = True
                time.sleep(0.1)  # short, so that a cancelled run leaves at once
        yield descriptor
    finally:
        os.close(descriptor)


def repository_locked(root: Path, on_wait: Callable[[str], None] | None = None) -> AbstractContextManager[int]:
    """`locked` for whoever asks DVC about the repository itself, or writes its dvc.lock, params.yaml or commits.

    DVC refuses to say what is stale while it runs a stage in the same folder, and git has one index.
    """
    return locked(root / "build" / "locks" / "integrate", on_wait=on_wait)


def first_free(paths: list[Path]) -> tuple[int, int] | None:
    """(index, descriptor) of the first of `paths` that could be locked, or None; close the descriptor to unlock."""
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
