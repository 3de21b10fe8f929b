"""`python -m benchmarks compact`: times the copy of a layer's kept positions into the slab."""

from __future__ import annotations

from functools import partial

import torch
from transformers import DynamicCache

from sparsemm.cache.slab import Slab
from sparsemm.ops.compact import compact, reference
from sparsemm.profiling import clock
from sparsemm.profiling.bench.setting import BenchResult, Setting
from sparsemm.profiling.held_bytes import tensor_bytes


def run(setting: Setting) -> BenchResult:
    """Times the copy of a layer's kept positions into the slab, and what other caches do with a prompt."""
    rows, ratios = [], {}
    for length in setting.lengths[1:]:
        keys, values = setting.layer(1, length)
        keep = setting.keep(1, length, min(setting.budget, length // 2))
        kept = 2 * int(keep.sum()) * keys.shape[-1] * keys.element_size()
        functions = _compactions(keys, values, keep)
        functions["copy"], copied = clock.copies(setting.device)
        times = clock.alternating(functions, setting.repeats, setting.device)
        moved = {name: 2 * kept + tensor_bytes(keep) for name in ("compact", "copying")} | {"copy": copied}
        moved |= {"static": 2 * tensor_bytes(keys, values)}
        rows.append({"length": length, "kept": int(keep.sum()), "times": clock.summary(times, moved)})
        for name in ("twin", "gather", "copying", "static", "dynamic"):
            ratios[f"{name}_over_compact_{setting.label(length)}"] = clock.ratio(times, name, "compact")
    return rows, ratios


def _compactions(keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor) -> clock.Functions:
    slab = Slab(keys, values, keep)
    index = (
        keep.float().topk(slab.longest, dim=-1).indices.sort(-1).values[..., None].expand(-1, -1, -1, keys.shape[-1])
    )
    chosen = [(h, head.nonzero().flatten()) for h, head in enumerate(keep[0])]
    inputs = slab.keys, slab.values, keys, values, keep, slab.starts
    room = torch.empty_like(keys), torch.empty_like(values)
    return {
        "compact": partial(compact, *inputs),
        "twin": partial(reference, *inputs),
        # All heads as long as the longest, as in a cache without ragged storage.
        "gather": lambda: (keys.gather(2, index), values.gather(2, index)),
        "copying": partial(compact_head_by_head, keys[0], values[0], chosen),
        # These two evict nothing: the prompt is copied to a preallocated buffer, or kept as it is.
        "static": lambda: (room[0].copy_(keys), room[1].copy_(values)),
        "dynamic": lambda: DynamicCache().update(keys, values, 0),
    }


def compact_head_by_head(
    keys: torch.Tensor, values: torch.Tensor, chosen: list[tuple[int, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Evicts as the public head-wise codes do: in a loop over the heads, with a concatenation at the end.

    Args:
        keys, values: (Hkv, S, D).
        chosen: heads and their kept positions (n,) int64.

    Returns:
        keys and values (sum of n, D).
    """
    return torch.cat([keys[h, at] for h, at in chosen]), torch.cat([values[h, at] for h, at in chosen])
