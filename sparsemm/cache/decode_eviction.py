"""Eviction during decoding: each new token replaces the lowest-rated token outside the window."""

from __future__ import annotations

import torch

from sparsemm.cache import tiles
from sparsemm.cache.slab import Slab, rows_of
from sparsemm.policies.policy import Policy

EMPTY = -1  # order of a row that is not in use


class Eviction:
    """The rating and token number of every row of one slab, and the number of rows each segment may hold.

    Attributes:
        limit: (N,) int64 rows of each of the N = B * Hkv segments; the slab has room for one more.
        worth: (rows,) fp32 rating of each row of the slab.
        order: (rows,) int32 number of the token in its batch row, or `EMPTY`; no conversation has 2^31 tokens.
        newest: (N,) int32 number of the newest token.
    """

    def __init__(
        self, policy: Policy, keep: torch.Tensor, rated: torch.Tensor, order: torch.Tensor, limit: torch.Tensor
    ) -> None:
        """Starts after a prompt or a turn was compressed.

        Args:
            policy: its window is never evicted, and its selector updates the ratings.
            keep: (N, S) bool, the positions that each segment kept.
            rated: (N, S) fp32 rating of each position; infinite ones count as 0.
            order: (N, S) int number of the token at each position.
            limit: (N,) int64.
        """
        self.policy = policy
        segment, position = keep.nonzero(as_tuple=True)
        with torch.inference_mode(False):
            self.limit = limit.clone()
            row = self.starts[segment] + (keep.cumsum(-1) - 1)[segment, position]
            rows = int((limit + 1).sum())
            self.worth = torch.zeros(rows, dtype=torch.float32, device=keep.device)
            self.order = torch.full((rows,), EMPTY, dtype=torch.int32, device=keep.device)
            self.worth[row] = torch.where(rated.isinf(), 0.0, rated)[segment, position]
            self.order[row] = order[segment, position].int()
            self.newest = order.masked_fill(~keep, EMPTY).amax(dim=-1).int()
            self.start = self.newest.clone()

    @property
    def starts(self) -> torch.Tensor:
        """First row of each segment, (N,) int64, in a slab whose segments have room for `limit` + 1 rows."""
        room = self.limit + 1
        return room.cumsum(0) - room

    def order_after(self, slab: Slab, count: torch.Tensor) -> torch.Tensor:
        """Returns token numbers (N, longest of the slab), after `count` (N,) rows were appended to each segment."""
        at = torch.arange(slab.longest, dtype=torch.int64, device=count.device)
        extra = at - (slab.lengths - count)[:, None]
        before = self.order[torch.where(extra < 0, self.starts[:, None] + at, 0)]
        after = torch.where(extra < 0, before, self.newest[:, None] + 1 + extra)
        return after.masked_fill(at >= slab.lengths[:, None], EMPTY)

    def attend(
        self, query: torch.Tensor, slab: Slab, scaling: float, valid: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Computes the attention of one new token, already appended, updates the ratings with its weights, and evicts.

        Arguments and result are those of `sparsemm.cache.attention.attend` for T = 1.
        """
        output, weights = tiles.watched_decode(query, slab, scaling, self.policy.selector.by_group)
        new = query.new_ones(len(self.limit), dtype=torch.bool)
        if valid is not None:
            output = output.masked_fill(~valid[:, None, :, None], 0.0)
            new = valid[:, 0].repeat_interleave(slab.num_kv_heads)
        owner, _ = slab.owners()
        self._update(weights.detach(), slab.starts + (slab.lengths - 1).clamp(min=0), new, owner)
        self._evict(slab, owner)
        return output

    def _update(self, weights: torch.Tensor, last: torch.Tensor, new: torch.Tensor, owner: torch.Tensor) -> None:
        self.newest += new
        self.order[last] = torch.where(new, self.newest, self.order[last])
        self.worth[last] = self.worth[last].masked_fill(new, 0.0)
        age = (self.newest[owner] - self.order).masked_fill(self.order == EMPTY, self.policy.window)
        since = (self.newest - self.start).clamp(min=1)[owner]
        seen = new[owner] & (self.order != EMPTY)
        update = self.policy.selector.update
        self.worth.copy_(torch.where(seen, update(self.worth, weights, age, since, self.policy.window), self.worth))

    def _evict(self, slab: Slab, owner: torch.Tensor) -> None:
        # Where a segment exceeds its limit, its last row (the new token) overwrites the lowest-rated one.
        last = slab.starts + (slab.lengths - 1).clamp(min=0)
        over = slab.lengths > self.limit
        target = torch.where(over, self._lowest_rated(owner), last)
        slab.move(last, target)
        for per_row in (self.worth, self.order):
            per_row[target] = per_row[last]
        self.order[last] = torch.where(over, EMPTY, self.order[last])
        slab.lengths -= over.long()
        slab.slack = 1  # as before the append: every segment has room for one row above its limit

    def _lowest_rated(self, owner: torch.Tensor) -> torch.Tensor:
        """Returns the lowest-rated row outside the window of each segment, (N,) int64; the first of equal ones."""
        inside = self.newest[owner] - self.order < self.policy.window
        worth = self.worth.masked_fill(inside | (self.order == EMPTY), float("inf"))
        least = worth.new_full(self.limit.shape, float("inf")).scatter_reduce(0, owner, worth, "amin")
        rows = torch.arange(len(worth), dtype=torch.int64, device=worth.device)
        # Not `worth == least`: a NaN counts as the least, and equals nothing.
        rows = torch.where(worth > least[owner], len(worth), rows)
        return torch.full_like(self.limit, len(worth)).scatter_reduce(0, owner, rows, "amin")

    def select_rows(self, index: torch.Tensor, batch: int) -> None:
        """Keeps the batch rows `index` (N,) int64 of `batch`, in that order."""
        with torch.inference_mode(False):
            starts, room = (t.view(batch, -1)[index].flatten() for t in (self.starts, self.limit + 1))
            rows = rows_of(starts, room)
            self.worth, self.order = self.worth[rows], self.order[rows]
            for name in ("limit", "newest", "start"):
                setattr(self, name, getattr(self, name).view(batch, -1)[index].flatten())

    def add_rows(self, *others: Eviction) -> None:
        """Adds the batch rows of others, with the same selector and window, after its own, as `Slab.add_rows`."""
        with torch.inference_mode(False):
            for name in ("limit", "worth", "order", "newest", "start"):
                setattr(self, name, torch.cat([getattr(one, name) for one in (self, *others)]))

    def allocated_bytes(self) -> int:
        """Returns the bytes of these tensors."""
        return sum(t.element_size() * t.numel() for t in (self.worth, self.order, self.limit, self.newest, self.start))
