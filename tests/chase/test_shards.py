"""Shards: files that are whole or not there, and sums that do not depend on how samples were cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsemm.chase.shards import Shard, find_hits, join_shards, load_shard, save_shard, shard_of_sample
from sparsemm.chase.strongest_keys import NO_KEY
from sparsemm.errors import AlignError

SHAPE = (3, 7)


def sample(seed: int) -> Shard:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(0, 4))
    targets = [np.arange(n) for n in generator.integers(1, 9, count)]
    return shard_of_sample(generator.random((*SHAPE, count)) < 0.5, targets, list(range(count)), [9, 5, count])


def same(a: Shard, b: Shard) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a.tensors().values(), b.tensors().values(), strict=True))


def test_hits_are_keys_on_the_target():
    keys = torch.tensor([[[3, 7, 9], [4, 7, 0]]])  # 1 layer, 2 heads, 3 tokens
    targets = [np.array([3, 4]), np.array([7]), np.array([5, 6, 8, 9])]
    assert find_hits(keys, targets).tolist() == [[[True] * 3, [True, True, False]]]
    assert not find_hits(torch.full((1, 2, 3), NO_KEY), targets).any()
    assert find_hits(torch.zeros((2, 3, 0), dtype=torch.int64), []).shape == (2, 3, 0)
    with pytest.raises(AlignError, match="0 targets"):
        find_hits(keys, [])
    with pytest.raises(AlignError, match="token 1: no visual token"):
        find_hits(keys, [targets[0], np.array([], dtype=np.int64), targets[2]])


def test_a_sample_is_counted_and_its_tokens_are_kept() -> None:
    inside = np.zeros((2, 3, 2), bool)
    inside[1, 2] = True
    inside[0, 1, 1] = True
    shard = shard_of_sample(inside, [np.array([4, 5]), np.array([7, 8, 9, 10])], [3, 0], [2, 2, 2])
    assert shard.hits[0].tolist() == [[0, 1, 0], [0, 0, 2]]
    assert shard.weighted[0].tolist() == [[0, 0.25, 0], [0, 0, 0.75]]
    assert shard.tokens.tolist() == [[0, 3, 2], [0, 0, 4]]
    assert np.unpackbits(shard.hit_bits, axis=1, count=6).tolist() == inside.reshape(6, 2).T.astype(int).tolist()


def test_joining_is_the_same_however_the_samples_are_cut() -> None:
    parts = [sample(seed) for seed in range(7)]
    whole = join_shards(parts)
    assert whole.tokens[:, 0].tolist() == [i for i, part in enumerate(parts) for _ in part.tokens]
    for cut in (1, 3, 6):
        assert same(join_shards([join_shards(parts[:cut]), join_shards(parts[cut:])]), whole)


def test_a_damaged_or_foreign_shard_is_none(tmp_path: Path) -> None:
    shard, ids, path = join_shards([sample(1), sample(2)]), ["a", "b"], tmp_path / "0000.safetensors"
    assert load_shard(path, ids, SHAPE) is None
    save_shard(path, shard, ids)
    found = load_shard(path, ids, SHAPE)
    assert found is not None and same(found, shard)
    assert load_shard(path, ["a", "c"], SHAPE) is None
    assert load_shard(path, ids, (7, 3)) is None
    path.write_bytes(path.read_bytes()[:-8])
    assert load_shard(path, ids, SHAPE) is None
    path.write_bytes(b"")
    assert load_shard(path, ids, SHAPE) is None


@pytest.mark.parametrize("count", [0, 1])
def test_tokens_that_do_not_fit_the_counts_are_refused(tmp_path: Path, count: int) -> None:
    targets = [np.array([1])] * count
    shard = shard_of_sample(np.ones((*SHAPE, count), bool), targets, [0] * count, [1, 1, 1 - count])
    save_shard(tmp_path / "x", shard, ["a"])
    assert load_shard(tmp_path / "x", ["a"], SHAPE) is None
