"""Argument validation shared by all backends; the check of an operation takes the operation's arguments.

Every operation checks its arguments before a backend is chosen, and `sparsemm.cache.arguments` checks them again where
their addresses are handed to compiled code: with a wrong dtype, shape or device it would write outside of a tensor.
"""

from __future__ import annotations

import torch

from sparsemm.cache.library import DTYPES, FLOATS, HEAD_DIMS
from sparsemm.errors import CacheError

# Written out without loops: they run at every step of every layer, with the processor's caches full of weights.


def _slab(op: str, keys: torch.Tensor, values: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> None:
    shape, dtype, device = keys.shape, keys.dtype, keys.device
    if len(shape) != 2 or values.shape != shape:
        raise CacheError(f"keys {tuple(shape)} and values {tuple(values.shape)} are not (rows, D) both", where=op)
    if dtype not in FLOATS or values.dtype != dtype or one.dtype != dtype or two.dtype != dtype:
        dtypes = sorted({str(t.dtype) for t in (keys, values, one, two)})
        raise CacheError(f"dtypes {dtypes} are not one of fp32, fp16, bf16 and fp64", where=op)
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise CacheError("keys and values are not contiguous", where=op)
    if values.device != device or one.device != device or two.device != device:
        raise CacheError("tensors lie on different devices", where=op)
    if one.shape[-1:] != shape[1:] or two.shape[-1:] != shape[1:]:
        shapes = [tuple(t.shape) for t in (one, two)]
        raise CacheError(f"shapes {shapes} do not end with head dimension {shape[1]}", where=op)


def _stretches(op: str, keys: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> None:
    shape = starts.shape
    if starts.dtype != torch.int64 or lengths.dtype != torch.int64 or len(shape) != 1 or lengths.shape != shape:
        shapes = [(tuple(t.shape), t.dtype) for t in (starts, lengths)]
        raise CacheError(f"starts and lengths are {shapes}, not (B * Hkv,) int64", where=op)
    if not (starts.is_contiguous() and lengths.is_contiguous()):
        raise CacheError("starts or lengths are not contiguous", where=op)
    if starts.device != keys.device or lengths.device != keys.device:
        raise CacheError("starts or lengths are not on the device of the keys", where=op)


def ragged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> None:
    """Raise CacheError where `ops.ragged_decode` cannot serve."""
    op = "ragged_decode"
    _slab(op, keys, values, query, query)
    _stretches(op, keys, starts, lengths)
    if query.dim() != 3 or not query.is_contiguous():
        raise CacheError(f"query {tuple(query.shape)} is not (B, Hq, D) and contiguous", where=op)
    batch, heads = query.shape[:2]
    stretches = len(starts)
    if (batch * heads == 0) != (stretches == 0) or (stretches and (stretches % batch or batch * heads % stretches)):
        what = f"{stretches} stretches do not serve a query of {batch} rows and {heads} heads"
        raise CacheError(what, where=op, hint="there is one for each batch row and KV head")


def append(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """Raise CacheError where `ops.append` cannot serve."""
    append_row(keys, values, new_keys, new_values, starts, lengths)
    if new_keys.dim() != 2 or new_values.dim() != 2:
        shapes, want = [tuple(t.shape) for t in (new_keys, new_values)], (len(starts), keys.shape[1])
        raise CacheError(f"new rows {shapes} are not {want} and contiguous", where="append")


def append_row(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """As `append`, for new rows of any shape that ends with D and has as many numbers."""
    op = "append"
    _slab(op, keys, values, new_keys, new_values)
    _stretches(op, keys, starts, lengths)
    want = starts.shape[0] * keys.shape[1]
    sizes = new_keys.numel(), new_values.numel()
    if sizes != (want, want) or not (new_keys.is_contiguous() and new_values.is_contiguous()):
        shapes, fits = [tuple(t.shape) for t in (new_keys, new_values)], (len(starts), keys.shape[1])
        raise CacheError(f"new rows {shapes} are not {fits} and contiguous", where=op)


def compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    """Raise CacheError where `ops.compact` cannot serve."""
    op = "compact"
    _slab(op, keys, values, full_keys, full_values)
    _stretches(op, keys, starts, starts)
    shape = tuple(full_keys.shape)
    if full_keys.dim() != 4 or full_values.shape != full_keys.shape or keep.shape != full_keys.shape[:-1]:
        what = f"full keys {shape}, values {tuple(full_values.shape)} and keep {tuple(keep.shape)} do not fit"
        raise CacheError(what, where=op)
    if len(starts) != shape[0] * shape[1]:
        raise CacheError(f"{len(starts)} stretches for {shape[0]} rows of {shape[1]} KV heads", where=op)
    if keep.dtype != torch.bool or not keep.is_contiguous() or keep.device != keys.device:
        raise CacheError("keep is not bool and contiguous on the device of the keys", where=op)
    if any(t.numel() and t.stride(-1) != 1 for t in (full_keys, full_values)):
        raise CacheError("the last dimension of the full keys and values is not contiguous", where=op)


def compiled(op: str, device: str, *tensors: torch.Tensor) -> None:
    """Raise CacheError where no library for this kind of device serves such keys, values and queries (..., D)."""
    for t in tensors:
        if t.dtype not in DTYPES or t.shape[-1] not in HEAD_DIMS or t.device.type != device:
            what = f"{t.dtype} {tuple(t.shape)} on {t.device} is not for compiled code of {device}"
            raise CacheError(what, where=op, hint="sparsemm.cache.ops chooses who computes")


def observe(query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, pooling: int, scaling: float) -> None:
    """Raise CacheError where `ops.observe` cannot serve."""
    op, shape = "observe", keys.shape
    _heads(op, query, keys)
    if (
        query.dim() != 4
        or keys.dim() != 4
        or query.shape[0] != shape[0]
        or not min(1, shape[2]) <= query.shape[2] <= shape[2]
    ):
        what = f"query {tuple(query.shape)} is not the last rows of keys {tuple(shape)}"
        raise CacheError(what, where=op, hint="(B, Hq, w, D) and (B, Hkv, S, D), 1 <= w <= S")
    if valid.shape != (shape[0], shape[2]) or valid.dtype != torch.bool or valid.device != keys.device:
        what = f"valid is {valid.dtype} {tuple(valid.shape)}, not bool (B, S) on the device of the keys"
        raise CacheError(what, where=op)
    if pooling < 1 or pooling % 2 == 0:
        raise CacheError(f"pooling is {pooling}", where=op, hint="use an odd number")


def argmax_rows(query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> None:
    """Raise CacheError where `ops.argmax_rows` cannot serve."""
    op = "argmax_rows"
    _heads(op, query, keys)
    if query.dim() != 3 or keys.dim() != 3:
        what = f"query {tuple(query.shape)} and keys {tuple(keys.shape)} are not (Hq, T, D) and (Hkv, S, D)"
        raise CacheError(what, where=op)
    _bounds(op, "begins and ends", begins, ends, query.shape[1], keys.device)


def causal_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    firsts: torch.Tensor,
    stops: torch.Tensor,
    scaling: float,
) -> None:
    """Raise CacheError where `ops.causal_attention` cannot serve."""
    op = "causal_attention"
    _heads(op, query, keys)
    if values.shape != keys.shape or values.dtype != keys.dtype or values.device != keys.device:
        what = f"values {tuple(values.shape)} of {values.dtype} do not belong to keys {tuple(keys.shape)}"
        raise CacheError(what, where=op)
    if query.dim() != 4 or keys.dim() != 4 or query.shape[::2] != keys.shape[::2]:
        what = f"query {tuple(query.shape)} and keys {tuple(keys.shape)} are not (B, Hq, S, D) and (B, Hkv, S, D)"
        raise CacheError(what, where=op)
    _bounds(op, "firsts and stops", firsts, stops, query.shape[0], keys.device)


def _heads(op: str, query: torch.Tensor, keys: torch.Tensor) -> None:
    """Query and keys (..., heads, rows, D) belong together."""
    if keys.dtype not in FLOATS or query.dtype != keys.dtype:
        dtypes = sorted({str(query.dtype), str(keys.dtype)})
        raise CacheError(f"dtypes {dtypes} are not one of fp32, fp16, bf16 and fp64", where=op)
    if query.device != keys.device:
        raise CacheError("tensors lie on different devices", where=op)
    shapes = [tuple(t.shape) for t in (query, keys)]
    if query.dim() < 3 or keys.dim() < 3 or query.shape[-1] != keys.shape[-1]:
        raise CacheError(f"shapes {shapes} do not end with (heads, rows, D)", where=op)
    if keys.shape[-3] == 0 or query.shape[-3] % keys.shape[-3]:
        raise CacheError(f"{query.shape[-3]} query heads for {keys.shape[-3]} KV heads", where=op)


def _bounds(op: str, names: str, one: torch.Tensor, two: torch.Tensor, count: int, device: torch.device) -> None:
    """Two vectors of row numbers."""
    if any(t.shape != (count,) or t.dtype != torch.int64 for t in (one, two)):
        shapes = [(tuple(t.shape), t.dtype) for t in (one, two)]
        raise CacheError(f"{names} are {shapes}, not ({count},) int64", where=op)
    if one.device != device or two.device != device:
        raise CacheError(f"{names} are not on the device of the keys", where=op)
