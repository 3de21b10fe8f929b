"""vLLM's two functions for a cache on a CUDA device, in plain PyTorch: they check what those require.

Nothing in them waits for a device while every sequence has one token, as in a step that is captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Any

import torch

HALF = (torch.float16, torch.bfloat16)


def _check_pages(pages: torch.Tensor) -> None:
    """(blocks, block_size, Hkv, D), whose rows need not follow one another; FlashAttention 3 moves 16 bytes at once."""
    assert pages.dim() == 4 and pages.shape[1] % 16 == 0 and pages.shape[3] % 8 == 0 and pages.shape[3] <= 256
    assert pages.stride(3) == 1 and all(stride * pages.element_size() % 16 == 0 for stride in pages.stride()[:3])


def _check_integers(device: torch.device, *tensors: torch.Tensor) -> None:
    for tensor in tensors:
        assert tensor.dtype == torch.int32 and tensor.device == device and tensor.stride(-1) == 1


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    max_seqlen_q: int,
    cu_seqlens_q: torch.Tensor,
    max_seqlen_k: int,
    seqused_k: torch.Tensor,
    softmax_scale: float,
    causal: bool,
    block_table: torch.Tensor,
    out: torch.Tensor,
    fa_version: int,
    dtypes: tuple[torch.dtype, ...] = HALF,
) -> torch.Tensor:
    """Attention of queries (T, Hq, D) to paged keys and values (blocks, block_size, Hkv, D).

    As in vLLM, a sequence without rows gets zeros.
    """
    assert causal and fa_version in (2, 3, 4) and type(max_seqlen_q) is type(max_seqlen_k) is int
    _check_pages(k)
    _check_pages(v)
    assert q.dtype == k.dtype == v.dtype == out.dtype and q.dtype in dtypes and q.device == k.device == v.device
    assert q.dim() == 3 and q.is_contiguous() and out.shape == q.shape and q.shape[1] % k.shape[2] == 0
    sequences = len(seqused_k)
    assert cu_seqlens_q.shape == (sequences + 1,) and block_table.shape[0] == sequences and seqused_k.dim() == 1
    assert cu_seqlens_q.is_contiguous() and seqused_k.is_contiguous()
    assert 0 < max_seqlen_k <= block_table.shape[1] * k.shape[1]
    _check_integers(q.device, cu_seqlens_q, seqused_k, block_table)
    group = q.shape[1] // k.shape[2]
    key, value = (
        pages[block_table].flatten(1, 2).repeat_interleave(group, dim=2).double().transpose(1, 2) for pages in (k, v)
    )  # (sequences, Hq, rows, D)
    row = torch.arange(key.shape[2], device=q.device)

    def attend(query: torch.Tensor, which: slice, count: int) -> torch.Tensor:
        """(N, count, Hq, D) of N sequences with as many queries (N, count, Hq, D) each."""
        last = seqused_k[which, None] - count + torch.arange(count, device=q.device)  # (N, count)
        seen = (row <= last[..., None])[:, None]
        logits = query.transpose(1, 2).double() @ key[which].mT * softmax_scale
        weights = logits.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)
        return (weights @ torch.where(seen.any(2)[..., None], value[which], 0.0)).transpose(1, 2)

    if max_seqlen_q == 1:
        assert len(q) == sequences  # FlashAttention 2 then reads no starts
        return out.copy_(attend(q[:, None], slice(None), 1)[:, 0])
    starts, lengths = cu_seqlens_q.tolist(), seqused_k.tolist()
    assert starts[0] == 0 and starts[-1] == len(q) and max(lengths) <= max_seqlen_k
    for i, (start, stop) in enumerate(zip(starts, starts[1:], strict=False)):
        assert stop - start <= min(max_seqlen_q, lengths[i])
        out[start:stop] = attend(q[None, start:stop], slice(i, i + 1), stop - start)[0]
    return out


def reshape_and_cache_flash(
    key: torch.Tensor,
    value: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    slot_mapping: torch.Tensor,
    kv_cache_dtype: str,
    k_scale: torch.Tensor,
    v_scale: torch.Tensor,
) -> None:
    """Puts rows (N, Hkv, D) into slots (N,) of a cache (blocks, block_size, Hkv, D), except those with slot -1."""
    size = key_cache.shape[1]
    assert slot_mapping.dtype == torch.int64 and slot_mapping.shape == (len(key),) and slot_mapping.is_contiguous()
    assert kv_cache_dtype == "auto" and key_cache.stride() == value_cache.stride() and key_cache.stride(3) == 1
    for rows, cache, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
        assert rows.dtype == cache.dtype and rows.shape[1:] == cache.shape[2:] and scale.dtype == torch.float32
        assert rows.device == cache.device == scale.device == slot_mapping.device and rows[0].is_contiguous()
        at = slot_mapping.clamp(min=0)
        block, place = at // size, at % size
        cache[block, place] = torch.where((slot_mapping >= 0)[:, None, None], rows, cache[block, place])


def kernel_options(device: Any, dtypes: tuple[torch.dtype, ...] = HALF) -> dict[str, Any]:
    """Arguments of a FlashKernel with these functions."""
    from functools import partial

    attention = partial(flash_attn_varlen_func, dtypes=dtypes)
    return dict(version=2, attention=attention, store=reshape_and_cache_flash, device=device)
