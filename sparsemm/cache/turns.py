"""A later turn: which of everything kept stays, seen from the turn's newest rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsemm.budgets import Slots, fill
from sparsemm.cache.slab import Slab, alike
from sparsemm.policies.selector import Prompt, select

if TYPE_CHECKING:
    from sparsemm.cache.layer import RaggedLayer


def within(slots: Slots, total: int, available: Slots, window: int) -> Slots:
    """(Hkv,) int64 of sum `total` in proportion to `slots`, none above what its head still has, windows first."""
    if slots.sum() == total and (slots <= available).all():
        return slots
    least = np.minimum(window, available)
    shares = np.maximum(slots - least, 0).astype(np.float64)
    return least + fill(shares, total - int(least.sum()), available - least)


def choose(
    layer: RaggedLayer,
    slab: Slab,
    order: torch.Tensor,
    query: torch.Tensor,
    new: list[int],
    tokens: list[int],
    totals: list[int] | None,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What every head keeps of its rows, by the policy's own rating and budgets for all `tokens`.

    A head's rows are taken as its whole past: softmax, pooling and neighbourhood know nothing of evicted tokens. The
    rows that observe are the turn's newest, at most `policy.window`.

    Args:
        layer: whose policy, window and output projection count.
        slab: what it holds.
        order: (B, Hkv, longest) int64 number of each row's token, negative where it is not in use.
        query: (B, Hq, T, D) of the turn.
        new: real tokens of the turn in each batch row, the last ones of T.
        tokens: real tokens of the whole conversation in each batch row.
        totals: slots of the layer in each batch row; None leaves them to the policy.

    Returns:
        Row numbers (B, Hkv, longest), oldest first and aligned to the right; which to keep, bool; what they are worth,
        fp32; the number of their tokens, negative where there is none.
    """
    policy = layer.policy
    rows, _ = slab.padded_rows()
    order, by_age = order.sort(dim=-1, stable=True)
    rows, real = rows.gather(-1, by_age), order >= 0
    batch, num_kv_heads, longest = rows.shape
    rated = torch.full(rows.shape, float("-inf"), dtype=torch.float32, device=rows.device)
    keep = torch.zeros_like(real)
    held = real.sum(-1).cpu().numpy()
    reads = policy.selector.reads
    refines = "slots" in reads
    for b in range(batch):  # batch rows differ in how many of their newest rows may observe
        prompts: list[tuple[torch.Tensor, int, Prompt]] = []
        for heads, width in alike(held[b].tolist()):
            mine = query[b].unflatten(0, (num_kv_heads, -1))[heads, :, -new[b] :]
            own = b, heads, slice(longest - width, None)
            keys = slab.read_keys(rows[own])[:, None]
            values = slab.read_values(rows[own])[:, None] if "value" in reads else None
            numbers = torch.tensor(heads, dtype=torch.int64, device=rows.device)
            prompt = layer.prompt(mine, keys, values, real[own], scaling, numbers)
            rated[own] = policy.selector.rate(prompt)[:, 0]
            if refines:
                prompts.append((numbers, width, prompt))
        outside = rated[b].clone()
        outside[:, max(longest - policy.window, 0) :] = float("-inf")
        slots = policy.slots(layer.index, [tokens[b]], outside[None])[0]
        total = int(slots.sum()) if totals is None else min(totals[b], int(held[b].sum()))
        slots = within(slots, total, held[b], policy.window)
        settled = torch.from_numpy(slots).to(rows.device)[:, None]
        worth = rated[b][:, None].clone() if refines else rated[b][:, None]
        for numbers, width, prompt in prompts:
            own = numbers, slice(None), slice(longest - width, None)
            worth[own] = policy.selector.refine(worth[own], settled[numbers], prompt)
        keep[b] = select(worth, real[b], settled, policy.window)[:, 0]
    return rows, keep, rated, order


def compress_again(layer: RaggedLayer, query: torch.Tensor, valid: torch.Tensor | None, scaling: float) -> None:
    """Bring everything a layer keeps back to the budget, after a turn was appended and attended to.

    Args:
        query: (B, Hq, T, D) of the turn.
        valid: (B, T) bool, which of its tokens are real; None means all.
        scaling: factor of the logits.
    """
    slab = layer.slab
    assert slab is not None and layer.slots is not None
    batch, heads = slab.batch, slab.num_kv_heads
    count = [query.shape[2]] * batch if valid is None else valid.sum(-1).tolist()
    totals = None
    if layer.eviction is not None:
        # What layers have was settled by the first prompt: a layer cannot get back what it evicted since.
        totals = layer.eviction.limit.view(batch, heads).sum(-1).tolist()
        added = slab.lengths.new_tensor(count).repeat_interleave(heads)
        order = layer.eviction.order_after(slab, added).view(batch, heads, -1)
        layer.tokens = (order.amax(dim=(1, 2)) + 1).tolist()
    else:
        rows, real = slab.padded_rows()
        order = torch.arange(rows.shape[-1], dtype=torch.int64, device=rows.device).masked_fill(~real, -1)
        grown = slab.lengths.view(batch, heads)[:, 0] - layer.slots[:, 0]
        layer.tokens = [before + new for before, new in zip(layer.tokens, grown.tolist(), strict=True)]
    rows, keep, rated, order = choose(layer, slab, order, query, count, layer.tokens, totals, scaling)
    capacity = layer.watch(keep, rated, order) + 1 if layer.hold_budget else None
    slab.rearrange(rows[keep], keep.flatten(0, 1).sum(-1), capacity=capacity)
    layer.settle(layer.seen)
    kept = layer.slots.sum(-1).tolist()
    layer.evicted = [heads * seen - held for seen, held in zip(layer.tokens, kept, strict=True)]
