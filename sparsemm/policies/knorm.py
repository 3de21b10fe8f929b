"""Knorm: the shortest keys, without any query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsemm.policies.selector import Prompt, Selector


@dataclass(frozen=True)
class KeyNorm(Selector):
    """-|k| (arXiv 2406.11430). It says nothing about models that normalise their keys (Qwen3, Gemma 3)."""

    rates_answers: ClassVar[bool] = False
    summary: ClassVar[str] = "the positions with the shortest keys"

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32."""
        return -prompt.key.float().norm(dim=-1).masked_fill(~prompt.valid[:, None], float("inf"))
