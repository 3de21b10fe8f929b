"""LOOK-M: all text, then image tokens by accumulated attention; what is evicted is merged into the most similar key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn import functional as F

from sparsemm.policies import row_attention
from sparsemm.policies.h2o import H2O, AccumulatedAttention
from sparsemm.policies.merging import merge
from sparsemm.policies.selector import Prompt, Selector


def most_similar(key: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Returns the kept position whose key has the largest cosine with each key: (B, Hkv, S) int64, ties to the first.

    Args:
        key: (B, Hkv, S, D) post-RoPE.
        keep: (B, Hkv, S) bool, at least one of each head.
    """
    most = int(keep.sum(-1).max())
    first = torch.sort(keep.byte(), dim=-1, descending=True, stable=True).indices[..., :most]  # of each head, in order
    unit = F.normalize(key.float(), dim=-1)
    kept = unit.gather(2, first[..., None].expand(-1, -1, -1, key.shape[-1]))
    missing = ~keep.gather(-1, first)[..., None, :]
    step = max(row_attention.CHUNK // max(key.shape[0] * key.shape[1] * most, 1), 1)
    nearest = [
        torch.matmul(part, kept.transpose(-1, -2)).masked_fill(missing, float("-inf")).argmax(dim=-1)
        for part in unit.split(step, dim=2)
    ]
    return first.gather(-1, torch.cat(nearest, dim=-1))


@dataclass(frozen=True)
class MergeSimilar(AccumulatedAttention):
    """The sum of A[i, j] over every row, plus its maximum for text (LOOK-M, arXiv 2406.18139).

    So text comes before the image, both by their sums. Every evicted position, image or text, goes to the kept one
    whose key has the largest cosine, and a kept key becomes the mean of itself and its pivots (k + k_e) / 2, one for
    each evicted k_e; its value likewise. Keys are merged after their rotation, as in the public code.

    The public code marks image tokens by -65516 in half precision: in bf16 all their sums become equal, in fp16 they
    are rounded to steps of 32, so ties choose among them. It keeps all text even where the budget does not hold it, and
    takes every image for 576 tokens. Here sums are fp32, text beyond the budget is evicted, and the mask says what is
    an image. Like the paper, this compresses the prompt alone: neither a later turn nor an answer is rated.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"image", "value"})
    rates_turns: ClassVar[bool] = False
    rates_answers: ClassVar[bool] = False
    summary: ClassVar[str] = (
        "all text and the image tokens that all rows attend to most; others merge into similar ones"
    )

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32."""
        worth = super().rate(prompt)
        if prompt.image is None:
            return worth
        return torch.where(prompt.image[:, None], worth, worth + worth.amax(dim=-1, keepdim=True))

    def merge(self, prompt: Prompt, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, Hkv, S, D) with pivots of evicted ones in the kept ones."""
        assert prompt.value is not None
        evicted, target = prompt.valid[:, None] & ~keep, most_similar(prompt.key, keep)
        return merge(prompt.key, target, evicted, 0.5), merge(prompt.value, target, evicted, 0.5)


@dataclass(frozen=True, kw_only=True)
class LookM(H2O):
    """Uniform B: half newest tokens, half text and then image, evicted positions merged (LOOK-M, arXiv 2406.18139).

    The paper gives a tenth of the prompt to each half. Its window is max(w, B // 2).
    """

    selector: Selector = MergeSimilar()
    summary: ClassVar[str] = (
        "the same slots for every head, filled with the newest tokens, text and then image; others merge into similar "
        "ones."
    )
