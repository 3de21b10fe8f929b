"""Eviction while answering: every new token takes the place of the weakest one outside the window."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from sparsemm.cache.slab import Slab
from sparsemm.policies import Policy

EMPTY = -1  # order of a row that is not in use


class Eviction:
    """What the rows of one slab are worth, and how many each stretch may hold.

    Attributes:
        limit: (N,) int64 rows of each of the N = B * Hkv stretches; the slab has room for one more.
        worth: (N, widest) fp32, row by row of each stretch.
        order: (N, widest) int64 number of the token in its batch row, or `EMPTY`.
        newest: (N, 1) int64 number of the newest token.
    """

    def __init__(
        self, policy: Policy, keep: torch.Tensor, rated: torch.Tensor, order: torch.Tensor, limit: torch.Tensor
    ) -> None:
        """Start after a prompt or a turn was compressed.

        Args:
            policy: whose window is never evicted, and who knows what a row is worth.
            keep: (N, S) bool positions each stretch kept.
            rated: (N, S) fp32 what positions were worth; infinite ones count as 0.
            order: (N, S) int64 number of the token at a position.
            limit: (N,) int64.
        """
        self.policy = policy
        stretch, position = keep.nonzero(as_tuple=True)
        column = (keep.cumsum(-1) - 1)[stretch, position]
        shape = len(keep), int(limit.max()) + 1 if len(limit) else 1
        with torch.inference_mode(False):
            self.limit = limit.clone()
            self.worth = torch.zeros(shape, device=keep.device)
            self.order = torch.full(shape, EMPTY, device=keep.device)
            self.worth[stretch, column] = torch.where(rated.isinf(), 0.0, rated)[stretch, position]
            self.order[stretch, column] = order[stretch, position]
            self.newest = self.order.amax(dim=-1, keepdim=True)
            self.start = self.newest.clone()

    def order_after(self, slab: Slab, count: torch.Tensor) -> torch.Tensor:
        """`order` (N, longest of the slab) once `count` (N,) rows were appended to each stretch."""
        at = torch.arange(slab.longest, device=count.device)
        before = F.pad(self.order, (0, max(slab.longest - self.order.shape[1], 0)), value=EMPTY)[:, : slab.longest]
        extra = at - (slab.lengths - count)[:, None]
        return torch.where((extra >= 0) & (at < slab.lengths[:, None]), self.newest + 1 + extra, before)

    def attend(
        self, query: torch.Tensor, slab: Slab, scaling: float, valid: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attention of one new token, already appended, that also counts who was looked at; then evict.

        Args, Returns: as `sparsemm.cache.attention.attend`, for T = 1.
        """
        keys, values, real = slab.padded()
        batch, num_kv_heads, width, dim = keys.shape
        rows = query.reshape(batch, num_kv_heads, -1, dim)
        logits = (rows.float() @ keys.float().transpose(-1, -2) * scaling).masked_fill(~real[:, :, None], float("-inf"))
        weights = torch.softmax(logits, dim=-1)
        output = (weights @ values.float()).to(query.dtype).view(query.shape)
        new = query.new_ones(len(self.limit), dtype=torch.bool)
        if valid is not None:
            output = output.masked_fill(~valid[:, None, :, None], 0.0)
            new = valid[:, 0].repeat_interleave(num_kv_heads)
        self._take_in(weights.mean(dim=2).view(-1, width), slab.lengths, new)
        self._evict(slab)
        return output

    def _take_in(self, weights: torch.Tensor, lengths: torch.Tensor, new: torch.Tensor) -> None:
        self.newest += new[:, None]
        last = (lengths - 1).clamp(min=0)[:, None]
        self.order.scatter_(1, last, torch.where(new[:, None], self.newest, self.order.gather(1, last)))
        self.worth.scatter_(1, last, self.worth.gather(1, last).masked_fill(new[:, None], 0.0))
        age = (self.newest - self.order).masked_fill(self.order == EMPTY, self.policy.window)
        since = (self.newest - self.start).clamp(min=1)
        seen = new[:, None] & (self.order != EMPTY)
        self.worth.copy_(torch.where(seen, self.policy.watch(self.worth, weights, age, since), self.worth))

    def _evict(self, slab: Slab) -> None:
        # Where a stretch is over its limit, its last row (the new token) moves to the weakest one's place.
        last = slab.lengths - 1
        over = slab.lengths > self.limit
        inside = self.newest - self.order < self.policy.window
        weakest = self.worth.masked_fill(inside | (self.order == EMPTY), float("inf")).argmin(dim=-1)
        target = torch.where(over, weakest, last)
        slab.move(slab.starts + last, slab.starts + target)
        for kept in (self.worth, self.order):
            kept.scatter_(1, target[:, None], kept.gather(1, last[:, None]))
        self.order.scatter_(1, last[:, None], torch.where(over[:, None], EMPTY, self.order.gather(1, last[:, None])))
        slab.lengths -= over.long()
        slab.slack = 1  # again: the limit leaves room for one more

    def select_rows(self, index: torch.Tensor, batch: int) -> None:
        """Keep the batch rows `index` (N,) int64 of `batch`, in that order."""
        with torch.inference_mode(False):
            for name in ("worth", "order", "limit", "newest", "start"):
                kept = getattr(self, name)
                setattr(self, name, kept.view(batch, -1, *kept.shape[1:])[index].flatten(0, 1))

    def allocated_bytes(self) -> int:
        """Bytes of the bookkeeping."""
        return sum(t.element_size() * t.numel() for t in (self.worth, self.order, self.limit, self.newest, self.start))
