"""Where checkpoints that must be fetched are kept: data/incoming/<model key>/<revision of the source>."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from sparsemm.errors import WatchError
from sparsemm.models import content_revision
from sparsemm.watch.arrival import Arrival, is_complete, relative


def fetched(root: Path, key: str, revision: str, fetch: Callable[[Path], None]) -> Arrival | None:
    """The local copy of a revision, fetched if it is not there; never half a one.

    Args:
        root: the repository.
        key: of the model.
        revision: the source's own name of what it holds now; a folder name.
        fetch: writes the files into the empty folder it is given.

    Returns:
        the checkpoint, or None if what was fetched is not complete yet.
    """
    folder = root / "data" / "incoming" / key / revision
    if not folder.is_dir():
        partial = folder.with_name(f".{revision}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            fetch(partial)
            if not is_complete(partial):
                return None
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Arrival(relative(folder, root), content_revision(folder))


def inside(folder: Path, name: str, where: str) -> Path:
    """The path of a fetched file, its folders made.

    Raises:
        WatchError: if the name leads out of the folder.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or path == folder.resolve():
        raise WatchError(f"the name {name!r} leads out of the checkpoint", where=where)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
