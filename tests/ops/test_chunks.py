"""The reference implementations hold few logits at a time."""

from __future__ import annotations

import pytest
import torch

from sparsemm.ops import argmax_rows, observe


@pytest.mark.parametrize("op", ["observe", "argmax_rows"])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, op: str) -> None:
    query, keys = torch.randn(8, 6, 4, dtype=torch.float32), torch.randn(4, 30, 4, dtype=torch.float32)

    def run() -> torch.Tensor:
        if op == "observe":
            return observe.reference(query[None], keys[None], torch.ones(1, 30, dtype=torch.bool), 3, 0.5)
        return argmax_rows.reference(query, keys, torch.zeros(6, dtype=torch.int64), torch.arange(25, 31))

    whole, sizes = run(), []
    matmul = torch.matmul

    def spy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        sizes.append(matmul(a, b).numel())
        return matmul(a, b)

    monkeypatch.setattr(observe if op == "observe" else argmax_rows, "MOST_LOGITS", 2 * 2 * 6 * 30)
    monkeypatch.setattr(torch, "matmul", spy)
    torch.testing.assert_close(run(), whole, rtol=1e-6, atol=1e-7)
    assert len(sizes) > 1 and max(sizes) <= 2 * 2 * 6 * 30
