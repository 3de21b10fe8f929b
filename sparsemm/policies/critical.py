"""CriticalKV: half of a head's slots by attention, half by what attention would carry into the residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsemm.policies import row_attention
from sparsemm.policies.selector import Prompt
from sparsemm.policies.window_attention import UnpooledAttention

LEAST = 1e-4  # added to the attention, so that large values count even where attention is zero


def carried(prompt: Prompt) -> torch.Tensor:
    """Returns the 1-norm of W_O v, mean over the query group: (B, Hkv, S) fp32, a chunk of positions at a time."""
    assert prompt.value is not None and prompt.projection is not None
    projection = prompt.projection.float()
    group, hidden = projection.shape[2], projection.shape[-1]
    batch, heads, length, _ = prompt.value.shape
    step = max(row_attention.CHUNK // max(batch * heads * group * hidden, 1), 1)
    parts = [
        torch.matmul(part.float()[:, :, None], projection).abs().sum(-1).mean(2)
        for part in prompt.value.split(step, dim=2)
    ]
    return torch.cat(parts, dim=-1) if parts else prompt.key.new_zeros((batch, heads, length), dtype=torch.float32)


@dataclass(frozen=True)
class Critical(UnpooledAttention):
    """Two stages (arXiv 2502.03805): of the head's slots beyond the window the first half by O, the rest by
    (O + 1e-4) |W_O v|_1, mean over the query group.

    O is the observation score of each position by itself (public codes pool it over 5 neighbours). Policies split by O,
    and so it is what `hold_budget` goes on with. With `adakv` this is CriticalAdaKV.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"value", "projection", "slots"})
    summary: ClassVar[str] = "the positions that the window attends to most, half of them by what their values add"

    def refine(self, worth: torch.Tensor, slots: torch.Tensor, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32: the first half before everything else, then by what is carried."""
        choice = prompt.candidates()
        observed = worth.masked_fill(~choice, float("-inf"))
        order = torch.sort(observed, dim=-1, descending=True, stable=True).indices
        first = torch.arange(order.shape[-1], dtype=torch.int64, device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(-1, order, first)
        half = ((slots - prompt.window) // 2)[..., None]
        weighed = (observed.masked_fill(~choice, 0.0) + LEAST) * carried(prompt)
        # Finite: the window alone is worth infinity.
        refined = torch.where(rank < half, torch.finfo(torch.float32).max, weighed)
        return refined.masked_fill(~choice, float("-inf"))
