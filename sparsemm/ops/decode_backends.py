"""Runs `ragged_decode` with kernels of other packages on a CUDA device: torch's varlen_attn and flash-attn."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch


@lru_cache
def _varlen() -> tuple[Callable[..., Any], frozenset[str]] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


@lru_cache
def _flash() -> Callable[..., Any] | None:
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


def _between(starts: torch.Tensor, lengths: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns cumulative counts of queries and keys for kernels without gaps between sequences: (2 B Hkv + 2,) int32.

    The rows before, between and after the segments become sequences of their own, without queries.
    """
    inner = torch.stack([starts, starts + lengths], dim=1).flatten()
    keys = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), rows)]).int()
    queries = torch.arange(len(starts) + 1, device=starts.device, dtype=torch.int32).repeat_interleave(2)
    return queries, keys


def varlen(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Computes `ragged_decode` with torch's varlen_attn: a KV head is a sequence of one query token with G heads."""
    function = _varlen()
    assert function is not None
    call, parameters = function
    count, dim = len(starts), query.shape[-1]
    options: dict[str, Any] = {"scale": scaling} if "scale" in parameters else {}
    if "enable_gqa" in parameters:
        rows, tokens = query.view(count, -1, dim), 1
        options["enable_gqa"] = rows.shape[1] > 1
    else:  # the heads of a group become tokens, which attend to the same keys
        rows, tokens = query.view(-1, 1, dim), query.numel() // max(count * dim, 1)
    if "scale" not in parameters:
        rows = rows * (scaling * dim**0.5)
    if "seqused_k" in parameters:
        queries = torch.arange(count + 1, dtype=torch.int32, device=query.device)
        ends = torch.cat([starts, starts.new_full((1,), len(keys))]).int()
        options["seqused_k"] = lengths.int()
    else:
        queries, ends = _between(starts, lengths, len(keys))
    out = call(rows, keys[:, None], values[:, None], queries * tokens, ends, tokens, len(keys), **options)
    return _zeros_if_empty(out, query, lengths)


def flash(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Computes `ragged_decode` with flash-attn."""
    call = _flash()
    assert call is not None
    queries, ends = _between(starts, lengths, len(keys))
    rows = query.view(len(starts), -1, query.shape[-1])
    out = call(rows, keys[:, None], values[:, None], queries, ends, 1, len(keys), softmax_scale=scaling)
    return _zeros_if_empty(out, query, lengths)


def _zeros_if_empty(out: torch.Tensor, query: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return (
        out.reshape(len(lengths), -1, query.shape[-1]).masked_fill((lengths == 0)[:, None, None], 0.0).view(query.shape)
    )


def usable(query: torch.Tensor, keys: torch.Tensor) -> list[str]:
    """Lists the installed kernels that support the tensors: 16 bits, head dimensions up to 256 in multiples of 8."""
    half = query.dtype in (torch.float16, torch.bfloat16) and keys.dtype == query.dtype  # not rows stored in 8 bits
    if not half or query.shape[-1] % 8 or query.shape[-1] > 256 or not query.numel() or not keys.shape[0]:
        return []
    return [name for name, load in (("varlen", _varlen), ("flash", _flash)) if load() is not None]
