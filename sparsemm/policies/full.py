"""The full cache: every head keeps every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsemm.budgets import Slots
from sparsemm.policies.policy import Policy


@dataclass(frozen=True)
class Full(Policy):
    """Every head keeps every token; budget and window are ignored."""

    compresses: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Sets the smallest window: there is nothing to rate."""
        object.__setattr__(self, "window", 1)

    def slots(self, layer: int, lengths: list[int], worth: torch.Tensor | None) -> Slots:
        """(B, Hkv) int64: the length of each row."""
        return self.everything(lengths)
