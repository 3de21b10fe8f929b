"""Page arithmetic against brute force; needs no vLLM."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sparsemm.vllm import methods
from sparsemm.vllm.plan import Columns, HeadPages, Plan, like_layers, policy_of

SCORES = tuple(tuple(row) for row in np.random.default_rng(3).random((6, 4)) ** 4)


def plan(method="sparsemm", ranks=1, copy=False, budget=24, window=4, kv_heads=4, groups=3, mode="exact"):
    options = (("mode", mode),) if method in ("sparsemm", "random") else ()
    made = Plan(method, kv_heads, tuple(range(6)), budget, window, options, SCORES, copy, ranks)
    return Plan.from_json(made.to_json() | {"buckets": like_layers(made, groups)})


@pytest.mark.parametrize("seed", range(60))
def test_pages_are_dense_and_never_move(seed):
    rng = np.random.default_rng(seed)
    heads, size = rng.choice([1, 3, 4, 8, 16]), rng.choice([4, 8, 16])
    rows = rng.integers(1, 70, (2, heads))
    pages = HeadPages.of(rows, size)
    owner: dict[tuple[int, int], tuple[int, int]] = {}
    for later in range(4 * size + 3):
        count = -(-(rows + later) // size)
        numbers = pages.numbers(int(count.max()))
        for layer in range(2):
            used = [(h, j, int(numbers[layer, h, j])) for h in range(heads) for j in range(count[layer, h])]
            assert sorted(number for *_, number in used) == list(range(len(used)))
            for h, j, number in used:
                assert owner.setdefault((layer, number), (h, j)) == (h, j)
            if later == 0:
                assert pages.blocks()[layer] == -(-len(used) // heads)


@pytest.mark.parametrize("exponent", [0, 1, 4, 20])
def test_the_fewest_groups_are_chosen_that_take_little_more_memory(exponent):
    """An exponent of 0 makes all layers alike; one of 20 leaves a few layers with nearly all rows."""
    scores = tuple(tuple(row) for row in np.random.default_rng(1).random((12, 4)) ** exponent)
    made = Plan("sparsemm", 4, tuple(range(12)), 64, 4, (), scores, False, 1)

    def taken(groups):
        rows = made.rows(1 << 14).sum(axis=1)
        return sum(len(part) * rows[list(part)].max() for part in like_layers(made, groups))

    allowed = [1, 2, 3, 4, 6]
    chosen = len(like_layers(made, None))
    assert chosen == min(count for count in allowed if taken(count) <= 1.1 * min(map(taken, allowed)))
    assert (chosen == 1) == (exponent == 0)


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("method,groups", [("sparsemm", 1), ("sparsemm", 3), ("sparsemm", 6), ("pyramidkv", 2)])
def test_columns_are_those_that_the_largest_layer_needs(method, groups, ranks, copy):
    made = plan(method, ranks, copy, groups=groups)
    for bucket in made.buckets:
        for size in (4, 16):
            for prompt in (1, 5, 23, 24, 25, 50, 100, 333):
                columns = Columns.of(made, bucket, size, prompt)
                assert columns.kept <= columns.whole == -(-prompt // size)
                for later in range(3 * size + 2):
                    needed = max(
                        -(-int((-(-(rows + later) // size)).sum()) // made.heads_per_rank)
                        for rank in range(ranks)
                        for rows in made.rank_rows(prompt, rank)[list(bucket)]
                    )
                    assert columns.held(later) == needed
                    most = (2 if copy else 1) * -(-(prompt + later) // size) + 1  # of HeadwiseSpec
                    assert columns.count(prompt + later) <= most
                last = -1
                for tokens in range(1, prompt + 3 * size):
                    count = columns.count(tokens)
                    assert count >= last
                    last = count
                    assert columns.count(columns.limit(count)) == count < columns.count(columns.limit(count) + 1)
                    assert columns.limit(count) >= tokens


@pytest.mark.parametrize("copy", [False, True])
def test_what_is_held_lies_in_columns_that_are_not_freed(copy):
    made = plan(copy=copy)
    for prompt in (7, 24, 60, 200):
        columns = Columns.of(made, made.buckets[0], 16, prompt)
        first, last = columns.freed()
        freed = set(range(first, last))
        for later in (0, 1, 16, 100):
            held = columns.column(np.arange(columns.held(later))).tolist()
            assert len(set(held)) == len(held)
            present = set(range(columns.count(prompt + later)))
            assert set(held) == present - freed


@pytest.mark.parametrize("method", methods.STATIC)
@pytest.mark.parametrize("mode", ["exact", "paper"])
def test_rows_are_those_that_the_cache_keeps(method, mode):
    made = plan(method, mode=mode)
    policy = policy_of(made)
    for length in (1, 4, 23, 24, 25, 300):
        rows = made.rows(length)
        assert (rows <= length).all()
        if method == "full" or length < 24:
            assert (rows == length).all()
        else:
            slots = np.concatenate([policy.slots(layer, [length], None) for layer in range(6)])
            assert (rows == np.minimum(slots, length)).all()


def test_ranks_share_the_heads():
    for ranks in (1, 2, 4):
        made = plan(ranks=ranks)
        parts = [made.rank_rows(100, rank) for rank in range(ranks)]
        assert (np.concatenate(parts, axis=1) == made.rows(100)).all()
    copies = plan(ranks=8)
    assert all((copies.rank_rows(100, rank)[:, 0] == copies.rows(100)[:, rank // 2]).all() for rank in range(8))


def test_buckets_hold_layers_that_keep_as_much():
    made = plan(groups=3)
    assert sorted(layer for bucket in made.buckets for layer in bucket) == list(range(6))
    total = made.rows(1 << 14).sum(axis=1)
    least = [min(total[list(bucket)]) for bucket in made.buckets]
    most = [max(total[list(bucket)]) for bucket in made.buckets]
    assert all(least[i] >= most[i + 1] for i in range(2))
    assert len(plan("snapkv", groups=None).buckets) == 1, "equal layers need one table"
    assert len(plan("sparsemm", groups=None).buckets) == 6


def test_a_plan_survives_json():
    made = plan(copy=True, ranks=2)
    again = Plan.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made and hash(again) == hash(made)
