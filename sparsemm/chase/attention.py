"""Where heads look: the key with the largest q.k of chosen rows, written down while a model reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsemm.attention_probe import AttentionCall
from sparsemm.errors import ModelError
from sparsemm.ops.argmax_rows import argmax_rows

MOST_SEEN = 1 << 22  # entries of a mask that are looked at together


class Recorder:
    """An observer of attention that notes which key each head looks at, from rows of every sample.

    Args:
        rows: rows[b], query positions in the padded row b.
        spans: spans[b], (first, stop): the tokens of batch row b that are no padding; they are in one piece.

    Attributes:
        spans: as given.
        found: layer -> (Hq, sum of T_b) int64 of key positions, sample by sample, on the layer's device.
    """

    def __init__(self, rows: Sequence[Sequence[int]], spans: Sequence[tuple[int, int]]) -> None:
        self.rows = [torch.as_tensor(list(one), dtype=torch.int64, device="cpu") for one in rows]
        self.spans = list(spans)
        self.found: dict[int, torch.Tensor] = {}
        self._moved: dict[torch.device, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = {}

    def __call__(self, call: AttentionCall) -> None:
        """Note the key position with the largest q.k of every head at every row.

        Softmax is monotone, so this is the argmax of the attention row. Nothing as large as rows x positions is made.
        Products and sums are in fp64: batching and devices do not move it; of equal keys the first one wins.

        Raises:
            ModelError: if there are more keys than queries, or what a row sees has gaps.
        """
        if call.query.shape[2] != call.key.shape[2]:
            raise ModelError("the chase needs one forward pass over the whole sequence, without a cache")
        found, mask = [], call.mask
        for b, (rows, begins, ends) in enumerate(self._bounds(call.query.device)):
            if mask is not None:
                # Batch dimension 1 is a mask that all rows share.
                begins, ends = seen_keys(mask[min(b, len(mask) - 1), 0], rows)
            found.append(argmax_rows(call.query[b][:, rows], call.key[b], begins, ends))
        self.found[call.layer] = torch.cat(found, dim=1)

    def _bounds(self, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(rows, first key, key behind the last) of every sample on a device, moved there once."""
        if device not in self._moved:
            parts = zip(self.rows, self.spans, strict=True)
            self._moved[device] = [
                tuple(t.to(device) for t in (rows, torch.full_like(rows, first), rows + 1))  # type: ignore[misc]
                for rows, (first, _) in parts
            ]
        return self._moved[device]


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
