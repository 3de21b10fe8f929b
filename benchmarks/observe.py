"""`python -m benchmarks observe`: times the observation scores of one layer's prompt."""

from __future__ import annotations

from functools import partial

import torch

from sparsemm.ops.observe import observe, reference
from sparsemm.profiling import clock
from sparsemm.profiling.bench.setting import BenchResult, Setting
from sparsemm.profiling.held_bytes import tensor_bytes

POOLING = 5


def run(setting: Setting) -> BenchResult:
    """Times the observation scores of one layer's prompt; caches that evict nothing have no counterpart."""
    rows, ratios = [], {}
    for length in setting.lengths[:2]:
        keys, _ = setting.layer(1, length)
        query = setting.normal(1, setting.shape.num_attention_heads, setting.window, setting.shape.head_dim, seed=3)
        valid = torch.ones(1, length, dtype=torch.bool, device=setting.device)
        inputs = query, keys, valid, POOLING, setting.shape.head_dim**-0.5
        functions: clock.Functions = {
            "observe": partial(observe, *inputs),
            "twin": partial(reference, *inputs),
        }
        functions["copy"], copied = clock.copies(setting.device)
        times = clock.alternating(functions, setting.repeats, setting.device)
        moved = {"observe": 2 * tensor_bytes(keys), "copy": copied}  # the keys are read twice
        rows.append({"length": length, "window": setting.window, "times": clock.summary(times, moved)})
        ratios[f"twin_over_observe_{setting.label(length)}"] = clock.ratio(times, "twin", "observe")
    return rows, ratios
