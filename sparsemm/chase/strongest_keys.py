"""Finds the key that every head attends to most, for chosen rows of a batch, in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sparsemm.attention_probe import AttentionCall, observe_attention
from sparsemm.errors import AlignError, ModelError
from sparsemm.ops.argmax_rows import argmax_rows
from sparsemm.prompts import move_inputs

NO_KEY = -1  # the position for layers without attention heads
MOST_MASK_ENTRIES = 1 << 22  # entries of an attention mask that are examined at a time
MOST_LOGITS = 1 << 25  # logits that exist at a time


@dataclass(frozen=True)
class StrongestKeys:
    """What the chosen rows of one sample attend to and predict."""

    # (L, Hq, T) int64 on the CPU, the position in the padded row that each head attends to most; `NO_KEY` in layers
    # with linear attention
    positions: torch.Tensor
    predicted: torch.Tensor  # (T,) int64 on the CPU, the model's own greedy next token at each row


@torch.inference_mode()
def strongest_keys(
    model: Any, inputs: Mapping[str, torch.Tensor], rows: Sequence[Sequence[int]]
) -> list[StrongestKeys]:
    """Runs one forward pass, and returns the strongest keys and the predictions of the chosen rows of each sample.

    The language-model head runs over these rows alone, a part at a time. If two attention weights differ by less than
    the model's rounding (about 1e-6 in fp32, 1e-2 in bf16), another batch size or decoding token by token may choose
    the other key.

    Args:
        model: a Hugging Face image-text-to-text model in eval mode.
        inputs: prompts with answers, padded on the left, on any device.
        rows: rows[b], query positions in the padded row b; may be empty.

    Raises:
        AlignError: if there is not one list of rows per sample, a row is outside the sequence or on padding, or there
            is padding between tokens.
    """
    mask = inputs["attention_mask"]
    if len(rows) != len(mask):
        raise AlignError(f"{len(rows)} lists of rows for {len(mask)} samples")
    for b, rows_of_sample in enumerate(rows):
        if any(not 0 <= row < mask.shape[1] or not mask[b, row] for row in rows_of_sample):
            raise AlignError("a row is outside the sequence or on padding", where=f"sample {b}")
    inputs = move_inputs(inputs, model)
    base = getattr(model, model.base_model_prefix)
    # Models with M-RoPE derive positions from attention_mask; the others would count the padding.
    if not hasattr(base, "get_rope_index"):
        inputs["position_ids"] = (inputs["attention_mask"].long().cumsum(dim=-1) - 1).clamp(min=0)
    rope_deltas = getattr(base, "rope_deltas", None)
    recorder = Recorder(rows, _token_spans(mask))
    try:
        with observe_attention(model, recorder, recorder.spans):
            hidden = base(**inputs, use_cache=False).last_hidden_state
    finally:
        if hasattr(base, "rope_deltas"):
            base.rope_deltas = rope_deltas  # a generation that is under way needs its own
    # The layers may be on several devices; those with linear attention were not observed.
    layers = range(model.config.get_text_config().num_hidden_layers)
    unobserved = torch.full_like(next(iter(recorder.positions.values())), NO_KEY, device="cpu")
    positions = torch.stack([recorder.positions.get(layer, unobserved).cpu() for layer in layers])
    head = model.get_output_embeddings()
    return [
        StrongestKeys(positions_of_sample, _greedy_tokens(head, hidden[b, list(rows[b])]))
        for b, positions_of_sample in enumerate(positions.split([len(r) for r in rows], dim=2))
    ]


class Recorder:
    """A callback for `observe_attention` that records the strongest key of each head, for chosen rows of each sample.

    Args:
        rows: rows[b], query positions in the padded row b.
        spans: spans[b], (first, stop) of the tokens of row b that are not padding.

    Attributes:
        spans: the argument.
        positions: layer -> (Hq, sum of T_b) int64 key positions, sample after sample, on the layer's device.
    """

    def __init__(self, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> None:
        self.rows = [torch.as_tensor(list(r), dtype=torch.int64, device="cpu") for r in rows]
        self.spans = list(spans)
        self.positions: dict[int, torch.Tensor] = {}

    def __call__(self, call: AttentionCall) -> None:
        """Records the key position with the largest q.k of every head at every row.

        Softmax is monotone, so this is the argmax of the attention row, and no matrix of rows x positions is needed.
        Products and sums are in fp64, so that batching and devices do not change them; the first of equal keys wins.
        Raises ModelError if there are more keys than queries, or what a row sees has gaps.
        """
        if call.query.shape[2] != call.key.shape[2]:
            raise ModelError("the chase needs one forward pass over the whole sequence, without a cache")
        positions, mask = [], call.mask
        for b, ((first, _), cpu_rows) in enumerate(zip(self.spans, self.rows, strict=True)):
            rows = cpu_rows.to(call.query.device)
            begins, ends = torch.full_like(rows, first), rows + 1
            if mask is not None:
                # A batch dimension of 1 is a mask that all samples share.
                begins, ends = visible_keys(mask[min(b, len(mask) - 1), 0], rows)
            positions.append(argmax_rows(call.query[b][:, rows], call.key[b], begins, ends))
        self.positions[call.layer] = torch.cat(positions, dim=1)


def visible_keys(mask: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the first key that each row sees, and the position after the last one; two (T,) int64.

    Args:
        mask: (S, S) bool, True where the query (first) sees the key. The keys of a row must be consecutive, as they
            are under causal and sliding-window masks with padding on one side.
        rows: (T,) int64 query positions.

    Raises:
        ModelError: if the keys of a row are not consecutive.
    """
    begins, ends = torch.zeros_like(rows), torch.zeros_like(rows)
    positions = torch.arange(mask.shape[1], dtype=torch.int64, device=mask.device)
    step = max(1, MOST_MASK_ENTRIES // mask.shape[1])
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        visible = mask[rows[part]]
        begins[part] = visible.byte().argmax(dim=-1)  # the first True
        ends[part] = begins[part] + visible.sum(dim=-1)
        if not torch.equal(visible, (positions >= begins[part, None]) & (positions < ends[part, None])):
            raise ModelError("a row attends to keys with gaps between them", hint="pad prompts on the left")
    return begins, ends


def _token_spans(mask: torch.Tensor) -> list[tuple[int, int]]:
    """Returns (first, stop) of the tokens that are not padding, for every row of an attention mask (B, S)."""
    real = mask.bool().cpu()
    firsts, counts = real.byte().argmax(dim=1).tolist(), real.sum(dim=1).tolist()
    spans = [(first, first + count) for first, count in zip(firsts, counts, strict=True)]
    for b, (first, stop) in enumerate(spans):
        if not real[b, first:stop].all():
            raise AlignError("there is padding between tokens", where=f"sample {b}", hint="pad on the left")
    return spans


def _greedy_tokens(head: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Returns the most likely next token after each of (T, hidden size) hidden states: (T,) int64 on the CPU."""
    step = max(1, MOST_LOGITS // head.weight.shape[0])
    return torch.cat([head(part).argmax(dim=-1) for part in hidden.split(step)]).cpu()
