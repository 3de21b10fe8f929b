"""Finds the key with the largest logit for each query row, which the chase needs of every head."""

from __future__ import annotations

from typing import Any

import torch

from sparsemm.errors import CacheError
from sparsemm.ops.checks import check_bounds, check_heads, first_true
from sparsemm.ops.library import DONE, DTYPES, aligned, call_cpu, call_cuda, checked, dense_rows, strides
from sparsemm.ops.register import dispatch, register

MOST_LOGITS = 1 << 24  # at most so many logits are in memory at once


def argmax_rows(query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Returns the position of the key with the largest q.k for each row, among the keys of the row's range.

    Products and sums are in fp64, which hardly rounds those of narrower numbers: the position does not depend on the
    device, the number of threads or the order of a sum. Among equal keys the first one wins; a NaN is the largest.

    Args:
        query: (Hq, T, D) fp32, fp16, bf16 or fp64; query head h reads KV head h // (Hq / Hkv).
        keys: (Hkv, S, D) of the same dtype.
        begins, ends: (T,) int64; row t attends to keys begins[t] ... ends[t] - 1.

    Returns:
        (Hq, T) int64; 0 for a row without keys.

    Raises:
        CacheError: if dtypes, shapes or devices are wrong, or (on the CPU) a range exceeds the keys.
    """
    return _OP(query.detach(), keys.detach(), begins, ends)


def reference(query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """Computes `argmax_rows` with at most `MOST_LOGITS` logits (but at least one row) at a time."""
    num_heads, rows, dim = query.shape
    num_kv_heads, length = keys.shape[:2]
    positions = torch.zeros((num_heads, rows), dtype=torch.int64, device=query.device)
    if 0 in (num_heads, rows, length):
        return positions
    wide = torch.float32 if query.device.type == "mps" else torch.float64  # Apple's GPUs know no doubles
    columns = torch.arange(length, dtype=torch.int64, device=query.device)
    transposed = keys.to(wide).transpose(1, 2)
    step = max(1, MOST_LOGITS // (num_heads * length))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        q = query[:, part].to(wide).reshape(num_kv_heads, -1, dim)  # the query group becomes rows of its KV head
        logits = torch.matmul(q, transposed).view(num_heads, -1, length)
        seen = (columns >= begins[part, None]) & (columns < ends[part, None])
        positions[:, part] = logits.masked_fill(~seen, float("-inf")).argmax(dim=-1)
    return positions


def check(query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> None:
    """Raises CacheError for wrong arguments."""
    op = "argmax_rows"
    check_heads(op, query, keys)
    if query.dim() != 3 or keys.dim() != 3:
        what = f"query {tuple(query.shape)} and keys {tuple(keys.shape)} are not (Hq, T, D) and (Hkv, S, D)"
        raise CacheError(what, where=op)
    check_bounds(op, "begins and ends", begins, ends, query.shape[1], keys.device)


def _refuse(row: int, length: int) -> None:
    raise CacheError(f"its range exceeds {length} keys", where=f"argmax_rows, row {row}")


def c_arguments(
    query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor, output: torch.Tensor
) -> tuple[Any, ...]:
    """Returns the first arguments of the C functions, which both libraries share."""
    heads, length, dim = keys.shape
    sizes = heads, query.shape[0] // heads, query.shape[1], length, dim
    output = checked("argmax_rows", "output", output, torch.int64, query.shape[:2], query.device)
    return DTYPES[query.dtype], query, keys, begins, ends, output, *sizes, strides(query), strides(keys)


def _compiled_on_cpu(query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    query, keys, begins, ends = dense_rows(query), dense_rows(keys), begins.contiguous(), ends.contiguous()
    output = torch.empty(query.shape[:2], dtype=torch.int64, device="cpu")
    code = call_cpu("argmax_rows", *c_arguments(query, keys, begins, ends, output), torch.get_num_threads())
    if code != DONE:
        _refuse(code, keys.shape[1])
    return output


def _compiled_on_cuda(
    query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    query, keys, begins, ends = aligned(query), aligned(keys), begins.contiguous(), ends.contiguous()
    output = torch.empty(query.shape[:2], dtype=torch.int64, device=keys.device)
    call_cuda("argmax_rows", keys.device, *c_arguments(query, keys, begins, ends, output))
    return output


def _inspect(_: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> None:
    outside = first_true((begins < 0) | (ends > keys.shape[1]))
    if outside is not None:
        _refuse(outside, keys.shape[1])


on_cpu = dispatch(check, reference, _compiled_on_cpu, inspect=_inspect)
on_cuda = dispatch(check, reference, _compiled_on_cuda)
_OP = register(
    "argmax_rows(Tensor query, Tensor keys, Tensor begins, Tensor ends) -> Tensor",
    on_cpu,
    on_cuda,
    check,
    lambda query, *_: query.new_empty(query.shape[:2], dtype=torch.int64),
)
