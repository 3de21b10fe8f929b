"""A local folder that checkpoints are dropped into."""

from __future__ import annotations

import json
from pathlib import Path

from sparsemm.errors import WatchError
from sparsemm.files import write_json
from sparsemm.models import content_revision
from sparsemm.params import WatchParams
from sparsemm.watch.arrival import Arrival, is_complete, relative, stamp


def newest(source: WatchParams, key: str, root: Path) -> Arrival | None:
    """The newest complete checkpoint: the folder itself if it is one, else its newest complete subfolder.

    Contents are hashed once; while names, sizes and times stay, the hash is remembered under `artifacts/work`.

    Raises:
        WatchError: if the folder does not exist.
    """
    folder = root / source.location
    if not folder.is_dir():
        hint = "make it, or correct `location`"
        raise WatchError("no such folder", where=f"watch.{key}: {source.location}", hint=hint)
    candidates = [folder] if (folder / "config.json").exists() else [p for p in folder.iterdir() if p.is_dir()]
    complete = [path for path in candidates if is_complete(path, source.settle_seconds)]
    if not complete:
        return None
    chosen = max(complete, key=lambda path: ((path / "config.json").stat().st_mtime_ns, path.name))
    return Arrival(relative(chosen, root), _revision(chosen, root / "artifacts" / "work" / "watch" / f"{key}.json"))


def _revision(folder: Path, memo: Path) -> str:
    seen = {"folder": str(folder), "stamp": stamp(folder)}
    try:
        known = json.loads(memo.read_text(encoding="utf-8"))
        if {name: known[name] for name in seen} == seen:
            return str(known["revision"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    revision = content_revision(folder)
    write_json(memo, seen | {"revision": revision})
    return revision
