"""`python -m benchmarks attention`: causal attention of whole prompts, against torch's sdpa."""

from __future__ import annotations

from functools import partial

import torch

from sparsemm.ops.causal_attention import causal_attention, reference
from sparsemm.profiling import clock
from sparsemm.profiling.bench.setting import BenchResult, Setting


def run(setting: Setting) -> BenchResult:
    """One layer's prompts: eight short ones, padded on the left by up to an eighth, and single long ones.

    The twin is sdpa without a mask, sample by sample where they are padded; on a CUDA device it is what serves.
    """
    shape, (short, long, _) = setting.shape, setting.lengths
    rows, ratios = [], {}
    for case, batch, length in (("padded", 8, short // 4), ("1k", 1, short), ("8k", 1, long)):
        keys, values = setting.layer(batch, length)
        query = setting.normal(batch, length, shape.num_attention_heads, shape.head_dim, seed=3).transpose(1, 2)
        firsts = torch.arange(batch, dtype=torch.int64, device=setting.device) * length // 64
        inputs = query, keys, values, firsts, torch.full_like(firsts, length), shape.head_dim**-0.5
        functions: clock.Functions = {
            "causal_attention": partial(causal_attention, *inputs),
            "sdpa": partial(reference, *inputs),
        }
        times = clock.alternating(functions, setting.repeats, setting.device)
        rows.append({"case": case, "batch": batch, "length": length, "times": clock.summary(times, {})})
        ratios[f"sdpa_over_causal_attention_{case}"] = clock.ratio(times, "sdpa", "causal_attention")
    return rows, ratios
