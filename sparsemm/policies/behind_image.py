"""Attention of the rows behind the image, which are the text that asks about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from sparsemm.policies.h2o import AccumulatedAttention
from sparsemm.policies.row_attention import grown, row_attention
from sparsemm.policies.selector import Prompt


def rows_behind_image(prompt: Prompt) -> torch.Tensor:
    """Returns which rows of the prompt come after its last image token, (B, S) bool; without an image all of them.

    The last row is always one of them.
    """
    rows = prompt.valid
    if prompt.image is not None:
        rows = rows & (prompt.image.flip(-1).cumsum(-1).flip(-1) == 0)
    rows = rows.clone()
    rows[:, -1] = True
    return rows


def attention_of_rows(prompt: Prompt, rows: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Yields the attention of some rows, a chunk of rows at a time.

    Args:
        prompt: with the queries of these rows.
        rows: (B, S) bool.

    Yields:
        (B, Hkv, G, r, keys) fp32, zero for other rows; and which entries count, (B, r, keys) bool: those of these rows
        that are neither of padding nor of a later key; and the position of the first of the r rows.
    """
    length = prompt.valid.shape[1]
    at = torch.arange(length, dtype=torch.int64, device=rows.device)
    start = max(length - prompt.query.shape[2], int(rows.any(0).byte().argmax()))
    for weights, end in row_attention(replace(prompt, query=prompt.query[:, :, start - length :])):
        chunk = slice(start, start + weights.shape[3])
        seen = rows[:, chunk, None] & prompt.valid[:, None, :end] & (at[:end] <= at[chunk, None])
        yield weights * seen[:, None, None], seen, start
        start = chunk.stop


@dataclass(frozen=True)
class BehindImage(AccumulatedAttention):
    """The sum of A[i, j] over the rows i behind the image, as VL-Cache rates (arXiv 2410.23317).

    As `AccumulatedAttention` otherwise: mean over the query group, not pooled. Without an image, and in a later turn,
    all rows count.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"image"})
    summary: ClassVar[str] = "the positions that the rows behind the image together attend to most"

    @property
    def accumulates(self) -> bool:
        """Which rows are behind the image is known only at the end."""
        return False

    def rate(self, prompt: Prompt) -> torch.Tensor:
        """(B, Hkv, S) fp32."""
        total = grown(None, prompt)
        for weights, _, _ in attention_of_rows(prompt, rows_behind_image(prompt)):
            total[..., : weights.shape[-1]] += weights.sum(dim=-2).mean(dim=2)
        return total.masked_fill(~prompt.valid[:, None], float("-inf"))
