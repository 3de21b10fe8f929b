"""The attention function of the chase: causal, without a mask, and the argmax position of chosen rows on the side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from sparsemm.errors import ModelError
from sparsemm.ops.argmax_rows import argmax_rows
from sparsemm.ops.causal_attention import attend_spans, causal_attention

NAME = "sparsemm_chase"
MOST_SEEN = 1 << 22  # entries of a mask that are looked at together


class Recorder:
    """Rows to look at, one list per batch row, and what each layer found.

    Attributes:
        rows: rows[b], (T_b,) int64 query positions in the padded row.
        spans: spans[b], (first, stop): the tokens of batch row b that are no padding; they are in one piece.
        firsts, stops: the spans, (B,) int64.
        found: layer -> (Hq, sum of T_b) int64 of key positions, sample by sample, on the layer's device.
    """

    def __init__(self, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> None:
        self.rows = [torch.as_tensor(list(one), dtype=torch.int64, device="cpu") for one in rows]
        self.spans = list(spans)
        self.firsts, self.stops = torch.tensor([*zip(*spans, strict=True)], dtype=torch.int64, device="cpu")
        self.found: dict[int, torch.Tensor] = {}
        self._moved: dict[torch.device, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = {}

    def looking(self, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(rows, first key, key behind the last) of every sample's rows on a device, moved there once."""
        if device not in self._moved:
            parts = zip(self.rows, self.spans, strict=True)
            self._moved[device] = [
                tuple(t.to(device) for t in (rows, torch.full_like(rows, first), rows + 1))  # type: ignore[misc]
                for rows, (first, _) in parts
            ]
        return self._moved[device]


_recorder: ContextVar[Recorder | None] = ContextVar("sparsemm_chase_recorder", default=None)


def seen_keys(mask: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First key and the key behind the last that each row sees.

    Args:
        mask: (S, S) bool, True where the query (first) sees the key. What a row sees is in one piece: causal, within
            a sliding window, with padding on one side.
        rows: (T,) int64 query positions.

    Returns:
        two (T,) int64.

    Raises:
        ModelError: if what a row sees has gaps.
    """
    begins, ends = torch.zeros_like(rows), torch.zeros_like(rows)
    at = torch.arange(mask.shape[1], dtype=torch.int64, device=mask.device)
    step = max(1, MOST_SEEN // mask.shape[1])
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        seen = mask[rows[part]]
        begins[part] = seen.byte().argmax(dim=-1)  # the first True
        ends[part] = begins[part] + seen.sum(dim=-1)
        if not torch.equal(seen, (at >= begins[part, None]) & (at < ends[part, None])):
            raise ModelError("a row attends to keys with gaps between them", hint="pad prompts on the left")
    return begins, ends


def _record(recorder: Recorder, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Key position with the largest q.k of every head at the recorder's rows, (Hq, sum of T_b) int64.

    Softmax is monotone, so this is the argmax of the attention row. Nothing as large as rows x positions is made.
    Products and sums are in fp64: batching and devices do not move it; of equal keys the first one wins.
    """
    found = []
    for b, (rows, begins, ends) in enumerate(recorder.looking(query.device)):
        if mask is not None:
            # Batch dimension 1 is a mask that all rows share.
            begins, ends = seen_keys(mask[min(b, len(mask) - 1), 0], rows)
        found.append(argmax_rows(query[b][:, rows], key[b], begins, ends))
    return torch.cat(found, dim=1)


def chase_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer; the argmax of the recorder's rows is written down beside it.

    Args:
        query: (B, Hq, S, D) post-RoPE.
        key, value: (B, Hkv, S, D).
        attention_mask: (B, 1, S, S) bool, or None: causal, and the recorder knows what is padding.
        scaling: factor of the logits; it is positive and does not move the argmax.

    Returns:
        (B, S, Hq, D), None.

    Raises:
        ModelError: if there are more keys than queries, or what a row sees has gaps.
    """
    recorder, options = _recorder.get(), {"scaling": scaling, **options}
    if recorder is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if query.shape[2] != key.shape[2]:
        raise ModelError("the chase needs one forward pass over the whole sequence, without a cache")
    recorder.found[int(module.layer_idx)] = _record(recorder, query, key, attention_mask)  # type: ignore[arg-type]
    if attention_mask is None:
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        if query.is_cpu:
            return causal_attention(query, key, value, recorder.firsts, recorder.stops, factor), None
        return attend_spans(query, key, value, recorder.spans, factor), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def chase_mask(*given: Any, **options: Any) -> torch.Tensor | None:
    """No mask where attention is causal and a recorder knows the padding; else that of sdpa.

    A padded batch of 32K tokens would have a mask of 1 GiB a sample, and no fast kernel that takes it.
    """
    causal = options.get("mask_function", causal_mask_function) is causal_mask_function
    if _recorder.get() is not None and causal and options.get("local_size") is None:
        return None
    return sdpa_mask(*given, **options)


@contextmanager
def recording(model: Any, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> Iterator[Recorder]:
    """Let the language model's attention write to a recorder; what was set before is restored on the way out.

    Only the language model is switched: the vision tower keeps its own implementation.

    Args:
        rows, spans: see `Recorder`.
    """
    text = model.config.get_text_config()
    part = "" if text is model.config else "text_config"
    before = text._attn_implementation
    recorder = Recorder(rows, spans)
    token = _recorder.set(recorder)
    try:
        model.set_attn_implementation({part: NAME})
        yield recorder
    finally:
        model.set_attn_implementation({part: before})
        _recorder.reset(token)


AttentionInterface.register(NAME, chase_attention)
AttentionMaskInterface.register(NAME, chase_mask)
