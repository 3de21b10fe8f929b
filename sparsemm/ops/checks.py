"""Argument validation that several operations share; every error is a CacheError that names the operation.

Written out without loops where a decode step comes by: that is at every layer, with the caches full of weights.
"""

from __future__ import annotations

import torch

from sparsemm.errors import CacheError
from sparsemm.ops.library import FLOATS


def check_slab(op: str, keys: torch.Tensor, values: torch.Tensor, one: torch.Tensor, two: torch.Tensor) -> None:
    """Keys and values (rows, D) are one slab, and `one` and `two` (..., D) belong to it."""
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


def check_segments(op: str, keys: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> None:
    """Starts and lengths are (B * Hkv,) int64 on the device of the keys."""
    shape = starts.shape
    if starts.dtype != torch.int64 or lengths.dtype != torch.int64 or len(shape) != 1 or lengths.shape != shape:
        shapes = [(tuple(t.shape), t.dtype) for t in (starts, lengths)]
        raise CacheError(f"starts and lengths are {shapes}, not (B * Hkv,) int64", where=op)
    if not (starts.is_contiguous() and lengths.is_contiguous()):
        raise CacheError("starts or lengths are not contiguous", where=op)
    if starts.device != keys.device or lengths.device != keys.device:
        raise CacheError("starts or lengths are not on the device of the keys", where=op)


def check_heads(op: str, query: torch.Tensor, keys: torch.Tensor) -> None:
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


def check_bounds(op: str, names: str, one: torch.Tensor, two: torch.Tensor, count: int, device: torch.device) -> None:
    """Two vectors are (count,) int64 row numbers on a device."""
    if any(t.shape != (count,) or t.dtype != torch.int64 for t in (one, two)):
        shapes = [(tuple(t.shape), t.dtype) for t in (one, two)]
        raise CacheError(f"{names} are {shapes}, not ({count},) int64", where=op)
    if one.device != device or two.device != device:
        raise CacheError(f"{names} are not on the device of the keys", where=op)


def segment_ends(starts: torch.Tensor, rows: int) -> torch.Tensor:
    """(N,) int64 where each segment's room ends in a slab of `rows` rows: at the next one's start."""
    return torch.cat([starts[1:], starts.new_full((min(len(starts), 1),), rows)])


def first_true(bad: torch.Tensor) -> int | None:
    """Index of the first true entry (N,), or None; this waits for the device."""
    return int(bad.nonzero()[0]) if bool(bad.any()) else None
