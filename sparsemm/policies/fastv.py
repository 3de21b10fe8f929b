"""FastV: one set of visual tokens for all layers after the second, chosen by the last row's attention in that layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from sparsemm.budgets import Slots, largest_remainder
from sparsemm.errors import PromptTooLong
from sparsemm.policies.policy import Policy
from sparsemm.policies.selector import Prompt, Selector
from sparsemm.policies.tova import LastRow

WHOLE = 2  # first layers, which keep everything; the last of them chooses


@dataclass(frozen=True)
class SecondLayer(LastRow):
    """All text, then the image tokens that the last row of the second layer attends to (arXiv 2403.06764).

    Attention is averaged over all heads of that layer, and every later layer has the same ranking. Earlier layers rank
    by their own last row.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"image", "scratch"})
    rates_turns: ClassVar[bool] = False
    rates_answers: ClassVar[bool] = False
    summary: ClassVar[str] = "all text and the image tokens that the last row of the second layer attends to"

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32, the same for every head; the largest fp32 for text."""
        if prompt.layer < WHOLE:
            worth = super().rate(prompt)
            if prompt.image is not None:
                text = prompt.valid & ~prompt.image
                worth = worth.masked_fill(text[:, None], torch.finfo(torch.float32).max)
            prompt.scratch[WHOLE - 1] = worth
        return prompt.scratch[WHOLE - 1].to(prompt.key.device)


@dataclass(frozen=True, kw_only=True)
class FastV(Policy):
    """The first two layers keep the prompt; the others share what they leave of L B slots evenly.

    FastV itself drops the tokens from the prefill, too: later layers never see them. Here the prompt is read as a
    whole, and its keys and values are dropped afterwards, at the bytes that FastV's cache would hold.
    """

    selector: Selector = SecondLayer()
    whole_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "the whole prompt in the first two layers and one set of image tokens in all others"

    def schedule(self, length: int) -> Slots:
        """(L, Hkv) int64 slots for a prompt of `length` tokens.

        Raises:
            PromptTooLong: if the first layers leave the others less than their window.
        """
        slots = np.full((self.num_layers, self.num_kv_heads), length, dtype=np.int64)
        rest = slots[WHOLE:]
        if length > self.budget:
            total = self.budget * slots.size - length * slots[:WHOLE].size
            if total < self.window * max(rest.size, 1):
                what = f"{WHOLE} whole layers of {length} tokens leave too few of {self.budget} slots per head"
                raise PromptTooLong(
                    what, hint="choose a larger budget, or another method; the others need their window"
                )
            rest[:] = largest_remainder(np.ones(rest.shape), total)
        return slots

    def slots(self, layer: int, lengths: list[int], worth: torch.Tensor | None) -> Slots:
        """(B, Hkv) int64: the layer's part of the schedule."""
        return np.stack([self.schedule(length)[layer] for length in lengths])
