"""Evicted positions merged into kept ones, against loops over rows, heads and positions in fp64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsemm.cache.layer import RaggedLayer
from sparsemm.policies import row_attention, selector_of
from sparsemm.policies.elasticcache import MergeNearest
from sparsemm.policies.look_m import MergeSimilar
from sparsemm.policies.merging import nearest_kept
from sparsemm.policies.selector import select
from tests.cache.reading import read_padded
from tests.policies.making import policy_for
from tests.policies.prompts import PADS, SCALING, prompt_of

LENGTH, W = 19, 4
IMAGE = torch.zeros(2, LENGTH, dtype=torch.bool)
IMAGE[0, 2:11] = IMAGE[1, 8:13] = True


def slow_similar(prompt, row, kv, kept, j):
    keys = prompt.key[row, kv].double()
    cosine = [float(keys[j] @ keys[i] / keys[j].norm() / keys[i].norm()) for i in kept]
    return kept[cosine.index(max(cosine))]


def slow_nearest(prompt, row, kv, kept, j):
    anchors = [i for i in kept if i < LENGTH - W]
    return min(anchors, key=lambda i: (abs(i - j), i), default=None)


SLOW = {MergeSimilar: (slow_similar, 0.5), MergeNearest: (slow_nearest, 0.0)}


def slow_merge(kind, prompt, row, kv, keep):
    """(kept, D) fp64 keys and values of one head: the mean of a row and of own * row + (1 - own) * evicted."""
    target, own = SLOW[kind]
    kept = [j for j in range(LENGTH) if keep[j]]
    parts = {j: [] for j in kept}
    for j in range(PADS[row], LENGTH):
        if j not in kept and (into := target(prompt, row, kv, kept, j)) is not None:
            parts[into].append(j)
    merged = []
    for rows in (prompt.key[row, kv].double(), prompt.value[row, kv].double()):
        each = [[rows[i], *(own * rows[i] + (1 - own) * rows[j] for j in parts[i])] for i in kept]
        merged.append(torch.stack([sum(one) / len(one) for one in each]))
    return *merged, max(map(len, parts.values()))


@pytest.mark.parametrize("chunk", [1, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", SLOW)
def test_rows_are_merged_as_the_formulas_say(monkeypatch, kind, dtype, chunk):
    monkeypatch.setattr(row_attention, "CHUNK", chunk)
    prompt = replace(prompt_of(5, dtype=dtype), image=IMAGE)
    before = prompt.key.clone(), prompt.value.clone()
    slots = torch.tensor([[9, 4, 12], [6, 5, 30]])  # the window alone, and everything, too
    keep = select(kind().rate(prompt), prompt.valid, slots, W)
    key, value = kind().merge(prompt, keep)
    assert torch.equal(prompt.key, before[0]) and torch.equal(prompt.value, before[1])  # others compress them too
    assert key.dtype == value.dtype == dtype and key.shape == prompt.key.shape
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 1e-2}
    most = 0
    for row in range(2):
        for kv in range(3):
            *want, several = slow_merge(kind, prompt, row, kv, keep[row, kv])
            for got, one in zip((key, value), want, strict=True):
                torch.testing.assert_close(got[row, kv][keep[row, kv]].double(), one, **close)
            most = max(most, several)
    assert most > 1  # several evicted positions in one kept one
    assert torch.equal(key[1, 2, PADS[1] :], prompt.key[1, 2, PADS[1] :])  # nothing was evicted there


def test_text_comes_first_then_the_image_both_by_their_sums():
    prompt = replace(prompt_of(7), image=IMAGE)
    plain, rated = MergeSimilar().rate(replace(prompt, image=None)), MergeSimilar().rate(prompt)
    for row, pad in enumerate(PADS):
        for kv in range(3):
            order = rated[row, kv].argsort(descending=True)[: LENGTH - pad].tolist()
            want = sorted(range(pad, LENGTH), key=lambda j: (bool(IMAGE[row, j]), -float(plain[row, kv, j])))  # noqa: B023
            assert order == want
    assert torch.equal(plain, selector_of("h2o").rate(prompt))


def test_all_heads_of_a_layer_have_the_same_anchors():
    prompt = prompt_of(7)
    want = selector_of("h2o").rate(prompt).mean(dim=1)
    assert all(torch.equal(MergeNearest().rate(prompt)[:, kv], want) for kv in range(3))


def test_the_nearest_kept_position_is_the_earlier_of_two():
    keep = torch.tensor([[0, 1, 0, 1, 0, 0, 0, 1, 0], [0] * 9]).bool()[None]
    assert nearest_kept(keep).tolist() == [[[1, 1, 1, 3, 3, 3, 7, 7, 7], [-1] * 9]]


@pytest.mark.parametrize("method", ["look-m", "elasticcache", "meda+merge-similar"])
def test_a_layer_stores_what_is_merged_and_counts_the_rows_that_it_holds(method):
    prompt = prompt_of(9)
    layer = RaggedLayer(0, policy_for(method, 1, 3, 9, W))
    mask = (torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() & prompt.valid[:, None])[:, None]
    layer.update(prompt.key, prompt.value)
    layer.compress(prompt.query, prompt.key, prompt.value, mask, SCALING)
    keys, values, valid = read_padded(layer.slab)
    assert valid.sum(-1).tolist() == [[9] * 3] * 2
    kind = type(layer.policy.selector)
    keep = select(kind().rate(prompt), prompt.valid, torch.full((2, 3), 9), layer.policy.window)
    for row in range(2):
        for kv in range(3):
            key, value, several = slow_merge(kind, prompt, row, kv, keep[row, kv])
            torch.testing.assert_close(keys[row, kv][valid[row, kv]].double(), key, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(values[row, kv][valid[row, kv]].double(), value, rtol=1e-5, atol=1e-6)
            assert several > 1
