"""Attention of one token over a ragged cache in plain PyTorch, with its weights, without padding heads to the longest.

The rows of each head are cut into tiles of one size, and there are as many tiles as any lengths could need. So nothing
waits for the device, a step is the same program at every length, and the tiles have at most twice the slab's rows.
"""

from __future__ import annotations

import torch

from sparsemm.cache.slab import Slab, pieces
from sparsemm.ops.ragged_decode import decodes, ragged_decode

TILE = 64  # most rows of a tile


class Tiles:
    """The tiles of N segments.

    Attributes:
        size: rows of a tile, at most the mean rows of a segment.
        owner: (M,) int64 segment of each tile, ascending; spare tiles belong to the last segment.
        first: (N,) int64 first tile of each segment.
        rows, real: (M, size) int64 row numbers, and bool which of them are in use.
    """

    def __init__(self, starts: torch.Tensor, lengths: torch.Tensor, rows: int) -> None:
        """Cuts the segments `starts`, `lengths`, (N,) int64, of a slab of `rows` rows; N and `rows` are at least 1."""
        heads = len(starts)
        self.size = max(1, min(TILE, rows // heads))
        counts = (lengths + self.size - 1) // self.size
        ends = counts.cumsum(0)
        self.first = ends - counts
        number = torch.arange(rows // self.size + heads, dtype=torch.int64, device=starts.device)
        self.owner = torch.searchsorted(ends, number, right=True).clamp(max=heads - 1)
        at = ((number - self.first[self.owner]) * self.size)[:, None] + torch.arange(
            self.size, device=starts.device, dtype=torch.int64
        )
        self.real = at < lengths[self.owner][:, None]
        first = starts[self.owner][:, None]
        # Unused entries read the head's own first row: a NaN in another head's row would survive a weight of zero.
        self.rows = torch.where(self.real, first + at, first.clamp(max=rows - 1))

    def sum(self, parts: torch.Tensor) -> torch.Tensor:
        """Sums (M, ...) over the tiles of each segment, in their order: (N, ...)."""
        heads = len(self.first)
        if parts.is_cuda:  # there, index_add adds in any order
            ends = torch.cat([self.first, self.first.new_full((1,), len(parts))])
            return torch.segment_reduce(parts, "sum", offsets=ends, axis=0, unsafe=True, initial=0)
        return parts.new_zeros(heads, *parts.shape[1:]).index_add(0, self.owner, parts)

    def weights(self, query: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
        """Returns the attention weights (M, G, size) of queries (N, G, D), zero for unused rows; in fp32 or better."""
        wide = torch.promote_types(query.dtype, torch.float32)
        query = query.to(wide)
        logits = torch.cat(
            [
                torch.matmul(query[self.owner[part]], keys[self.rows[part]].to(wide).transpose(1, 2)) * scaling
                for part in pieces(len(self.rows), self.size * keys.shape[1])
            ]
        ).masked_fill(~self.real[:, None], float("-inf"))
        most = logits.detach().amax(dim=-1)
        owner = self.owner[:, None].expand_as(most)
        most = torch.full_like(query[..., 0], float("-inf")).scatter_reduce(0, owner, most, "amax")
        most = most.masked_fill(most == float("-inf"), 0.0)  # empty segments
        weights = torch.exp(logits - most[self.owner][..., None])
        total = self.sum(weights.sum(dim=-1))
        return weights / total.masked_fill(total == 0, 1.0)[self.owner][..., None]

    def mix(self, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Returns the values averaged with weights (M, G, size): (N, G, D)."""
        parts = [
            torch.matmul(weights[part], values[self.rows[part]].to(weights.dtype))
            for part in pieces(len(self.rows), self.size * values.shape[1])
        ]
        return self.sum(torch.cat(parts))

    def by_row(self, weights: torch.Tensor, owner: torch.Tensor, at: torch.Tensor, by_group: str) -> torch.Tensor:
        """Averages weights (M, G, size) over the query group, or takes their maximum ("mean", "max"): (rows,) fp32.

        Row i of the result is row `at[i]` of segment `owner[i]`, as `Slab.owners` returns them.
        """
        group = weights.mean(dim=1, dtype=torch.float32) if by_group == "mean" else weights.amax(dim=1).float()
        group = group.flatten()
        return group[(self.first[owner] * self.size + at).clamp(max=len(group) - 1)]


def decode(query: torch.Tensor, slab: Slab, scaling: float) -> torch.Tensor:
    """Computes the attention of the newest token, already appended: (B, Hq, 1, D), compiled where that is supported."""
    output, _ = _decode(query, slab, scaling, watched="")
    return output


def watched_decode(
    query: torch.Tensor, slab: Slab, scaling: float, by_group: str = "mean"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the result of `decode`, and each row's attention weight, the "mean" or "max" over the query group.

    The weights are (rows,) fp32; those of unused rows have no meaning.
    """
    output, weights = _decode(query, slab, scaling, by_group)
    assert weights is not None
    return output, weights


def _decode(query: torch.Tensor, slab: Slab, scaling: float, watched: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    batch, num_heads, _, dim = query.shape
    keys, values = slab.read()
    token = query.view(batch, num_heads, dim) if query.is_contiguous() else query[:, :, 0].contiguous()
    compiled = decodes(token, keys, values)
    if compiled:
        output = ragged_decode(token, keys, values, slab.starts, slab.lengths, scaling)[:, :, None]
        if not watched:
            return output, None
    tiles = Tiles(slab.starts, slab.lengths, len(keys))
    grouped = token.view(len(slab.starts), -1, dim)
    weights = tiles.weights(grouped, keys, scaling)
    if not compiled:
        output = tiles.mix(weights, values).to(query.dtype).view(query.shape)
    return output, tiles.by_row(weights, *slab.owners(), watched) if watched else None
