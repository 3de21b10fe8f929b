"""Early stopping: a chase ends when the best heads stay the same and two halves of the samples rank the heads alike."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from sparsemm.chase.shards import Shard
from sparsemm.params.stages import StopParams
from sparsemm.scores import rank_correlation, top_set

FRACTION = 0.05  # of the heads count as the best


def shards_needed(shards: Iterable[Shard], stop: StopParams | None) -> int | None:
    """Returns how many of the first shards are enough, or None if all of them are not.

    The result depends on the shards and their order alone, not on who computed them or when. No more shards are taken
    from the iterable than are needed.

    Args:
        shards: in order, all of the same (L, Hq).
        stop: thresholds; with None no number is enough.
    """
    if stop is None:
        return None
    samples = streak = 0
    halves: list[np.ndarray] = []  # scores of even and of odd samples, (L, Hq) each
    best: set[int] = set()
    for number, shard in enumerate(shards, start=1):
        parts = [shard.weighted[(half - samples) % 2 :: 2].sum(axis=0) for half in (0, 1)]
        halves = [a + b for a, b in zip(halves, parts, strict=True)] if halves else parts
        samples += len(shard.weighted)
        previous, best = best, top_set(halves[0] + halves[1], FRACTION)
        overlap = len(previous & best) / len(best)
        correlation = rank_correlation(*halves)
        enough = not math.isnan(correlation) and correlation >= stop.rank_correlation and overlap >= stop.top_overlap
        streak = streak + 1 if enough else 0
        if streak >= stop.patience and samples >= stop.min_samples:
            return number
    return None
