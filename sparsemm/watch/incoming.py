"""Keeps downloaded checkpoints in data/incoming/<model key>/<revision of the source>."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparsemm.errors import WatchError
from sparsemm.files import fill_folder
from sparsemm.watch.arrival import Arrival, is_complete, local_arrival


def fetched(root: Path, key: str, revision: str, fetch: Callable[[Path], None]) -> Arrival | None:
    """Returns the complete local copy of a revision, which is downloaded if it is missing.

    A download that fails leaves its files in a hidden folder, from which the next one resumes.

    Args:
        root: the repository.
        key: model key.
        revision: the source's own name of its present content; used as a folder name.
        fetch: function that writes the files to a folder, which may already hold complete files of an earlier try.

    Returns:
        the checkpoint, or None if the source does not hold a complete one yet.
    """
    folder = root / "data" / "incoming" / key / revision
    return local_arrival(folder, key, root) if fill_folder(folder, fetch, is_complete) else None


def inside(folder: Path, name: str, where: str) -> Path:
    """Returns the path of a downloaded file.

    Raises:
        WatchError: if the name leads out of the folder.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or path == folder.resolve():
        raise WatchError(f"the name {name!r} leads out of the checkpoint", where=where)
    return path
