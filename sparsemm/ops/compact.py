"""Copies the selected positions of a layer's full keys and values into a slab."""

from __future__ import annotations

from typing import Any

import torch

from sparsemm.errors import CacheError
from sparsemm.ops.checks import check_segments, check_slab, first_true, segment_ends
from sparsemm.ops.library import DONE, call_cpu, call_cuda, strides, wants_gradient
from sparsemm.ops.register import dispatch, register


def compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    """Copies the selected positions of full K and V to the slab, in order and in place.

    Args:
        keys, values: (rows, D) fp32, fp16, bf16 or fp64, contiguous; changed.
        full_keys, full_values: (B, Hkv, S, D) of the same dtype; any strides whose last is 1.
        keep: (B, Hkv, S) bool, contiguous.
        starts: (B * Hkv,) int64, contiguous and ascending; a segment ends where the next one starts.

    Raises:
        CacheError: if dtypes, shapes, strides or devices are wrong, or (on the CPU) a segment has too little room; then
            nothing was written.
    """
    if wants_gradient(full_keys, full_values):
        check(keys, values, full_keys, full_values, keep, starts)
        return reference(keys, values, full_keys, full_values, keep, starts)
    return _OP(keys, values, full_keys, full_values, keep, starts)


def reference(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    """Computes `compact` by indexing."""
    flat = keep.flatten(0, 1)
    segment, position = flat.nonzero(as_tuple=True)
    rows = starts[segment] + (flat.cumsum(dim=-1) - 1)[segment, position]
    keys[rows] = full_keys[keep]
    values[rows] = full_values[keep]


def check(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    """Raises CacheError for wrong arguments."""
    op = "compact"
    check_slab(op, keys, values, full_keys, full_values)
    check_segments(op, keys, starts, starts)
    shape = tuple(full_keys.shape)
    if full_keys.dim() != 4 or full_values.shape != full_keys.shape or keep.shape != full_keys.shape[:-1]:
        what = f"full keys {shape}, values {tuple(full_values.shape)} and keep {tuple(keep.shape)} do not fit"
        raise CacheError(what, where=op)
    if len(starts) != shape[0] * shape[1]:
        raise CacheError(f"{len(starts)} segments for {shape[0]} rows of {shape[1]} KV heads", where=op)
    if keep.dtype != torch.bool or not keep.is_contiguous() or keep.device != keys.device:
        raise CacheError("keep is not bool and contiguous on the device of the keys", where=op)
    if any(t.numel() and t.stride(-1) != 1 for t in (full_keys, full_values)):
        raise CacheError("the last dimension of the full keys and values is not contiguous", where=op)


def _refuse(segment: int, rows: int) -> None:
    what = f"its selected rows do not fit before the next segment, in a slab of {rows} rows"
    raise CacheError(what, where=f"compact, segment {segment}")


def c_arguments(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> tuple[Any, ...]:
    """Returns the first arguments of the C functions, which both libraries share."""
    sizes = *full_keys.shape[:3], keys.shape[1] * keys.element_size(), keys.shape[0]
    return keys, values, full_keys, full_values, keep, starts, *sizes, strides(full_keys), strides(full_values)


def _compiled_on_cpu(keys: torch.Tensor, *tensors: torch.Tensor) -> None:
    code = call_cpu("compact", *c_arguments(keys, *tensors), torch.get_num_threads())
    if code != DONE:
        _refuse(code, keys.shape[0])


def _compiled_on_cuda(keys: torch.Tensor, *tensors: torch.Tensor) -> None:
    call_cuda("compact", keys.device, *c_arguments(keys, *tensors))


def _inspect(keys: torch.Tensor, *tensors: torch.Tensor) -> None:
    (keep, starts), rows = tensors[-2:], keys.shape[0]
    ends, kept = segment_ends(starts, rows), keep.flatten(0, 1).sum(-1)
    full = first_true((starts < 0) | (ends > rows) | (starts > ends) | (kept > ends - starts))
    if full is not None:
        _refuse(full, rows)


on_cpu = dispatch(check, reference, _compiled_on_cpu, inspect=_inspect)
on_cuda = dispatch(check, reference, _compiled_on_cuda)
_OP = register(
    "compact(Tensor(a!) keys, Tensor(b!) values, Tensor full_keys, Tensor full_values, Tensor keep, Tensor starts)"
    " -> ()",
    on_cpu,
    on_cuda,
    check,
    lambda *_: None,
)
