"""Attention of one token over a ragged cache in plain PyTorch, with its weights: no head is padded to the longest.

Every head's rows are cut into tiles of one size, of which there are as many as could be needed whatever the lengths
are. So nothing waits for the device, a step is the same program at every length, and what is computed with has at most
twice the slab's rows.
"""

from __future__ import annotations

import torch

from sparsemm.cache.slab import Slab, pieces
from sparsemm.ops.ragged_decode import decodes, ragged_decode

TILE = 64  # rows of a tile, at most


class Tiles:
    """The tiles of N stretches.

    Attributes:
        size: rows of a tile, at most those of a mean stretch.
        owner: (M,) int64 stretch of each tile, ascending; spare tiles are the last stretch's.
        first: (N,) int64 first tile of each stretch.
        rows, real: (M, size) int64 row numbers and bool which of them are in use.
    """

    def __init__(self, starts: torch.Tensor, lengths: torch.Tensor, rows: int) -> None:
        """starts, lengths: (N,) int64 in a slab of `rows` rows, N and `rows` at least 1."""
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
        # What is not in use reads the head's own first row: a NaN of another's would get through a weight of zero.
        self.rows = torch.where(self.real, first + at, first.clamp(max=rows - 1))

    def sum(self, parts: torch.Tensor) -> torch.Tensor:
        """Sums of each stretch's tiles (M, ...), in their order: (N, ...)."""
        heads = len(self.first)
        if parts.is_cuda:  # where index_add adds in any order
            ends = torch.cat([self.first, self.first.new_full((1,), len(parts))])
            return torch.segment_reduce(parts, "sum", offsets=ends, axis=0, unsafe=True, initial=0)
        return parts.new_zeros(heads, *parts.shape[1:]).index_add(0, self.owner, parts)

    def weights(self, query: torch.Tensor, keys: torch.Tensor, scaling: float) -> torch.Tensor:
        """Attention weights (M, G, size) of queries (N, G, D), zero where no row is; in fp32 or better."""
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
        most = most.masked_fill(most == float("-inf"), 0.0)  # no rows
        weights = torch.exp(logits - most[self.owner][..., None])
        total = self.sum(weights.sum(dim=-1))
        return weights / total.masked_fill(total == 0, 1.0)[self.owner][..., None]

    def mix(self, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Values in the proportion of such weights: (N, G, D)."""
        parts = [
            torch.matmul(weights[part], values[self.rows[part]].to(weights.dtype))
            for part in pieces(len(self.rows), self.size * values.shape[1])
        ]
        return self.sum(torch.cat(parts))

    def by_row(self, weights: torch.Tensor, owner: torch.Tensor, at: torch.Tensor, by_group: str) -> torch.Tensor:
        """Of weights (M, G, size) the "mean" or "max" over G, fp32 (rows,): row `at` of the stretch `owner`."""
        one = weights.mean(dim=1, dtype=torch.float32) if by_group == "mean" else weights.amax(dim=1).float()
        one = one.flatten()
        return one[(self.first[owner] * self.size + at).clamp(max=len(one) - 1)]


def decode(query: torch.Tensor, slab: Slab, scaling: float) -> torch.Tensor:
    """Attention (B, Hq, 1, D) of the newest token, (B, Hq, 1, D) and appended, by the library where one serves."""
    output, _ = _decode(query, slab, scaling, watched="")
    return output


def watched_decode(
    query: torch.Tensor, slab: Slab, scaling: float, by_group: str = "mean"
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `decode`; and how much each row was looked at, fp32 (rows,), the "mean" or "max" over the query group.

    What belongs to a row that is not in use has no meaning.
    """
    output, weights = _decode(query, slab, scaling, by_group)
    assert weights is not None
    return output, weights


def _decode(query: torch.Tensor, slab: Slab, scaling: float, watched: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    batch, num_heads, _, dim = query.shape
    keys, values = slab.read()
    one = query.view(batch, num_heads, dim) if query.is_contiguous() else query[:, :, 0].contiguous()
    served = decodes(one, keys, values)
    if served:
        output = ragged_decode(one, keys, values, slab.starts, slab.lengths, scaling)[:, :, None]
        if not watched:
            return output, None
    tiles = Tiles(slab.starts, slab.lengths, len(keys))
    grouped = one.view(len(slab.starts), -1, dim)
    weights = tiles.weights(grouped, keys, scaling)
    if not served:
        output = tiles.mix(weights, values).to(query.dtype).view(query.shape)
    return output, tiles.by_row(weights, *slab.owners(), watched) if watched else None
