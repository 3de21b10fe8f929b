"""Operations are counted as on paper, and a rate is a number of them a second."""

from __future__ import annotations

import torch
from torch import nn

from sparsemm.profiling import clock
from sparsemm.profiling.bench import arithmetic


def test_operations_of_products_and_convolutions():
    assert arithmetic.flops(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 2 * 3 * 5 * 7
    q = torch.ones(1, 2, 4, 8)
    assert arithmetic.flops(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == 0
    assert arithmetic.flops(lambda: nn.Conv2d(3, 5, 4, 4)(torch.ones(1, 3, 8, 8))) == 2 * (5 * 2 * 2) * (3 * 4 * 4)
    assert arithmetic.flops(lambda: None) == 0


def test_the_rate_is_of_the_quickest_turn(monkeypatch):
    seconds = iter([4.0, 2.0, 8.0, 4.0, 4.0])
    monkeypatch.setattr(arithmetic, "SIDE", {"cpu": 10})
    monkeypatch.setattr(clock, "seconds", lambda call, device: next(seconds))
    assert arithmetic.matmul_rate(torch.float32, torch.device("cpu")) == 2 * 10**3 / 2.0
