"""Sinks and newest tokens, by position alone."""

from __future__ import annotations

import pytest
import torch

from sparsemm.policies.selector import Prompt, select
from tests.policies.making import policy_for


@pytest.mark.parametrize("budget", [3, 5, 7, 12, 40])
@pytest.mark.parametrize("pad", [0, 6])
def test_a_row_keeps_its_first_four_and_its_newest(budget, pad):
    policy = policy_for("streaming", 1, 2, budget, 3)
    valid = torch.arange(30)[None] >= pad
    key = torch.randn(1, 2, 30, 4, dtype=torch.float32)
    observed = policy.selector.rate(Prompt(torch.randn(1, 4, 30, 4, dtype=torch.float32), key, valid, 3, 0.5))
    slots = torch.from_numpy(policy.slots(0, [30 - pad], observed))
    sinks = max(min(4, budget - 3), 0)
    want = set(range(pad, pad + sinks)) | set(range(max(30 - (budget - sinks), pad), 30))
    for head in select(observed, valid, slots, 3)[0]:
        assert set(head.nonzero().flatten().tolist()) == want
