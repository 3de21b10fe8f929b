"""The operations of the cache in plain PyTorch: any device and dtype, differentiable; the rest is held to them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch.nn import functional as F


def ragged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """`ragged_decode` by padding every head to the longest."""
    longest = int(lengths.max()) if len(lengths) else 0
    if longest == 0:
        return torch.zeros_like(query)
    at = torch.arange(longest, dtype=torch.int64, device=keys.device)
    valid = at < lengths[:, None]
    rows = torch.where(valid, starts[:, None] + at, starts[:, None].clamp(max=len(keys) - 1))
    group = query.reshape(len(starts), -1, query.shape[-1])
    output = F.scaled_dot_product_attention(group, keys[rows], values[rows], attn_mask=valid[:, None], scale=scaling)
    return output.masked_fill(lengths[:, None, None] == 0, 0.0).view(query.shape)


def append(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """`append` by indexing."""
    keys[starts + lengths] = new_keys
    values[starts + lengths] = new_values


def compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    """`compact` by indexing."""
    flat = keep.flatten(0, 1)
    # Rank of a kept position within its stretch, then its row in the buffer.
    stretch, position = flat.nonzero(as_tuple=True)
    rows = starts[stretch] + (flat.cumsum(dim=-1) - 1)[stretch, position]
    keys[rows] = full_keys[keep]
    values[rows] = full_values[keep]


MOST_LOGITS = 1 << 24  # logits held at once, whatever the number of rows, heads and positions


def observe(query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, pooling: int, scaling: float) -> torch.Tensor:
    """`observe` with the weights of as many KV heads at a time as fit `MOST_LOGITS` (and at least one)."""
    batch, num_heads, window, dim = query.shape
    num_kv_heads, length = keys.shape[1:3]
    group = num_heads // max(num_kv_heads, 1)
    result = torch.full((batch, num_kv_heads, length), float("-inf"), dtype=torch.float32, device=keys.device)
    if length == window:
        return result
    at = torch.arange(length, dtype=torch.int64, device=keys.device)
    causal = at <= at[length - window :, None]
    step = max(1, MOST_LOGITS // max(group * window * length, 1))
    for b in range(batch):
        seen = causal & valid[b]
        for first in range(0, num_kv_heads, step):
            key = keys[b, first : first + step].float()
            rows = query[b, first * group : (first + len(key)) * group].float().reshape(len(key), -1, dim)
            logits = torch.matmul(rows, key.transpose(-1, -2)).view(len(key), group, window, length) * scaling
            weights = torch.softmax(logits.masked_fill(~seen, float("-inf")), dim=-1).nan_to_num(0.0)
            outside = weights.sum(dim=-2)[..., : length - window] / window
            pooled = F.avg_pool1d(outside, pooling, stride=1, padding=pooling // 2)
            result[b, first : first + step, : length - window] = pooled.mean(dim=1)
    return result.masked_fill(~valid[:, None, :], float("-inf"))


def argmax_rows(query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """`argmax_rows` with at most `MOST_LOGITS` logits (and at least one row) at a time."""
    num_heads, rows, dim = query.shape
    num_kv_heads, length = keys.shape[:2]
    found = torch.zeros((num_heads, rows), dtype=torch.int64, device=query.device)
    if 0 in (num_heads, rows, length):
        return found
    wide = torch.float32 if query.device.type == "mps" else torch.float64  # Apple's GPUs know no doubles
    columns = torch.arange(length, dtype=torch.int64, device=query.device)
    transposed = keys.to(wide).transpose(1, 2)
    step = max(1, MOST_LOGITS // (num_heads * length))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        q = query[:, part].to(wide).reshape(num_kv_heads, -1, dim)  # the query group becomes rows of its KV head
        logits = torch.matmul(q, transposed).view(num_heads, -1, length)
        seen = (columns >= begins[part, None]) & (columns < ends[part, None])
        found[:, part] = logits.masked_fill(~seen, float("-inf")).argmax(dim=-1)
    return found


def causal_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    firsts: torch.Tensor,
    stops: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """`causal_attention` by torch's sdpa."""
    return attend_spans(query, keys, values, list(zip(firsts.tolist(), stops.tolist(), strict=True)), scaling)


def attend_spans(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, spans: Sequence[tuple[int, int]], scaling: float
) -> torch.Tensor:
    """`causal_attention` of samples whose tokens are known on the host; neighbours of equal span go together."""

    batch, heads, length, dim = query.shape
    options: dict[str, Any] = {"is_causal": True, "scale": scaling, "enable_gqa": heads > keys.shape[1]}
    if set(spans) == {(0, length)} and length:
        return F.scaled_dot_product_attention(query, keys, values, **options).transpose(1, 2).contiguous()
    out = query.new_zeros((batch, length, heads, dim))
    start = 0
    for (first, stop), group in groupby(spans):
        end = start + len(list(group))
        if first < stop:
            at = slice(start, end), slice(None), slice(first, stop)
            parts = F.scaled_dot_product_attention(query[at], keys[at], values[at], **options)
            out[start:end, first:stop] = parts.transpose(1, 2)
        start = end
    return out
