"""Streaming: the first tokens and the newest ones, whatever they say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsemm.policies.selector import Prompt, Selector
from sparsemm.policies.snapkv import SnapKV


@dataclass(frozen=True)
class Recency(Selector):
    """Newer positions are worth more, and the first ones most of all.

    Attributes:
        sinks: first tokens of a row that come before all others.
    """

    sinks: int = 4
    summary: ClassVar[str] = "the first and the newest positions"

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32: minus the number of tokens after a position; the sinks come first of all."""
        order = prompt.valid.cumsum(-1)  # 1 for a row's first token
        score = (order - order[:, -1:]).float()
        sink = torch.finfo(torch.float32).max / order.clamp(min=1).float()
        score = torch.where(order <= self.sinks, sink, score)
        score = score.masked_fill(~prompt.valid, float("-inf"))
        return score[:, None].expand(-1, prompt.key.shape[1], -1)

    def update(
        self, worth: torch.Tensor, weights: torch.Tensor, age: torch.Tensor, since: torch.Tensor, window: int
    ) -> torch.Tensor:
        """Minus a row's age, but for the sinks."""
        return torch.where(worth > 0, worth, -age.float())


@dataclass(frozen=True, kw_only=True)
class Streaming(SnapKV):
    """Uniform B: attention sinks and the newest tokens (StreamingLLM, arXiv 2309.17453, 4 sinks).

    A row keeps the first tokens of its prompt and its newest B - sinks; a budget below window + sinks costs sinks,
    last ones first.
    """

    selector: Selector = Recency()
    summary: ClassVar[str] = "the same slots for every head, filled with the first tokens and the newest ones."
