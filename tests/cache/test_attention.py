"""Ragged attention against a loop over rows and heads."""

from __future__ import annotations

import pytest
import torch

from sparsemm.cache.attention import attend, ragged_attention
from sparsemm.cache.slab import Slab
from sparsemm.errors import CacheError


def slow(query, want, valid):
    """One query row at a time; `want[b][h]` are the (keys, values) of one head before the new tokens' own."""
    batch, num_heads, new, dim = query.shape
    out = torch.zeros_like(query)
    for b in range(batch):
        for h in range(num_heads):
            keys, values = want[b][h * len(want[b]) // num_heads]
            real = int(valid[b].sum())
            seen = len(keys) - real
            for t in range(new):
                if not valid[b, t]:
                    continue
                seen += 1
                weights = torch.softmax(keys[:seen] @ query[b, h, t] * 0.3, 0)
                out[b, h, t] = weights @ values[:seen]
    return out


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("new", [1, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_attend_equals_the_loop(group, new, padded):
    torch.manual_seed(group * 10 + new)
    keys, values = torch.randn(2, 2, 9, 4), torch.randn(2, 2, 9, 4)
    slab = Slab(keys, values, torch.rand(2, 2, 9) < 0.5)
    valid = torch.ones(2, new, dtype=torch.bool)
    if padded:
        valid[1, : max(new // 2, 1)] = False
    slab.append(torch.randn(2, 2, new, 4), torch.randn(2, 2, new, 4), valid if padded else None)
    query = torch.randn(2, 2 * group, new, 4)
    k, v, real = slab.padded()
    want = [[(k[b, h][real[b, h]], v[b, h][real[b, h]]) for h in range(2)] for b in range(2)]
    got = attend(query, slab, 0.3, valid if padded else None)
    torch.testing.assert_close(got, slow(query, want, valid))


def test_learned_sinks_are_refused():
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(CacheError, match="sinks"):
        ragged_attention(torch.nn.Identity(), q, q, q, None, s_aux=torch.zeros(2))
