"""Early stopping hangs on the shards in their order, and on nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from sparsemm.chase.early_stop import shards_needed
from sparsemm.chase.shards import Shard
from sparsemm.params.stages import StopParams


def shard(scores: list[float], samples: int = 2, noise: float = 0.0, seed: int = 0) -> Shard:
    """Samples with these scores over one layer of heads."""
    weighted = np.array([[scores]] * samples) + noise * np.random.default_rng(seed).random((samples, 1, len(scores)))
    nothing = np.zeros((0, 3), np.int64)
    return Shard(
        weighted.astype(np.int64), weighted, np.zeros((samples, 3), np.int64), nothing, np.zeros((0, 1), np.uint8)
    )


def stop(**values: float) -> StopParams:
    return StopParams.model_validate({"min_samples": 1, **values})


STEADY = [4.0, 3.0, 2.0, 1.0]


def test_it_settles_after_patience_shards_in_a_row() -> None:
    shards = [shard(STEADY)] * 6
    # The first shard has none before it to share its best heads with.
    assert shards_needed(shards, stop(patience=1)) == 2
    assert shards_needed(shards, stop(patience=3)) == 4
    assert shards_needed(shards, stop(patience=1, min_samples=9)) == 5
    assert shards_needed(shards, stop(patience=1, min_samples=13)) is None
    assert shards_needed(shards, None) is None


def test_another_best_head_starts_the_count_again() -> None:
    other = shard([1.0, 40.0, 2.0, 3.0])
    assert shards_needed([shard(STEADY)] * 2 + [other] * 4, stop(patience=2, rank_correlation=-1.0)) == 5


def test_halves_that_disagree_do_not_settle() -> None:
    odd = np.array([[STEADY], [STEADY[::-1]]])
    apart = Shard(
        odd.astype(np.int64), odd, np.zeros((2, 3), np.int64), np.zeros((0, 3), np.int64), np.zeros((0, 1), np.uint8)
    )
    assert shards_needed([apart] * 5, stop(patience=1)) is None
    assert shards_needed([shard([0.0] * 4)] * 5, stop(patience=1, rank_correlation=-1.0)) is None  # no rank at all


@pytest.mark.parametrize("size", [1, 3, 5])
def test_halves_are_even_and_odd_samples_of_the_whole_set(size: int) -> None:
    rows = np.random.default_rng(1).random((15, 1, 30)) + np.linspace(0, 3, 30)
    empty = np.zeros((0, 3), np.int64), np.zeros((0, 4), np.uint8)
    parts = [rows[i : i + size] for i in range(0, 15, size)]
    shards = [Shard(p.astype(np.int64), p, np.zeros((len(p), 3), np.int64), *empty) for p in parts]
    from sparsemm.scores import rank_correlation

    seen = [rank_correlation(rows[:n:2].sum(0), rows[1:n:2].sum(0)) for n in range(size, 16, size) if n > 1]
    threshold = max(seen)
    reached = shards_needed(shards, stop(patience=1, rank_correlation=threshold, top_overlap=0.0))
    assert reached == seen.index(threshold) + 1 + (size == 1)


def test_no_more_shards_are_taken_than_needed() -> None:
    taken = []

    def shards() -> Iterator[Shard]:
        for number in range(9):
            taken.append(number)
            yield shard(STEADY)

    assert shards_needed(shards(), stop(patience=2)) == 3
    assert taken == [0, 1, 2]
