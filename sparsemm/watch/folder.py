"""A local folder that checkpoints are dropped into."""

from __future__ import annotations

from pathlib import Path

from sparsemm.errors import WatchError
from sparsemm.params import WatchParams
from sparsemm.watch.arrival import Arrival, found, is_complete


def newest(source: WatchParams, key: str, root: Path) -> Arrival | None:
    """The newest complete checkpoint: the folder itself if it is one, else its newest complete subfolder.

    Raises:
        WatchError: if the folder does not exist, or cannot be read.
    """
    folder, where = root / source.location, f"watch.{key}: {source.location}"
    if not folder.is_dir():
        raise WatchError("no such folder", where=where, hint="make it, or correct `location`")
    try:
        candidates = [folder] if (folder / "config.json").exists() else [p for p in folder.iterdir() if p.is_dir()]
        complete = [path for path in candidates if is_complete(path, source.settle_seconds)]
        if not complete:
            return None
        chosen = max(complete, key=lambda path: ((path / "config.json").stat().st_mtime_ns, path.name))
        return found(chosen, key, root)
    except OSError as error:  # of rights, or because somebody clears up at the same time
        raise WatchError(f"cannot be read: {error}", where=where, hint="look again") from error
