"""Who computes a decode step: this package's kernel, on a CUDA device torch's or flash-attn's, or plain PyTorch."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from sparsemm.cache import cpu, cuda, fastest, ranges, twins
from sparsemm.cache.library import serves
from sparsemm.errors import CacheError

Decode = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


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
    """Cumulative numbers of queries and keys for kernels that know no gaps: (2 B Hkv + 2,) int32 each.

    What lies before, between and behind the stretches are sequences of their own, to which no query belongs.
    """
    inner = torch.stack([starts, starts + lengths], dim=1).flatten()
    keys = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), rows)]).int()
    queries = torch.arange(len(starts) + 1, dtype=torch.int32, device=starts.device).repeat_interleave(2)
    return queries, keys


def varlen(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """`ops.ragged_decode` by torch's varlen_attn: every KV head is a sequence of one query token with G heads."""
    found = _varlen()
    assert found is not None
    call, parameters = found
    count, dim = len(starts), query.shape[-1]
    options: dict[str, Any] = {"scale": scaling} if "scale" in parameters else {}
    if "enable_gqa" in parameters:
        rows, each = query.view(count, -1, dim), 1
        options["enable_gqa"] = rows.shape[1] > 1
    else:  # the heads of a group become tokens, which see the same keys
        rows, each = query.view(-1, 1, dim), query.numel() // max(count * dim, 1)
    if "scale" not in parameters:
        rows = rows * (scaling * dim**0.5)
    if "seqused_k" in parameters:
        queries = torch.arange(0, count + 1, dtype=torch.int32, device=query.device)
        ends = torch.cat([starts, starts.new_full((1,), len(keys))]).int()
        options["seqused_k"] = lengths.int()
    else:
        queries, ends = _between(starts, lengths, len(keys))
    out = call(rows, keys[:, None], values[:, None], queries * each, ends, each, len(keys), **options)
    return _without_empty(out, query, lengths)


def flash(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """`ops.ragged_decode` by flash-attn."""
    call = _flash()
    assert call is not None
    queries, ends = _between(starts, lengths, len(keys))
    rows = query.view(len(starts), -1, query.shape[-1])
    out = call(rows, keys[:, None], values[:, None], queries, ends, 1, len(keys), softmax_scale=scaling)
    return _without_empty(out, query, lengths)


def _without_empty(out: torch.Tensor, query: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    return (
        out.reshape(len(lengths), -1, query.shape[-1]).masked_fill((lengths == 0)[:, None, None], 0.0).view(query.shape)
    )


def _twin_on_cpu(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """The twin, after a look for stretches outside the slab; on a CUDA device that would wait for the device."""
    ranges.ragged_decode(query, keys, values, starts, lengths, scaling)
    return twins.ragged_decode(query, keys, values, starts, lengths, scaling)


BACKENDS: dict[str, dict[str, Decode]] = {
    "cpu": {"ours": cpu.ragged_decode, "twin": _twin_on_cpu},
    "cuda": {"ours": cuda.ragged_decode, "varlen": varlen, "flash": flash, "twin": twins.ragged_decode},
}


def usable(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> list[str]:
    """The backends that can serve such tensors on their device, in order of preference.

    Ours first: it alone reads the keys of a query group once, splits long heads whatever the lengths are, and is
    captured in a CUDA graph with its lengths on the device.
    """
    found = ["ours"] if serves(query, keys, values) else []
    if query.is_cpu:
        return [*found, "twin"]
    gradients = torch.is_grad_enabled() and (query.requires_grad or keys.requires_grad or values.requires_grad)
    half = query.dtype in (torch.float16, torch.bfloat16) and keys.dtype == query.dtype  # not rows stored in 8 bits
    half = half and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    if half and query.numel() and keys.shape[0] and not gradients:
        found += ["varlen"] if _varlen() is not None else []
        found += ["flash"] if _flash() is not None else []
    return [*found, "twin"]


def decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """`ops.ragged_decode` by the usable backend that $SPARSEMM_DECODE names, or that was measured to be the fastest.

    Without either (see `sparsemm.cache.fastest`) it is the first usable one.

    Raises:
        CacheError: if the named one cannot serve.
    """
    wanted = os.environ.get("SPARSEMM_DECODE")
    chosen = wanted or _fastest(query, keys, len(starts)) or "ours"
    if chosen != "ours" or not serves(query, keys, values):  # else the others need not be looked at, which takes time
        names = usable(query, keys, values)
        if wanted and wanted not in names:
            raise CacheError(f"SPARSEMM_DECODE={wanted} cannot serve here", hint=f"one of {', '.join(names)} can")
        chosen = chosen if chosen in names else names[0]
    return BACKENDS[query.device.type][chosen](query, keys, values, starts, lengths, scaling)


def _fastest(query: torch.Tensor, keys: torch.Tensor, stretches: int) -> str | None:
    group = query.shape[0] * query.shape[1] // max(stretches, 1)
    rows = keys.shape[0] // max(stretches, 1)
    return fastest.backend(query.device, query.dtype, query.shape[-1], group, stretches, rows)
