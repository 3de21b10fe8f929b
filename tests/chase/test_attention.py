"""argmax of q.k for chosen rows against the whole attention matrix."""

from __future__ import annotations

import pytest
import torch

from sparsemm.chase import attention
from sparsemm.chase.attention import argmax_rows


def slow(query, key, rows, valid):
    batch, num_heads, length, _ = query.shape
    keys = key.repeat_interleave(num_heads // key.shape[1], 1)
    logits = query @ keys.transpose(-1, -2)
    seen = torch.ones(length, length).tril().bool() & valid[:, None]
    attn = logits.masked_fill(~seen[:, None], float("-inf")).softmax(-1)
    out = torch.zeros(batch, num_heads, rows.shape[1], dtype=torch.int64)
    for b in range(batch):
        for h in range(num_heads):
            for t in range(rows.shape[1]):
                out[b, h, t] = int(attn[b, h, rows[b, t]].argmax())
    return out


@pytest.mark.parametrize("chunk", [1, 1 << 24])
@pytest.mark.parametrize("kv", [1, 2, 4])
def test_argmax_rows_equals_the_whole_matrix(monkeypatch, chunk, kv):
    monkeypatch.setattr(attention, "CHUNK", chunk)
    torch.manual_seed(kv)
    query, key = torch.randn(2, 4, 11, 8), torch.randn(2, kv, 11, 8)
    valid = torch.arange(11) >= torch.tensor([[0], [3]])
    rows = torch.tensor([[10, 4, 0], [10, 3, 7]])
    assert torch.equal(argmax_rows(query, key, rows, valid), slow(query, key, rows, valid))


def test_ties_go_to_the_lowest_position():
    query, key = torch.ones(1, 1, 6, 4), torch.ones(1, 1, 6, 4)
    valid = torch.tensor([[False, True, True, True, True, True]])
    assert argmax_rows(query, key, torch.tensor([[5, 2]]), valid).flatten().tolist() == [1, 1]


def test_logits_of_at_most_one_chunk_are_held(monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 2 * 4 * 50 * 3)
    shapes = []
    real = torch.Tensor.masked_fill_

    def spy(self, *arguments):
        shapes.append(tuple(self.shape))
        return real(self, *arguments)

    monkeypatch.setattr(torch.Tensor, "masked_fill_", spy)
    rows = torch.arange(50).repeat(2, 1)
    valid = torch.ones(2, 50, dtype=torch.bool)
    argmax_rows(torch.randn(2, 4, 50, 8), torch.randn(2, 4, 50, 8), rows, valid)
    assert len(shapes) == 17 and all(shape[2] <= 3 for shape in shapes)
