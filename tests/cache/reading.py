"""The slow way to read a slab, every head padded to the longest; and a watch over what is read on the host."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


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


class NoHostReads(TorchDispatchMode):
    """Refuses every operation that would wait for a device."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "item", "unique", "is_nonzero", "equal")

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        indexed_by_bool = name.startswith("index") and any(
            t is not None and t.dtype == torch.bool for t in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        if name in self.WAITS or indexed_by_bool:
            raise AssertionError(f"{name} reads the device on the host")
        return op(*args, **(kwargs or {}))
