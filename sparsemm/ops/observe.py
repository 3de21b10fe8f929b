"""Computes SnapKV's observation scores of a prompt's last rows without a matrix of all weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from sparsemm.errors import CacheError
from sparsemm.ops import library
from sparsemm.ops.checks import check_heads
from sparsemm.ops.library import DTYPES, aligned, call_cpu, call_cuda, checked, dense_rows, strides
from sparsemm.ops.register import dispatch, register

MOST_LOGITS = 1 << 24  # at most so many logits are in memory at once, for any number of rows, heads and positions


def observe(query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, pooling: int, scaling: float) -> torch.Tensor:
    """Rates each position by the attention of a prompt's last w rows (SnapKV, arXiv 2404.14469).

    A = softmax(q k^T * scaling), causal, in fp32; mean over the w rows; average pool of width `pooling` over the S - w
    positions before them, with zeros beyond the ends; mean over the query group.

    Args:
        query: (B, Hq, w, D) fp32, fp16, bf16 or fp64, the last w rows of the prompt.
        keys: (B, Hkv, S, D) of the same dtype, 1 <= w <= S unless both are 0.
        valid: (B, S) bool, false on padding.
        pooling: odd width of the pool.
        scaling: factor of the logits.

    Returns:
        (B, Hkv, S) fp32; -inf on padding and at the last w positions.

    Raises:
        CacheError: if dtypes, shapes or devices are wrong.
    """
    return _OP(query.detach(), keys.detach(), valid, pooling, scaling)


def reference(
    query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, pooling: int, scaling: float
) -> torch.Tensor:
    """Computes `observe` with the weights of as many KV heads at a time as `MOST_LOGITS` allows, but at least one."""
    batch, num_heads, window, dim = query.shape
    num_kv_heads, length = keys.shape[1:3]
    group = num_heads // max(num_kv_heads, 1)
    shape = (batch, num_kv_heads, length)
    result = torch.full(shape, float("-inf"), dtype=torch.float32, device=keys.device)
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


def check(query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, pooling: int, scaling: float) -> None:
    """Raises CacheError for wrong arguments."""
    op, shape = "observe", keys.shape
    check_heads(op, query, keys)
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


def c_arguments(
    query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, output: torch.Tensor, pooling: int, scaling: float
) -> tuple[Any, ...]:
    """Returns the first arguments of the C functions, which both libraries share."""
    batch, heads, length, dim = keys.shape
    sizes = batch, heads, query.shape[1] // heads, query.shape[2], length, dim
    code = DTYPES[query.dtype]
    output = checked("observe", "output", output, torch.float32, keys.shape[:3], keys.device)
    return code, query, keys, valid, output, *sizes, strides(query), strides(keys), pooling, scaling


def _compiled_on_cpu(
    query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, pooling: int, scaling: float
) -> torch.Tensor:
    query, keys, valid = dense_rows(query), dense_rows(keys), valid.contiguous()
    output = torch.empty(keys.shape[:3], dtype=torch.float32, device="cpu")
    call_cpu("observe", *c_arguments(query, keys, valid, output, pooling, scaling), torch.get_num_threads())
    return output


def _compiled_on_cuda(
    query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, pooling: int, scaling: float
) -> torch.Tensor:
    query, keys, valid = aligned(query), aligned(keys), valid.contiguous()
    batch, heads, length = keys.shape[:3]
    loaded = library.cuda_library()
    assert loaded is not None
    room = loaded.sparsemm_cuda_observe_room(batch, heads, query.shape[1] // heads, query.shape[2], length)
    partial = torch.empty(room, dtype=torch.float32, device=keys.device)
    output = torch.empty(keys.shape[:3], dtype=torch.float32, device=keys.device)
    call_cuda("observe", keys.device, *c_arguments(query, keys, valid, output, pooling, scaling), partial)
    return output


on_cpu = dispatch(check, reference, _compiled_on_cpu)
on_cuda = dispatch(check, reference, _compiled_on_cuda)
_OP = register(
    "observe(Tensor query, Tensor keys, Tensor valid, int pooling, float scaling) -> Tensor",
    on_cpu,
    on_cuda,
    check,
    lambda _, keys, *__: keys.new_empty(keys.shape[:3], dtype=torch.float32),
)
