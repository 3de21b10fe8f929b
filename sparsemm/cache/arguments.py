"""The C arguments that the CPU and the CUDA library take alike; each adds its own behind them.

Compiled code takes an address for what its operation says. So dtype, shape, strides and device of every tensor are
checked here, right before its address is read: also those of results and of scratch memory, which the callers allocate.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from sparsemm.cache import checks
from sparsemm.cache.library import DTYPES
from sparsemm.errors import CacheError


def address(
    op: str, name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> int:
    """Where a result or scratch tensor begins.

    Raises:
        CacheError: if it is not contiguous, of this dtype and shape, and on this device.
    """
    if tensor.dtype != dtype or tensor.shape != shape or tensor.device != device or not tensor.is_contiguous():
        what = f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, not {dtype} {shape} on {device}"
        raise CacheError(what, where=op, hint="it has to be contiguous, too")
    return tensor.data_ptr()


def strides(tensor: torch.Tensor) -> ctypes.Array[ctypes.c_int64]:
    """Strides in bytes of all dimensions but the last."""
    size = tensor.element_size()
    return (ctypes.c_int64 * (tensor.dim() - 1))(*(size * s for s in tensor.stride()[:-1]))


def dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if a row (..., D) is not in one piece."""
    return tensor.contiguous() if tensor.numel() and tensor.stride(-1) != 1 else tensor


def ragged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    output: torch.Tensor,
    scaling: float,
    device: str,
) -> tuple[Any, ...]:
    """Of `ops.ragged_decode`, which writes to `output` (B, Hq, D).

    Raises:
        CacheError: as `ops.ragged_decode`, or if the library for this kind of device does not serve these tensors.
    """
    op = "ragged_decode"
    checks.compiled(op, device, keys)
    checks.ragged_decode(query, keys, values, starts, lengths, scaling)
    stretches = starts.shape[0]
    return (
        DTYPES[query.dtype],
        query.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        starts.data_ptr(),
        lengths.data_ptr(),
        address(op, "output", output, query.dtype, query.shape, query.device),
        stretches,
        query.shape[0] * query.shape[1] // max(stretches, 1),
        query.shape[2],
        keys.shape[0],
        scaling,
    )


def append(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    device: str,
) -> tuple[Any, ...]:
    """Of `ops.append`; the new rows may have any shape of as many numbers in that order. Raises as `ragged_decode`."""
    checks.compiled("append", device, keys)
    checks.append_row(keys, values, new_keys, new_values, starts, lengths)
    return (
        keys.data_ptr(),
        values.data_ptr(),
        new_keys.data_ptr(),
        new_values.data_ptr(),
        starts.data_ptr(),
        lengths.data_ptr(),
        starts.shape[0],
        keys.shape[1] * keys.element_size(),
        keys.shape[0],
    )


def compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
    device: str,
) -> tuple[Any, ...]:
    """Of `ops.compact`. Raises as `ragged_decode`."""
    checks.compiled("compact", device, keys)
    checks.compact(keys, values, full_keys, full_values, keep, starts)
    return (
        keys.data_ptr(),
        values.data_ptr(),
        full_keys.data_ptr(),
        full_values.data_ptr(),
        keep.data_ptr(),
        starts.data_ptr(),
        *full_keys.shape[:3],
        keys.shape[1] * keys.element_size(),
        keys.shape[0],
        strides(full_keys),
        strides(full_values),
    )


def observe(
    query: torch.Tensor,
    keys: torch.Tensor,
    valid: torch.Tensor,
    output: torch.Tensor,
    pooling: int,
    scaling: float,
    device: str,
) -> tuple[Any, ...]:
    """Of `ops.observe`, which writes to `output` (B, Hkv, S). Raises as `ragged_decode`."""
    op = "observe"
    checks.compiled(op, device, keys)
    checks.observe(query, keys, valid, pooling, scaling)
    _dense(op, query, keys, valid)
    batch, heads, length, dim = keys.shape
    return (
        DTYPES[query.dtype],
        query.data_ptr(),
        keys.data_ptr(),
        valid.data_ptr(),
        address(op, "output", output, torch.float32, keys.shape[:3], keys.device),
        batch,
        heads,
        query.shape[1] // heads,
        query.shape[2],
        length,
        dim,
        strides(query),
        strides(keys),
        pooling,
        scaling,
    )


def argmax_rows(
    query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor, output: torch.Tensor, device: str
) -> tuple[Any, ...]:
    """Of `ops.argmax_rows`, which writes to `output` (Hq, T). Raises as `ragged_decode`."""
    op = "argmax_rows"
    checks.compiled(op, device, keys)
    checks.argmax_rows(query, keys, begins, ends)
    _dense(op, query, keys, begins, ends)
    heads, length, dim = keys.shape
    return (
        DTYPES[query.dtype],
        query.data_ptr(),
        keys.data_ptr(),
        begins.data_ptr(),
        ends.data_ptr(),
        address(op, "output", output, torch.int64, query.shape[:2], keys.device),
        heads,
        query.shape[0] // heads,
        query.shape[1],
        length,
        dim,
        strides(query),
        strides(keys),
    )


def causal_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    firsts: torch.Tensor,
    stops: torch.Tensor,
    output: torch.Tensor,
    scaling: float,
    device: str,
) -> tuple[Any, ...]:
    """Of `ops.causal_attention`, which writes to `output` (B, S, Hq, D). Raises as `ragged_decode`."""
    op = "causal_attention"
    checks.compiled(op, device, keys)
    checks.causal_attention(query, keys, values, firsts, stops, scaling)
    _dense(op, query, keys, values, firsts, stops)
    batch, heads, length, dim = query.shape
    return (
        DTYPES[query.dtype],
        query.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        address(op, "output", output, query.dtype, (batch, length, heads, dim), query.device),
        firsts.data_ptr(),
        stops.data_ptr(),
        batch,
        keys.shape[1],
        heads // keys.shape[1],
        length,
        dim,
        strides(query),
        strides(keys),
        strides(values),
        scaling,
    )


def _dense(op: str, *tensors: torch.Tensor) -> None:
    """Queries, keys and values (dimension 3 and up) have rows in one piece; vectors and masks are contiguous."""
    for t in tensors:
        if t.numel() and not (t.stride(-1) == 1 if t.dim() > 2 else t.is_contiguous()):
            raise CacheError(f"a tensor of shape {tuple(t.shape)} has strides {t.stride()}", where=op)
