"""Appends one new row of keys and values to every segment of a slab, in place."""

from __future__ import annotations

from typing import Any, NoReturn

import torch

from sparsemm.errors import CacheError
from sparsemm.ops.checks import check_segments, check_slab, first_true, segment_ends
from sparsemm.ops.library import DONE, call_cpu, call_cuda, serves, wants_gradient
from sparsemm.ops.register import dispatch, register


def append(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """Appends one new row of K and V to every segment, in place; the caller adds 1 to its lengths.

    Args:
        keys, values: (rows, D) fp32, fp16, bf16 or fp64, contiguous; changed.
        new_keys, new_values: (B * Hkv, D), contiguous, of the same dtype.
        starts, lengths: (B * Hkv,) int64, contiguous; starts ascend, and a segment may grow up to the next one.

    Raises:
        CacheError: if dtypes, shapes, strides or devices are wrong, or (on the CPU) a segment has no room; then
            nothing was written.
    """
    if wants_gradient(new_keys, new_values):
        check(keys, values, new_keys, new_values, starts, lengths)
        return reference(keys, values, new_keys, new_values, starts, lengths)
    return _OP(keys, values, new_keys, new_values, starts, lengths)


def append_row(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """Calls `append` with fewer checks, for a slab that is valid: it runs at every step of every layer.

    Args:
        new_keys, new_values: (B, Hkv, 1, D), or any shape with as many numbers in that order.

    Raises:
        CacheError: for the reasons of `append`.
    """
    numbers = lengths.shape[0] * keys.shape[1]
    if (
        keys.is_cpu
        and new_keys.is_cpu
        and new_values.is_cpu
        and keys.dtype == new_keys.dtype == new_values.dtype
        and numbers == new_keys.numel() == new_values.numel()
        and not torch.compiler.is_compiling()
        and serves(keys, new_keys, new_values)
    ):
        return _compiled_on_cpu(keys, values, new_keys.contiguous(), new_values.contiguous(), starts, lengths)
    rows = [new.reshape(-1, keys.shape[1]).contiguous() for new in (new_keys, new_values)]
    return append(keys, values, rows[0], rows[1], starts, lengths)


def reference(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """Computes `append` by indexing."""
    keys[starts + lengths] = new_keys
    values[starts + lengths] = new_values


def check(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """Raises CacheError for wrong arguments."""
    check_slab("append", keys, values, new_keys, new_values)
    check_segments("append", keys, starts, lengths)
    expected, shapes = (len(starts), keys.shape[1]), (new_keys.shape, new_values.shape)
    if shapes != (expected, expected) or not (new_keys.is_contiguous() and new_values.is_contiguous()):
        raise CacheError(f"new rows {[tuple(s) for s in shapes]} are not {expected} and contiguous", where="append")


def refuse(segment: int, rows: int) -> NoReturn:
    """Raises CacheError for a segment without room, in a slab of `rows` rows."""
    what = f"it has no room for another row before the next segment, in a slab of {rows} rows"
    raise CacheError(what, where=f"append, segment {segment}")


def c_arguments(keys: torch.Tensor, *tensors: torch.Tensor) -> tuple[Any, ...]:
    """Returns the first arguments of the C functions, which both libraries share."""
    segments = tensors[-1].shape[0]
    return keys, *tensors, segments, keys.shape[1] * keys.element_size(), keys.shape[0]


def _compiled_on_cpu(keys: torch.Tensor, *tensors: torch.Tensor) -> None:
    code = call_cpu("append", *c_arguments(keys, *tensors))
    if code != DONE:
        refuse(code, keys.shape[0])


def _compiled_on_cuda(keys: torch.Tensor, *tensors: torch.Tensor) -> None:
    call_cuda("append", keys.device, *c_arguments(keys, *tensors))


def _inspect(keys: torch.Tensor, *tensors: torch.Tensor) -> None:
    (starts, lengths), rows = tensors[-2:], keys.shape[0]
    ends = segment_ends(starts, rows)
    full = first_true((starts < 0) | (lengths < 0) | (ends > rows) | (lengths >= ends - starts))
    if full is not None:
        refuse(full, rows)


on_cpu = dispatch(check, reference, _compiled_on_cpu, inspect=_inspect)
on_cuda = dispatch(check, reference, _compiled_on_cuda)
_OP = register(
    "append(Tensor(a!) keys, Tensor(b!) values, Tensor new_keys, Tensor new_values, Tensor starts, Tensor lengths)"
    " -> ()",
    on_cpu,
    on_cuda,
    check,
    lambda *_: None,
)
