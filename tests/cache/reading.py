"""The slow way to read a slab: every head padded to the longest."""

from __future__ import annotations

import torch


def read_padded(slab):
    """Keys and values (B, Hkv, longest, D) and which rows of them are real (B, Hkv, longest) bool."""
    rows, real = slab.padded_rows()
    return slab.read_keys(rows), slab.read_values(rows), real


def attention(query, slab, scaling):
    """Output (B, Hq, 1, D) and weights (B, Hq, longest) in fp64 of one token over a padded slab; zeros without rows."""
    keys, values, real = (t.repeat_interleave(query.shape[1] // slab.num_kv_heads, dim=1) for t in read_padded(slab))
    logits = (query.double() @ keys.double().mT * scaling).masked_fill(~real[:, :, None], float("-inf"))
    weights = torch.softmax(logits, dim=-1).nan_to_num(0.0)
    return weights @ values.double(), weights[:, :, 0]
