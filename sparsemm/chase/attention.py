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

from sparsemm.cache import ops
from sparsemm.errors import ModelError

NAME = "sparsemm_chase"


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

    Softmax is monotone, so this is the argmax of the attention row. Nothing as large as rows x positions is made.
    Products and sums are in fp64: batching and devices do not move it; of equal keys the first one wins.

    Args:
        query: (Hq, S, D) post-RoPE.
        key: (Hkv, S, D) post-RoPE; query head h reads KV head h // (Hq / Hkv).
        rows: (T,) int64 query positions.
        mask: (S, S) bool, True where the query (first) sees the key; None means causal. What a row sees is in one
            piece: causal, with padding on one side.

    Returns:
        (Hq, T) int64.

    Raises:
        ModelError: if what a row sees has gaps.
    """
    rows = rows.to(query.device)
    begins, ends = torch.zeros_like(rows), rows + 1
    if mask is not None and len(rows):
        seen = mask[rows]
        begins = seen.long().argmax(dim=-1)  # the first True
        ends = begins + seen.sum(dim=-1)
        at = torch.arange(seen.shape[1], device=seen.device)
        if not torch.equal(seen, (at >= begins[:, None]) & (at < ends[:, None])):
            raise ModelError("a row attends to keys with gaps between them", hint="pad prompts on the left")
    return ops.argmax_rows(query[:, rows], key, begins, ends)


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
