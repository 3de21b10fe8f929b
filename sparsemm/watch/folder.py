"""Watches a local folder into which checkpoints are copied."""

from __future__ import annotations

from pathlib import Path

from sparsemm.errors import WatchError
from sparsemm.params import WatchParams
from sparsemm.watch.arrival import Arrival, is_complete, local_arrival


def newest(source: WatchParams, key: str, root: Path) -> Arrival | None:
    """Returns the newest complete checkpoint: the folder itself if it is one, else its newest complete subfolder.

    Raises:
        WatchError: if the folder does not exist, or cannot be read.
    """
    folder, where = root / source.location, f"watch.{key}: {source.location}"
    if not folder.is_dir():
        raise WatchError("no such folder", where=where, hint="create it, or correct `location`")
    try:
        candidates = [folder] if (folder / "config.json").exists() else [p for p in folder.iterdir() if p.is_dir()]
        complete = [path for path in candidates if is_complete(path, source.settle_seconds)]
        if not complete:
            return None
        chosen = max(complete, key=lambda path: ((path / "config.json").stat().st_mtime_ns, path.name))
        return local_arrival(chosen, key, root)
    except OSError as error:  # missing permissions, or files that are being deleted at the same time
        raise WatchError(f"cannot be read: {error}", where=where, hint="check its permissions, or try again") from error
