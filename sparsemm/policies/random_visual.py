"""Random visual tokens: all text, and image tokens that nobody chose; the control that selectors are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
import torch

from sparsemm.policies.random_heads import check_seed
from sparsemm.policies.selector import Prompt, Selector


@dataclass(frozen=True)
class RandomVisual(Selector):
    """All text, then image tokens drawn at random: one set for all heads, as methods that drop image tokens keep.

    Positions stay in order. If the slots do not hold the text, its newest `window` tokens and its first ones stay.
    Evaluation draws anew for every page; elsewhere all rows of a batch have the draw of the seed.

    Attributes:
        seed: of the draw, from 0 up.
    """

    seed: int = 0
    _pages: tuple[int, ...] = field(default=(), repr=False)
    one_set: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset({"image"})
    drawn: ClassVar[bool] = True
    rates_answers: ClassVar[bool] = False
    rates_turns: ClassVar[bool] = False
    summary: ClassVar[str] = "all text and random image tokens, the same ones in every head"

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def for_pages(self, pages: Sequence[int]) -> Self:
        """Returns the selector of a batch whose rows are these pages."""
        return replace(self, _pages=tuple(pages))

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32: a random number in [0, 1) for each image token, the largest fp32 for text."""
        batch, heads, length, _ = prompt.key.shape
        worth = torch.zeros(batch, heads, length, dtype=torch.float32, device="cpu")
        draws = 1 if self.one_set else heads
        for row, count in enumerate(prompt.valid.sum(-1).tolist()):
            page = self._pages[row] if self._pages else 0
            generator = np.random.default_rng((self.seed, page, 0 if self.one_set else prompt.layer))
            worth[row, :, length - count :] = torch.from_numpy(generator.random((draws, count), dtype=np.float32))
        worth = worth.to(prompt.key.device)
        image = torch.zeros_like(prompt.valid) if prompt.image is None else prompt.image
        worth = torch.where(image[:, None], worth, torch.finfo(torch.float32).max)
        return worth.masked_fill(~prompt.valid[:, None], float("-inf"))


@dataclass(frozen=True)
class RandomVisualPerHead(RandomVisual):
    """As `RandomVisual`, with a set of its own for each KV head: together the heads hold more of the image."""

    one_set: ClassVar[bool] = False
    summary: ClassVar[str] = "all text and random image tokens, others in every head"
