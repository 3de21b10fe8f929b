"""`sparsemm bench backends`: finds the fastest decode backend of a device, by batch and budget."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from sparsemm.ops.ragged_decode import BACKENDS, usable
from sparsemm.profiling import clock
from sparsemm.profiling.bench.decode import each, slabs
from sparsemm.profiling.bench.setting import BenchResult, Setting

BATCHES = (1, 8)
BUDGETS = (64, 256, 1024, 8192)  # mean rows per KV head
MARGIN = 1.05  # another backend has to be faster than ours by this factor; less is noise


def run(setting: Setting) -> BenchResult:
    """Times every usable backend over the kept rows of a layer, in turns, and chooses one per batch and budget.

    On a CUDA device a backend that cannot be captured in a CUDA graph is timed but not chosen, because a cache of fixed
    capacity could not use it.
    """
    shape, rows = setting.shape, []
    for batch in BATCHES:
        for budget in BUDGETS:
            keys, values = setting.layer(batch, 2 * budget)
            layers = slabs(setting, keys, values, setting.keep(batch, 2 * budget, budget))
            query = setting.normal(batch, shape.num_attention_heads, shape.head_dim, seed=3)
            servers = BACKENDS[setting.device.type]
            functions: clock.Functions = {
                name: each(layers, servers[name], query, shape.head_dim**-0.5)
                for name in usable(query, layers[0][0], layers[0][1])
            }
            times = clock.alternating(functions, setting.repeats, setting.device)
            eligible = [name for name in functions if captures(name, functions[name], setting.device)]
            chosen = fastest(times, eligible or [*functions])
            segments = len(layers[0][2])
            rows.append(
                {
                    "dtype": str(setting.dtype).removeprefix("torch."),
                    "head_dim": shape.head_dim,
                    "group": shape.group,
                    "segments": segments,
                    "rows": len(layers[0][0]) // segments,
                    "backend": chosen,
                    "batch": batch,
                    "budget": budget,
                    "times": clock.summary(times, {}),
                }
            )
    winners = [row["backend"] for row in rows]
    return rows, {"ours_fastest_share": round(winners.count("ours") / len(winners), 4)}


def fastest(times: dict[str, list[float]], eligible: list[str]) -> str:
    """Returns the eligible backend with the smallest median, but the first unless another is faster by `MARGIN`."""
    medians = {name: statistics.median(times[name]) for name in eligible}
    best = min(eligible, key=lambda name: medians[name])
    return best if medians[eligible[0]] > MARGIN * medians[best] else eligible[0]


def captures(name: str, call: Callable[[], Any], device: torch.device) -> bool:
    """Returns whether a function can be captured in a CUDA graph; on other devices nothing is captured."""
    if device.type != "cuda":
        return True
    if name in clock.WAITING:
        return False
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            call()
    except RuntimeError:
        torch.cuda.synchronize(device)
        return False
    return True
