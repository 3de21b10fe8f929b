"""torch's flash attention over packed sequences, which exists for devices only: its rules, computed plainly."""

from __future__ import annotations

from typing import Any

import torch


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cum_seq_q: torch.Tensor | None,
    cum_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    seqused_k: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, ...]:
    """aten::_flash_attention_forward of sequences (tokens, heads, D), without a mask, dropout or gradients."""
    assert cum_seq_q is not None and cum_seq_k is not None and not (is_causal or dropout_p or return_debug_mask)
    for cumulative in (cum_seq_q, cum_seq_k, *(() if seqused_k is None else (seqused_k,))):
        assert cumulative.dtype == torch.int32 and cumulative.is_cuda and cumulative.is_contiguous()
    assert query.dtype == key.dtype == value.dtype and query.dtype in (torch.float16, torch.bfloat16)
    assert query.is_cuda and key.is_cuda and value.is_cuda and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    assert query.shape[1] % key.shape[1] == 0 and query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    q, k, v = (t.cpu().double().movedim(1, 0) for t in (query, key, value))
    k, v = (t.repeat_interleave(query.shape[1] // key.shape[1], dim=0) for t in (k, v))
    queries, keys = cum_seq_q.tolist(), cum_seq_k.tolist()
    used = (
        [end - first for first, end in zip(keys, keys[1:], strict=False)] if seqused_k is None else seqused_k.tolist()
    )
    out = torch.zeros_like(q)
    for i, count in enumerate(used):
        mine = slice(queries[i], queries[i + 1])
        assert queries[i + 1] - queries[i] <= max_q and count <= max_k
        if count and queries[i + 1] > queries[i]:
            theirs = slice(keys[i], keys[i] + count)
            logits = q[:, mine] @ k[:, theirs].mT * (q.shape[-1] ** -0.5 if scale is None else scale)
            out[:, mine] = logits.softmax(-1) @ v[:, theirs]
    nothing = query.new_zeros(0)
    sums = query.new_zeros(query.shape[1], query.shape[0], dtype=torch.float32)
    return out.movedim(0, 1).to(query.device, query.dtype).contiguous(), sums, nothing, nothing, nothing


def install() -> torch.library.Library:
    """Serve the operation; until the library that is returned is gone."""
    library = torch.library.Library("aten", "IMPL", "CUDA")
    library.impl("_flash_attention_forward", attend)
    return library
