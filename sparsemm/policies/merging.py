"""Merges the keys and values of evicted positions into kept ones."""

from __future__ import annotations

import torch


def nearest_kept(keep: torch.Tensor) -> torch.Tensor:
    """Returns the nearest kept position of each position, the earlier of two; -1 where a head keeps none.

    Args:
        keep: (B, Hkv, S) bool.

    Returns:
        (B, Hkv, S) int64.
    """
    length = keep.shape[-1]
    at = torch.arange(length, dtype=torch.int64, device=keep.device)
    far = 2 * length
    before = torch.where(keep, at, -far).cummax(dim=-1).values
    after = torch.where(keep, at, far).flip(-1).cummin(dim=-1).values.flip(-1)
    nearest = torch.where(at - before <= after - at, before, after)
    return nearest.masked_fill(~keep.any(-1, keepdim=True), -1)


def merge(rows: torch.Tensor, target: torch.Tensor, evicted: torch.Tensor, own: float) -> torch.Tensor:
    """Returns rows into which evicted ones are merged: the mean of a row and what each evicted one contributes.

    The evicted row e contributes own * row + (1 - own) * e to its target `row`. Computed in fp32.

    Args:
        rows: (B, Hkv, S, D), keys or values.
        target: (B, Hkv, S) int64, the position that each evicted one is merged into.
        evicted: (B, Hkv, S) bool, the positions to merge.
        own: share of the target in a contribution: 0 is a plain mean, 1/2 the mean of pivots.

    Returns:
        (B, Hkv, S, D) in the dtype of `rows`; evicted rows are as before.
    """
    wide, weight = rows.float(), evicted.float()
    index = target.clamp(min=0)
    count = torch.zeros_like(weight).scatter_add(-1, index, weight)[..., None]
    total = torch.zeros_like(wide).scatter_add(-2, index[..., None].expand_as(wide), wide * weight[..., None])
    merged = (wide * (1 + own * count) + (1 - own) * total) / (1 + count)
    return torch.where(count > 0, merged.to(rows.dtype), rows)
