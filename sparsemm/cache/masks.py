"""Reads the newest rows of a causal mask, whichever attention implementation it was made for."""

from __future__ import annotations

import torch
from torch.nn.attention.flex_attention import BlockMask, create_mask

Mask = torch.Tensor | BlockMask | None


def newest_rows(mask: torch.Tensor | BlockMask, count: int) -> torch.Tensor:
    """Returns which tokens the newest `count` tokens attend to: (B or 1, count, S) bool.

    Args:
        mask: (B, 1, T, S) bool for sdpa, the same as float summands for eager attention, (B, S) with zeros for padding
            for flash attention, a BlockMask for flex attention.
        count: at most T.
    """
    if isinstance(mask, BlockMask):
        batch, _, length, size = mask.shape
        device = mask.kv_num_blocks.device

        def newest(b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            return mask.mask_mod(b, h, query + (length - count), key)

        return create_mask(newest, batch, 1, count, size, device=str(device))[:, 0]
    if mask.dim() == 2:
        size = mask.shape[1]
        causal = torch.ones(count, size, dtype=torch.bool, device=mask.device).tril(size - count)
        return mask[:, None].bool() & causal
    rows = mask[:, 0, -count:]
    return rows if rows.dtype == torch.bool else rows >= 0
