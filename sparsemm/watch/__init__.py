"""Watches sources of checkpoints, and returns the newest complete revision."""

from sparsemm.watch.arrival import Arrival
from sparsemm.watch.sources import newest

__all__ = ["Arrival", "newest"]
