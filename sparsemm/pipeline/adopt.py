"""Take a newly arrived checkpoint into params.yaml."""

from __future__ import annotations

from pathlib import Path

from sparsemm.errors import WatchError
from sparsemm.models import new_entry
from sparsemm.params import load_params
from sparsemm.params.entries import add_entry
from sparsemm.pipeline.integrate import commit
from sparsemm.pipeline.locks import locked
from sparsemm.pipeline.worktree import Line, check_clean
from sparsemm.watch import Arrival, newest


def adopt(root: Path, key: str, on_line: Line | None = None) -> Arrival | None:
    """Look at a model's watched source; if it holds another checkpoint, write and commit the model's entry.

    The note and dtype of an existing entry stay.

    Returns:
        the checkpoint that is now in params.yaml, or None if nothing new has arrived.

    Raises:
        WatchError: if no source is watched for `key`, or it cannot be asked.
        LayoutError, ModelError: if the checkpoint is of no supported family, or cannot be read.
        PipelineError: if params.yaml has uncommitted changes.
    """
    with locked(root / "build" / "locks" / "integrate", on_wait=on_line) as lock:
        params = load_params(root / "params.yaml")
        if key not in params.watch:
            known = ", ".join(params.watch) or "nothing yet"
            raise WatchError(f"no source is watched for {key!r}", where="params.yaml: watch", hint=f"watched: {known}")
        arrival = newest(params.watch[key], key, root)
        old = params.models.get(key)
        if arrival is None or (old and (old.checkpoint, old.revision) == (arrival.checkpoint, arrival.revision)):
            return None
        check_clean(root)
        place = root / arrival.checkpoint
        dtype = old.dtype if old else None
        # A hub id is asked at the revision; a folder is hashed again, so that what is written is what is there.
        entry = new_entry(str(place) if place.is_dir() else arrival.checkpoint, arrival.revision, dtype)
        entry = entry.model_copy(update={"checkpoint": arrival.checkpoint, "note": old.note if old else ""})
        add_entry(root / "params.yaml", key, entry)
        commit(root, ["params.yaml"], f"{key}: revision {arrival.revision}", keep=(lock,))
        return arrival
