"""A later turn: which of everything kept stays, seen from the turn's newest rows."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from sparsemm.budgets import Slots, fill
from sparsemm.cache.slab import Slab
from sparsemm.policies import Policy
from sparsemm.policies.observation import select


def within(slots: Slots, available: Slots) -> Slots:
    """(Hkv,) int64 slots of the same sum if there is so much, none above what its head still has."""
    most = np.minimum(slots, available)
    lost = min(int((slots - most).sum()), int((available - most).sum()))
    return most + fill(slots.astype(np.float64), lost, available - most)


def choose(
    policy: Policy,
    layer: int,
    slab: Slab,
    order: torch.Tensor,
    query: torch.Tensor,
    new: list[int],
    tokens: list[int],
    pooling_kernel: int,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What every head keeps of its rows, by the policy's own rating and budgets for all `tokens`.

    A head's rows are taken as its whole past: softmax, pooling and neighbourhood know nothing of evicted tokens. The
    rows that observe are the turn's newest, at most `policy.window`.

    Args:
        order: (B, Hkv, longest) int64 number of each row's token, negative where it is not in use.
        query: (B, Hq, T, D) of the turn.
        new: real tokens of the turn in each batch row, the last ones of T.
        tokens: real tokens of the whole conversation in each batch row.

    Returns:
        Row numbers (B, Hkv, longest), oldest first and aligned to the right; which to keep, bool; what they are worth,
        fp32; the number of their tokens, negative where there is none.
    """
    rows, _ = slab.padded_rows()
    order, by_age = order.sort(dim=-1, stable=True)
    rows, real = rows.gather(-1, by_age), order >= 0
    keys = slab.read_keys(rows)
    batch, num_kv_heads, longest = rows.shape
    rated = torch.full(rows.shape, float("-inf"), device=rows.device)
    keep = torch.zeros_like(real)
    held = real.sum(-1).cpu().numpy()
    for b in range(batch):  # batch rows differ in how many of their newest rows may observe
        mine = query[b].unflatten(0, (num_kv_heads, -1))[:, :, -new[b] :]
        if not policy.every_row:
            mine = F.pad(mine, (0, 0, longest - new[b], 0))
        observing = min(policy.window, new[b])
        rated[b] = policy.rate(mine, keys[b][:, None], real[b], observing, pooling_kernel, scaling)[:, 0]
        outside = rated[b].clone()
        outside[:, max(longest - policy.window, 0) :] = float("-inf")
        slots = within(policy.slots(layer, [tokens[b]], outside[None])[0], held[b])
        mine_slots = torch.from_numpy(slots).to(rows.device)[:, None]
        keep[b] = select(rated[b][:, None], real[b], mine_slots, policy.window)[:, 0]
    return rows, keep, rated, order
