"""Ragged storage against plain lists of rows."""

from __future__ import annotations

import pytest
import torch

from sparsemm.cache.slab import BLOCK, Slab, rows_of
from sparsemm.errors import CacheError
from tests.cache.reading import read_padded


def lists(slab):
    keys, values, valid = read_padded(slab)
    return [
        [(keys[b, h][valid[b, h]].clone(), values[b, h][valid[b, h]].clone()) for h in range(slab.num_kv_heads)]
        for b in range(slab.batch)
    ]


def same(slab, want):
    for row, wanted_row in zip(lists(slab), want, strict=True):
        for (k, v), (wanted_k, wanted_v) in zip(row, wanted_row, strict=True):
            assert torch.equal(k, wanted_k) and torch.equal(v, wanted_v)


def random_slab(seed=0, slack=BLOCK):
    torch.manual_seed(seed)
    keys, values = torch.randn(3, 2, 9, 4, dtype=torch.float32), torch.randn(3, 2, 9, 4, dtype=torch.float32)
    keep = torch.rand(3, 2, 9, dtype=torch.float32) < 0.5
    keep[1, 0] = False  # a head of length zero
    want = [[(keys[b, h][keep[b, h]], values[b, h][keep[b, h]]) for h in range(2)] for b in range(3)]
    return Slab(keys, values, keep, slack=slack), want


def test_selected_rows_are_kept_in_order():
    slab, want = random_slab()
    same(slab, want)


@pytest.mark.parametrize("slack", [0, 1, 7])
def test_append_grows_in_blocks_and_loses_nothing(slack):
    slab, want = random_slab(slack=slack)
    for step in range(2 * BLOCK + 5):
        new_k, new_v = torch.randn(3, 2, 1, 4, dtype=torch.float32), torch.randn(3, 2, 1, 4, dtype=torch.float32)
        slab.append(new_k, new_v)
        want = [
            [(torch.cat([k, new_k[b, h]]), torch.cat([v, new_v[b, h]])) for h, (k, v) in enumerate(row)]
            for b, row in enumerate(want)
        ]
        if step % 6 == 0:
            same(slab, want)
    same(slab, want)


def test_append_in_place_does_not_move_the_buffer():
    slab, _ = random_slab()
    where = slab.keys.data_ptr()
    slab.append(torch.randn(3, 2, BLOCK, 4, dtype=torch.float32), torch.randn(3, 2, BLOCK, 4, dtype=torch.float32))
    assert slab.keys.data_ptr() == where
    slab.append(torch.randn(3, 2, 1, 4, dtype=torch.float32), torch.randn(3, 2, 1, 4, dtype=torch.float32))
    assert slab.keys.data_ptr() != where


def test_append_skips_padding():
    slab, want = random_slab()
    new = torch.randn(3, 2, 3, 4, dtype=torch.float32)
    valid = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
    slab.append(new, new, valid)
    want = [
        [(torch.cat([k, new[b, h][valid[b]]]), torch.cat([v, new[b, h][valid[b]]])) for h, (k, v) in enumerate(row)]
        for b, row in enumerate(want)
    ]
    same(slab, want)
    slab.append(new, new, valid)  # and again, behind ragged ends
    want = [
        [(torch.cat([k, new[b, h][valid[b]]]), torch.cat([v, new[b, h][valid[b]]])) for h, (k, v) in enumerate(row)]
        for b, row in enumerate(want)
    ]
    same(slab, want)


@pytest.mark.parametrize("slack", [0, 2, BLOCK])
def test_padding_never_reaches_a_neighbour(slack):
    slab, want = random_slab(slack=slack)
    for step in range(BLOCK):
        new_k, new_v, valid = (
            torch.randn(3, 2, 3, 4, dtype=torch.float32),
            torch.randn(3, 2, 3, 4, dtype=torch.float32),
            torch.rand(3, 3, dtype=torch.float32) < 0.4,
        )
        slab.append(new_k, new_v, valid)
        want = [
            [
                (torch.cat([k, new_k[b, h][valid[b]]]), torch.cat([v, new_v[b, h][valid[b]]]))
                for h, (k, v) in enumerate(row)
            ]
            for b, row in enumerate(want)
        ]
        if step % 5 == 0:
            same(slab, want)
    same(slab, want)


def test_rows_can_be_reordered_repeated_and_dropped():
    slab, want = random_slab()
    slab.select_rows(torch.tensor([2, 0, 0]))
    same(slab, [want[2], want[0], want[0]])


def test_newest_rows_can_be_dropped():
    slab, want = random_slab()
    slab.append(torch.randn(3, 2, 4, 4, dtype=torch.float32), torch.randn(3, 2, 4, 4, dtype=torch.float32))
    slab.drop_newest(4)
    same(slab, want)


def test_misshapen_input_is_refused():
    keys = torch.zeros(1, 2, 3, 4, dtype=torch.float32)
    with pytest.raises(CacheError, match="match"):
        Slab(keys, keys, torch.ones(1, 2, 4, dtype=torch.bool))
    with pytest.raises(CacheError, match="match"):
        Slab(keys, keys, torch.ones(1, 2, 3, dtype=torch.float32))


@pytest.mark.parametrize("length", [256, 300, 1000, 4096])
def test_slack_is_a_small_share_of_long_segments(length):
    rows = torch.randn(1, 2, length, 4, dtype=torch.float32)
    slab = Slab(rows, rows, torch.ones(1, 2, length, dtype=torch.bool))
    for _ in range(400):
        used = int(slab.lengths.sum()) * slab.row_bytes()
        assert slab.allocated_bytes() - used <= 0.1 * slab.allocated_bytes()
        slab.append(rows[:, :, :1], rows[:, :, :1])


def test_growing_is_rare_in_long_segments():
    rows, places = torch.randn(1, 1, 4096, 4, dtype=torch.float32), set()
    slab = Slab(rows, rows, torch.ones(1, 1, 4096, dtype=torch.bool))
    for _ in range(500):
        slab.append(rows[:, :, :1], rows[:, :, :1])
        places.add(slab.starts.data_ptr())
        assert slab.slack < 200
    assert len(places) < 7


def test_a_fixed_room_stays_in_place_and_ends():
    keys = torch.randn(2, 2, 9, 4, dtype=torch.float32)
    slab = Slab(keys, keys, torch.ones(2, 2, 9, dtype=torch.bool), room=5)
    where = slab.keys.data_ptr(), slab.lengths.data_ptr()
    assert slab.longest == 14
    for _ in range(5):
        slab.append(keys[:, :, :1], keys[:, :, :1])
    assert (slab.keys.data_ptr(), slab.lengths.data_ptr()) == where and slab.longest == 14
    before = slab.keys.clone()
    with pytest.raises(CacheError, match="room for 5"):
        slab.append(keys[:, :, :1], keys[:, :, :1])
    assert torch.equal(slab.keys, before) and slab.lengths.tolist() == [14] * 4


def test_a_room_is_not_handed_out_again():
    keys = torch.randn(2, 2, 9, 4, dtype=torch.float32)
    slab = Slab(keys, keys, torch.ones(2, 2, 9, dtype=torch.bool), room=5)
    slab.append(keys[:, :, :3], keys[:, :, :3])
    slab.select_rows(torch.tensor([1, 1]))
    slab.rearrange(rows_of(slab.starts, slab.lengths - 2), slab.lengths - 2)  # as after a turn is compressed again
    assert slab.slack == 2 and slab.longest == 12 and len(slab.keys) == 4 * 12
    slab.drop_newest(1)
    slab.append(keys[:, :, :3], keys[:, :, :3])
    with pytest.raises(CacheError, match="room for 5"):
        slab.append(keys[:, :, :1], keys[:, :, :1])


def test_rows_of_lists_segments_one_after_the_other():
    assert rows_of(torch.tensor([3, 10, 20]), torch.tensor([2, 0, 3])).tolist() == [3, 4, 20, 21, 22]
    assert rows_of(torch.tensor([3]), torch.tensor([0])).tolist() == []
