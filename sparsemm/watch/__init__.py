"""Watches sources of checkpoints, one file per kind of source, and returns the newest complete revision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sparsemm.params import WatchParams
from sparsemm.watch.arrival import Arrival
from sparsemm.watch.folder import newest as _folder
from sparsemm.watch.hub import newest as _hub
from sparsemm.watch.mlflow_models import newest as _mlflow
from sparsemm.watch.s3 import newest as _s3

__all__ = ["Arrival", "newest"]

_SOURCES: dict[str, Callable[[WatchParams, str, Path], Arrival | None]] = {
    "folder": _folder,
    "hub": _hub,
    "s3": _s3,
    "mlflow": _mlflow,
}


def newest(source: WatchParams, key: str, root: Path = Path(".")) -> Arrival | None:
    """Returns the newest complete checkpoint of a source, ready to be loaded, or None if there is none yet.

    Args:
        source: entry under `watch` in params.yaml.
        key: model key.
        root: the repository; downloads go to data/incoming/<key>.

    Raises:
        WatchError: if the source cannot be reached.
    """
    return _SOURCES[source.source](source, key, root)
