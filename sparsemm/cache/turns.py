"""Re-compresses the cache after a later turn, as the newest rows of that turn rate it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from sparsemm.budgets import Slots, fill
from sparsemm.cache.slab import Slab, bucket_by_length
from sparsemm.policies.selector import Prompt, select

if TYPE_CHECKING:
    from sparsemm.cache.layer import RaggedLayer


def clip_slots(slots: Slots, total: int, available: Slots, window: int) -> Slots:
    """Returns slots (Hkv,) int64 with sum `total`, in proportion to `slots`, at most `available` rows of each head.

    Every head gets its window first.
    """
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
    """Selects the rows that each head keeps, with the policy's own rating and its budgets for all `tokens`.

    The rows of a head count as its whole past: softmax and pooling know nothing of evicted tokens. The observation
    window is the newest rows of the turn, at most `policy.window`.

    Args:
        layer: the layer, with its policy and output projection.
        slab: the rows of the layer.
        order: (B, Hkv, longest) int64 number of the token in each row, negative in unused rows.
        query: (B, Hq, T, D) of the turn.
        new: real tokens of the turn in each batch row, the last ones of T.
        tokens: real tokens of the whole conversation in each batch row.
        totals: slots of the layer in each batch row; None lets the policy decide.

    Returns:
        Row numbers (B, Hkv, longest), oldest first and aligned to the right; which of them to keep, bool; their
        ratings, fp32; their token numbers, negative in unused rows.
    """
    policy = layer.policy
    rows, _ = slab.padded_rows()
    order, by_age = order.sort(dim=-1, stable=True)
    rows, real = rows.gather(-1, by_age), order >= 0
    batch, num_kv_heads, longest = rows.shape
    rated = torch.full(rows.shape, float("-inf"), dtype=torch.float32, device=rows.device)
    keep = torch.zeros_like(real)
    available = real.sum(-1).cpu().numpy()
    reads = policy.selector.reads
    refines = "slots" in reads
    for b in range(batch):  # batch rows differ in the size of their observation window
        prompts: list[tuple[torch.Tensor, int, Prompt]] = []
        for heads, width in bucket_by_length(available[b].tolist()):
            queries = query[b].unflatten(0, (num_kv_heads, -1))[heads, :, -new[b] :]
            part = b, heads, slice(longest - width, None)
            keys = slab.read_keys(rows[part])[:, None]
            values = slab.read_values(rows[part])[:, None] if "value" in reads else None
            numbers = torch.tensor(heads, dtype=torch.int64, device=rows.device)
            prompt = layer.prompt(queries, keys, values, real[part], scaling, numbers)
            rated[part] = policy.selector.rate(prompt)[:, 0]
            if refines:
                prompts.append((numbers, width, prompt))
        outside = rated[b].clone()
        outside[:, max(longest - policy.window, 0) :] = float("-inf")
        slots = policy.for_rows([b]).slots(layer.index, [tokens[b]], outside[None])[0]
        total = int(slots.sum()) if totals is None else min(totals[b], int(available[b].sum()))
        slots = clip_slots(slots, total, available[b], policy.window)
        counts = torch.from_numpy(slots).to(rows.device)[:, None]
        refined = rated[b][:, None].clone() if refines else rated[b][:, None]
        for numbers, width, prompt in prompts:
            columns = numbers, slice(None), slice(longest - width, None)
            refined[columns] = policy.selector.refine(refined[columns], counts[numbers], prompt)
        keep[b] = select(refined, real[b], counts, policy.window)[:, 0]
    return rows, keep, rated, order


def compress_again(layer: RaggedLayer, query: torch.Tensor, valid: torch.Tensor | None, scaling: float) -> None:
    """Compresses everything that a layer keeps to the budget, after a turn was appended and attended to.

    Args:
        layer: the layer.
        query: (B, Hq, T, D) of the turn.
        valid: (B, T) bool, which of its tokens are not padding; None means all.
        scaling: factor of the logits.
    """
    slab = layer.slab
    assert slab is not None and layer.slots is not None
    batch, heads = slab.batch, slab.num_kv_heads
    count = [query.shape[2]] * batch if valid is None else valid.sum(-1).tolist()
    totals = None
    if layer.eviction is not None:
        # The first prompt has fixed the slots of each layer: a layer cannot get back what it has evicted since.
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
    capacity = layer.start_eviction(keep, rated, order) + 1 if layer.hold_budget else None
    slab.rearrange(rows[keep], keep.flatten(0, 1).sum(-1), capacity=capacity)
    layer.finish(layer.seen)
    kept = layer.slots.sum(-1).tolist()
    layer.evicted = [heads * seen - rows for seen, rows in zip(layer.tokens, kept, strict=True)]
