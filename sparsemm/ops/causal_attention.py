"""Computes causal attention of whole prompts, padded to one length, without a mask."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch.nn import functional as F

from sparsemm.errors import CacheError
from sparsemm.ops.checks import check_bounds, check_heads, first_true
from sparsemm.ops.library import DONE, DTYPES, call_cpu, checked, dense_rows, library, strides, wants_gradient
from sparsemm.ops.register import dispatch, register


def causal_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    firsts: torch.Tensor,
    stops: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Computes the causal softmax(q k^T * scaling) v of whole prompts, padded to one length, without a mask.

    Args:
        query: (B, Hq, S, D) fp32, fp16, bf16 or fp64; query head h reads KV head h // (Hq / Hkv).
        keys, values: (B, Hkv, S, D) of the same dtype.
        firsts, stops: (B,) int64; the tokens of sample b are positions firsts[b] ... stops[b] - 1, the rest is padding.
        scaling: factor of the logits.

    Returns:
        (B, S, Hq, D); accumulated in fp32 or better; zeros on padding.

    Raises:
        CacheError: if dtypes, shapes or devices are wrong, or (on the CPU) a sample exceeds the sequence.
    """
    if wants_gradient(query, keys, values):
        check(query, keys, values, firsts, stops, scaling)
        return reference(query, keys, values, firsts, stops, scaling)
    return _OP(query, keys, values, firsts, stops, scaling)


def reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    firsts: torch.Tensor,
    stops: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Computes `causal_attention` with torch's sdpa; on a CUDA device this waits for the bounds."""
    return attend_spans(query, keys, values, list(zip(firsts.tolist(), stops.tolist(), strict=True)), scaling)


def attend_spans(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, spans: Sequence[tuple[int, int]], scaling: float
) -> torch.Tensor:
    """Computes `causal_attention` for (first, stop) on the host; neighbouring samples of equal span share a call."""
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


def check(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    firsts: torch.Tensor,
    stops: torch.Tensor,
    scaling: float,
) -> None:
    """Raises CacheError for wrong arguments."""
    op = "causal_attention"
    check_heads(op, query, keys)
    if values.shape != keys.shape or values.dtype != keys.dtype or values.device != keys.device:
        what = f"values {tuple(values.shape)} of {values.dtype} do not belong to keys {tuple(keys.shape)}"
        raise CacheError(what, where=op)
    if query.dim() != 4 or keys.dim() != 4 or query.shape[::2] != keys.shape[::2]:
        what = f"query {tuple(query.shape)} and keys {tuple(keys.shape)} are not (B, Hq, S, D) and (B, Hkv, S, D)"
        raise CacheError(what, where=op)
    check_bounds(op, "firsts and stops", firsts, stops, query.shape[0], keys.device)


def _refuse(sample: int, length: int) -> None:
    what = f"its tokens are not a range of {length} positions"
    raise CacheError(what, where=f"causal_attention, sample {sample}")


def c_arguments(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    firsts: torch.Tensor,
    stops: torch.Tensor,
    output: torch.Tensor,
    scaling: float,
) -> tuple[Any, ...]:
    """Returns the first arguments of the C function."""
    batch, heads, length, dim = query.shape
    output = checked("causal_attention", "output", output, query.dtype, (batch, length, heads, dim), query.device)
    sizes = batch, keys.shape[1], heads // keys.shape[1], length, dim
    steps = strides(query), strides(keys), strides(values)
    return DTYPES[query.dtype], query, keys, values, output, firsts, stops, *sizes, *steps, scaling


def _compiled_on_cpu(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    firsts: torch.Tensor,
    stops: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    query, keys, values = dense_rows(query), dense_rows(keys), dense_rows(values)
    output = torch.zeros(query.transpose(1, 2).shape, dtype=query.dtype, device=query.device)
    arguments = c_arguments(query, keys, values, firsts.contiguous(), stops.contiguous(), output, scaling)
    threads = max(1, min(torch.get_num_threads(), keys.shape[0] * keys.shape[1]))
    loaded = library()
    assert loaded is not None
    length, dim = query.shape[2:]
    size = threads * loaded.sparsemm_causal_attention_room(length, dim)
    room = torch.empty(size, dtype=torch.float32, device="cpu")
    room = checked("causal_attention", "room", room, torch.float32, (size,), query.device)
    code = call_cpu("causal_attention", *arguments, room, threads)
    if code != DONE:
        _refuse(code, length)
    return output


def _inspect(query: torch.Tensor, *arguments: Any) -> None:
    (firsts, stops), length = arguments[2:4], query.shape[2]
    outside = first_true((firsts < 0) | (firsts > stops) | (stops > length))
    if outside is not None:
        _refuse(outside, length)


on_cpu = dispatch(check, reference, _compiled_on_cpu, served=3, inspect=_inspect)
on_cuda = dispatch(check, reference)  # torch's own kernels
_OP = register(
    "causal_attention(Tensor query, Tensor keys, Tensor values, Tensor firsts, Tensor stops, float scaling) -> Tensor",
    on_cpu,
    on_cuda,
    check,
    lambda query, *_: query.new_empty([query.shape[i] for i in (0, 2, 1, 3)]),
)
