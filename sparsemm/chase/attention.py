"""The attention function of the chase: sdpa, and the argmax position of chosen rows on the side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from sparsemm.errors import ModelError

NAME = "sparsemm_chase"
MOST_LOGITS = 1 << 24  # fp32 logits held at once: 64 MiB, whatever the number of rows, heads and positions


class Recorder:
    """Rows to look at, one list per batch row, and what each layer found.

    Attributes:
        rows: rows[b], (T_b,) int64 query positions in the padded row.
        found: layer -> [(Hq, T_b) int64 of key positions for b in batch].
    """

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.rows = [torch.as_tensor(list(one), dtype=torch.int64) for one in rows]
        self.found: dict[int, list[torch.Tensor]] = {}


_recorder: ContextVar[Recorder | None] = ContextVar("sparsemm_chase_recorder", default=None)


def argmax_positions(
    query: torch.Tensor, key: torch.Tensor, rows: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Key position with the largest q.k of every head at the given rows of one sample.

    Softmax is monotone, so this is the argmax of the attention row. Products are in fp32; of equal logits the first
    position wins. Never more than `MOST_LOGITS` logits (and at least one row) exist at a time.

    Args:
        query: (Hq, S, D) post-RoPE.
        key: (Hkv, S, D) post-RoPE; query head h reads KV head h // (Hq / Hkv).
        rows: (T,) int64 query positions.
        mask: (S, S) bool, True where the query (first) sees the key; None means causal.

    Returns:
        (Hq, T) int64.
    """
    num_heads, length, dim = query.shape
    num_kv_heads = key.shape[0]
    found = torch.empty((num_heads, len(rows)), dtype=torch.int64, device=query.device)
    if len(rows) == 0:
        return found
    rows = rows.to(query.device)
    columns = torch.arange(key.shape[1], device=query.device)
    keys = key.float().transpose(1, 2)
    step = max(1, MOST_LOGITS // (num_heads * key.shape[1]))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        q = query[:, part].float().reshape(num_kv_heads, -1, dim)  # the query group becomes rows of its KV head
        logits = torch.matmul(q, keys).view(num_heads, len(part), -1)
        seen = columns <= part[:, None] if mask is None else mask[part]
        found[:, start : start + step] = logits.masked_fill(~seen, float("-inf")).argmax(dim=-1)
    return found


def chase_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """sdpa attention of one layer; the argmax of the recorder's rows is written down beside it.

    Args:
        query: (B, Hq, S, D) post-RoPE.
        key, value: (B, Hkv, S, D).
        attention_mask: (B, 1, S, S) bool, or None without padding.
        scaling: factor of the logits; it is positive and does not move the argmax.

    Returns:
        (B, S, Hq, D), None.
    """
    recorder = _recorder.get()
    if recorder is not None:
        if query.shape[2] != key.shape[2]:
            raise ModelError("the chase needs one forward pass over the whole sequence, without a cache")
        recorder.found[int(module.layer_idx)] = [  # type: ignore[arg-type]
            argmax_positions(
                query[b],
                key[b],
                rows,
                # Batch dimension 1 is a mask that all rows share.
                None if attention_mask is None else attention_mask[min(b, len(attention_mask) - 1), 0],
            )
            for b, rows in enumerate(recorder.rows)
        ]
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)


@contextmanager
def recording(model: Any, rows: Sequence[Sequence[int]]) -> Iterator[Recorder]:
    """Let the language model's attention write to a recorder; what was set before is restored on the way out.

    Only the language model is switched: the vision tower keeps its own implementation.
    """
    before = model.config.get_text_config()._attn_implementation
    recorder = Recorder(rows)
    token = _recorder.set(recorder)
    try:
        model.set_attn_implementation({"text_config": NAME})
        yield recorder
    finally:
        model.set_attn_implementation({"text_config": before})
        _recorder.reset(token)


AttentionInterface.register(NAME, chase_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
