"""Streaming: the first tokens and the newest ones, whatever they say."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sparsemm.policies.snapkv import SnapKV


@dataclass(frozen=True)
class Streaming(SnapKV):
    """Uniform B: attention sinks and the newest tokens (StreamingLLM, arXiv 2309.17453, 4 sinks).

    A row keeps the first `sinks` tokens of its prompt and its newest B - sinks; a budget below window + sinks costs
    sinks, last ones first.
    """

    sinks: int = 4

    def rate(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        valid: torch.Tensor,
        window: int,
        pooling_kernel: int,
        scaling: float,
    ) -> torch.Tensor:
        """(B, Hkv, S) fp32: minus the number of tokens after a position; the sinks come first of all."""
        order = valid.cumsum(-1)  # 1 for a row's first token
        score = (order - order[:, -1:]).float()
        sink = torch.finfo(torch.float32).max / order.clamp(min=1).float()
        score = torch.where(order <= self.sinks, sink, score)
        score = score.masked_fill(~valid, float("-inf"))
        return score[:, None].expand(-1, key.shape[1], -1)

    def watch(self, worth: torch.Tensor, weights: torch.Tensor, age: torch.Tensor, since: torch.Tensor) -> torch.Tensor:
        """Minus a row's age, but for the sinks."""
        return torch.where(worth > 0, worth, -age.float())
