"""Ragged attention against a loop over rows and heads."""

from __future__ import annotations

import pytest
import torch

from sparsemm.cache.attention import attend
from sparsemm.cache.slab import Slab
from tests.cache.reading import read_padded


def slow(query, want, valid, seen):
    """One query row at a time; `want[b][h]` are the (keys, values) of one head, those of real new tokens last."""
    batch, num_heads, new, dim = query.shape
    out = torch.zeros_like(query)
    for b in range(batch):
        real = valid[b].nonzero().flatten().tolist()
        for h in range(num_heads):
            keys, values = want[b][h * len(want[b]) // num_heads]
            old = len(keys) - len(real)
            for t in real:
                rows = [*range(old), *(old + i for i, other in enumerate(real) if seen[b, t, other])]
                weights = torch.softmax(keys[rows] @ query[b, h, t] * 0.3, 0)
                out[b, h, t] = weights @ values[rows]
    return out


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(("new", "free"), [(1, False), (4, False), (4, True)])
@pytest.mark.parametrize("padded", [False, True])
def test_attend_equals_the_loop(group, new, free, padded):
    """Causal, and where the new tokens see each other as they like."""
    torch.manual_seed(group * 10 + new)
    keys, values = torch.randn(2, 2, 9, 4, dtype=torch.float32), torch.randn(2, 2, 9, 4, dtype=torch.float32)
    keep = torch.rand(2, 2, 9, dtype=torch.float32) < 0.5
    keep[1, 0] = False  # fewer rows than new tokens
    slab = Slab(keys, values, keep)
    valid = torch.ones(2, new, dtype=torch.bool)
    if padded:
        valid[1, : max(new // 2, 1)] = False
        valid[0, 1:2] = new == 1  # in the middle, too
    slab.append(
        torch.randn(2, 2, new, 4, dtype=torch.float32),
        torch.randn(2, 2, new, 4, dtype=torch.float32),
        valid if padded else None,
    )
    query = torch.randn(2, 2 * group, new, 4, dtype=torch.float32)
    k, v, real = read_padded(slab)
    want = [[(k[b, h][real[b, h]], v[b, h][real[b, h]]) for h in range(2)] for b in range(2)]
    causal = torch.ones(2, new, new, dtype=torch.bool).tril()
    seen = (causal | (torch.rand(2, new, new, dtype=torch.float32) < 0.5)) if free else causal
    got = attend(query, slab, 0.3, valid if padded else None, seen if free else None)
    torch.testing.assert_close(got, slow(query, want, valid, seen))
