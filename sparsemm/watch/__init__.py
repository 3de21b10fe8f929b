"""Watched sources of checkpoints, one file each: what is the newest complete revision there?"""

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
    """The newest complete checkpoint of a source, ready to be loaded; None while there is none.

    Args:
        source: its entry under `watch` in params.yaml.
        key: of the model.
        root: the repository; downloads go to data/incoming/<key>.

    Raises:
        WatchError: if the source cannot be asked.
    """
    return _SOURCES[source.source](source, key, root)
