"""Accumulated attention against the whole attention matrix, and its memory."""

from __future__ import annotations

import pytest
import torch

from sparsemm.policies import row_attention
from sparsemm.policies.selector import Prompt, select
from tests.policies.making import policy_for


def whole_matrix(q, k, pad):
    logits = (q @ k.repeat_interleave(2, 0).transpose(-1, -2) * 0.5).masked_fill(
        torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).triu(1), float("-inf")
    )
    logits[..., :pad] = float("-inf")
    return torch.softmax(logits, -1)[:, pad:].sum(1).view(2, 2, -1).mean(1)


@pytest.mark.parametrize("chunk", [1, 200, 10**9])
@pytest.mark.parametrize("pad", [0, 7])
def test_scores_equal_the_column_sums_of_the_attention_matrix(monkeypatch, chunk, pad):
    monkeypatch.setattr(row_attention, "CHUNK", chunk)
    torch.manual_seed(pad)
    q, k = torch.randn(1, 4, 33, 8, dtype=torch.float32), torch.randn(1, 2, 33, 8, dtype=torch.float32)
    valid = torch.arange(33)[None] >= pad
    got = policy_for("h2o", 1, 2, 12, 3).selector.rate(Prompt(q, k, valid, 6, 0.5))[0]
    assert torch.isneginf(got[:, :pad]).all()
    torch.testing.assert_close(got[:, pad:], whole_matrix(q[0], k[0], pad)[:, pad:])


def test_half_of_the_budget_is_newest_and_half_is_heavy():
    policy = policy_for("h2o", 1, 2, 12, 3)
    q, k = torch.randn(1, 4, 40, 8, dtype=torch.float32), torch.randn(1, 2, 40, 8, dtype=torch.float32)
    valid = torch.ones(1, 40, dtype=torch.bool)
    assert policy.window == 6
    observed = policy.selector.rate(Prompt(q, k, valid, policy.window, 0.5))
    keep = select(observed, valid, torch.from_numpy(policy.slots(0, [40], observed)), policy.window)
    heavy = whole_matrix(q[0], k[0], 0)
    for head in range(2):
        best = heavy[head, :34].topk(6).indices.tolist()
        assert keep[0, head].nonzero().flatten().tolist() == sorted(best) + list(range(34, 40))


def test_no_square_tensor_is_made(monkeypatch):
    monkeypatch.setattr(row_attention, "CHUNK", 1 << 16)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            nonlocal largest
            out = op(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    q, k = torch.randn(1, 2, 2048, 8, dtype=torch.float32), torch.randn(1, 1, 2048, 8, dtype=torch.float32)
    with Watch():
        policy_for("h2o", 1, 1, 64, 8).selector.rate(Prompt(q, k, torch.ones(1, 2048, dtype=torch.bool), 32, 0.5))
    assert largest <= 1 << 16
