"""Observation scores of a prompt's last rows, and the positions a head keeps given its number of slots."""

from __future__ import annotations

import torch

from sparsemm.ops.observe import observe as observe_rows


def observe(
    query: torch.Tensor, key: torch.Tensor, valid: torch.Tensor, window: int, pooling_kernel: int, scaling: float
) -> torch.Tensor:
    """SnapKV's scores (arXiv 2404.14469): what the last `window` rows look at, pooled over neighbours.

    A = softmax(q k^T * scaling) of the last `window` rows, causal, in fp32; mean over the rows; over the positions
    before the window an average pool of `pooling_kernel` (zeros beyond the ends); mean over the query group.

    Args:
        query: (B, Hq, S, D) post-RoPE.
        key: (B, Hkv, S, D) post-RoPE.
        valid: (B, S) bool, false on left padding.
        window: w, at least 1.
        pooling_kernel: odd.
        scaling: factor of the logits, 1 / sqrt(D).

    Returns:
        (B, Hkv, S) fp32; -inf on padding and inside the window.
    """
    rows = min(window, query.shape[2])
    return observe_rows(query[:, :, query.shape[2] - rows :], key, valid, pooling_kernel, scaling)


def select(observed: torch.Tensor, valid: torch.Tensor, slots: torch.Tensor, window: int) -> torch.Tensor:
    """Positions every head keeps: the newest `window`, then the best observed, ties to the lowest position.

    Args:
        observed: (B, Hkv, S) as from `observe`.
        valid: (B, S) bool, false on left padding.
        slots: (B, Hkv) int64, window included; a head with at least as many slots as tokens keeps them all.
        window: w.

    Returns:
        (B, Hkv, S) bool.
    """
    length = valid.shape[-1]
    at = torch.arange(length, dtype=torch.int64, device=valid.device)
    inside = valid & (at >= length - window)
    # The window ranks before everything, padding after everything.
    ranked = observed.masked_fill(inside[:, None], float("inf")).masked_fill(~valid[:, None], float("-inf"))
    order = torch.sort(ranked, dim=-1, descending=True, stable=True).indices
    # Few slots and a wide window: the newest tokens go first.
    rank = torch.empty_like(order).scatter_(-1, order, at.expand_as(order))
    newest = inside.flip(-1).cumsum(-1).flip(-1) - 1
    rank = torch.where(inside[:, None], newest[:, None], rank)
    return (rank < slots[..., None]) & valid[:, None]
