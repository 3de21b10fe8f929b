"""The attention function of the explorer: sdpa, and a callback that sees every layer's queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "sparsemm_watched"
# layer, query (1, Hq, S, D), key (1, Hkv, S, D), mask (1, 1, S, S) bool or None, factor of the logits
Watcher = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor | None, float], None]

_watcher: ContextVar[Watcher | None] = ContextVar("sparsemm_watcher", default=None)


def watched_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """sdpa attention of one layer, shown to the watcher first.

    Args, Returns: as `sparsemm.chase.attention.chase_attention`.
    """
    watcher = _watcher.get()
    if watcher is not None:
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        watcher(int(module.layer_idx), query, key, attention_mask, factor)  # type: ignore[arg-type]
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)


def weights(
    query: torch.Tensor, key: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attention of some rows, softmax(q k^T * scaling) in fp32; nothing larger than the result is made.

    Args:
        query: (1, Hq, S, D) post-RoPE.
        key: (1, Hkv, S, D) post-RoPE; query head h reads KV head h // (Hq / Hkv).
        rows: (T,) int64.
        mask: (1, 1, S, S) bool, True where the row sees the key; None means causal.
        scaling: factor of the logits.

    Returns:
        (Hq, T, S) fp32.
    """
    grouped = query[0, :, rows].unflatten(0, (key.shape[1], -1)).float()
    logits = torch.einsum("ngtd,nsd->ngts", grouped, key[0].float()).flatten(0, 1) * scaling
    if mask is None:
        seen = torch.arange(key.shape[2], dtype=torch.int64, device=key.device) <= rows[:, None]
    else:
        seen = mask[0, 0, rows]
    return torch.softmax(logits.masked_fill(~seen, float("-inf")), dim=-1)


@contextmanager
def watching(model: Any, watcher: Watcher) -> Iterator[None]:
    """Show the language model's attention to a watcher; what was set before is restored on the way out."""
    before = model.config.get_text_config()._attn_implementation
    token = _watcher.set(watcher)
    try:
        model.set_attn_implementation({"text_config": NAME})
        yield
    finally:
        model.set_attn_implementation({"text_config": before})
        _watcher.reset(token)


AttentionInterface.register(NAME, watched_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
