"""Where checkpoints that must be fetched are kept: data/incoming/<model key>/<revision of the source>."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparsemm.errors import WatchError
from sparsemm.files import fill_folder
from sparsemm.watch.arrival import Arrival, found, is_complete


def fetched(root: Path, key: str, revision: str, fetch: Callable[[Path], None]) -> Arrival | None:
    """The local copy of a revision, fetched if it is not there; never half a one.

    A fetch that fails leaves its files in a hidden folder, for the next one to go on with.

    Args:
        root: the repository.
        key: of the model.
        revision: the source's own name of what it holds now; a folder name.
        fetch: writes the files into the folder it is given, where whole ones of an earlier try may lie.

    Returns:
        the checkpoint, or None if what was fetched is not complete yet.
    """
    folder = root / "data" / "incoming" / key / revision
    return found(folder, key, root) if fill_folder(folder, fetch, is_complete) else None


def inside(folder: Path, name: str, where: str) -> Path:
    """The path of a fetched file.

    Raises:
        WatchError: if the name leads out of the folder.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or path == folder.resolve():
        raise WatchError(f"the name {name!r} leads out of the checkpoint", where=where)
    return path
