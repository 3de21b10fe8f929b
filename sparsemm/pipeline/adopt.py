"""Adds a newly arrived checkpoint to params.yaml."""

from __future__ import annotations

import contextlib
from pathlib import Path

from sparsemm.errors import DataError, ModelError, WatchError
from sparsemm.models import check_weights, new_entry
from sparsemm.params import load_params
from sparsemm.params.entries import add_entry
from sparsemm.pipeline.integrate import commit, results_branch
from sparsemm.pipeline.locks import locked, repository_locked
from sparsemm.pipeline.worktree import Line, check_clean
from sparsemm.suggestions import needs_of, suggested_entry
from sparsemm.watch import Arrival, newest


def adopt(root: Path, key: str, on_line: Line | None = None) -> Arrival | None:
    """Checks a model's watched source, and writes and commits the model's entry if the source holds a new checkpoint.

    An existing entry keeps its note, dtype and overrides; a new one gets settings that suit the length of its prompts.

    Returns:
        the new checkpoint, or None if nothing new has arrived.

    Raises:
        WatchError: if no source is watched for `key`, or the source cannot be reached.
        LayoutError, ModelError: if the checkpoint is of no supported family, cannot be read, or lacks weights.
        PipelineError: if params.yaml has uncommitted changes, or another branch than `pipeline.branch` is checked out.
    """
    path = root / "params.yaml"
    params = load_params(path)
    if key not in params.watch:
        watched = ", ".join(params.watch) or "nothing yet"
        raise WatchError(f"no source is watched for {key!r}", where="params.yaml: watch", hint=f"watched: {watched}")
    # Not the repository's lock: a download may take hours, and others integrate meanwhile.
    with locked(root / "build" / "locks" / f"watch-{key}", on_wait=on_line):
        arrival = newest(params.watch[key], key, root)
        old = load_params(path).models.get(key)
        if arrival is None or (old and (old.checkpoint, old.revision) == (arrival.checkpoint, arrival.revision)):
            return None
        place = root / arrival.checkpoint
        dtype = old.dtype if old else None
        # A folder is hashed again, so that the entry describes the files as they are now.
        entry = new_entry(str(place) if place.is_dir() else arrival.checkpoint, arrival.revision, dtype)
        if place.is_dir():
            check_weights(place)
        if old is None:
            with contextlib.suppress(DataError, ModelError):  # its stages say what is wrong with its processor
                entry = suggested_entry(params, entry, needs_of(entry))
        entry = entry.model_copy(update={"checkpoint": arrival.checkpoint, "note": old.note if old else ""})
        with repository_locked(root, on_line) as lock:
            check_clean(root)
            results_branch(root)
            add_entry(path, key, entry)
            commit(root, [path.name], f"{key}: revision {arrival.revision}", keep=(lock,))
        return arrival
