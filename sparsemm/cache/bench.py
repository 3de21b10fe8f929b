"""Decode step of the ragged cache against its twin and a full cache: `python -m sparsemm.cache.bench` prints JSON."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from sparsemm.cache import library, ops, twins
from sparsemm.cache.slab import Slab

COPIED = 256 << 20  # bytes of the copy that measures bandwidth: more than any cache of the processor

# Batch rows, KV heads, query heads per KV head, head dimension, prompt tokens, mean budget.
SHAPES = [
    (1, 8, 4, 128, 8192, 256),
    (1, 8, 4, 128, 32768, 256),
    (1, 4, 7, 128, 8192, 256),
    (1, 32, 1, 128, 2048, 256),
    (4, 8, 4, 128, 2048, 2048),  # nothing evicted: long heads, held against the bandwidth of a copy
]


def alternating(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every function, called in turns so that a busy machine is busy for all of them."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - began)
    return times


def measure(
    batch: int, heads: int, group: int, dim: int, length: int, budget: int, dtype: torch.dtype, repeats: int
) -> dict[str, Any]:
    """One shape: seconds (median and quartiles), bytes and ratios of a decode step's attention and of an append.

    Budgets vary between heads by a factor of up to 16 around the mean. "full" is torch's SDPA over a preallocated
    cache of all `length` tokens, which was padded to be equally long in every head already; "twin" pads the ragged
    slab at every step.
    """
    generator = torch.Generator().manual_seed(0)
    share = torch.exp2(4 * torch.rand(batch, heads, generator=generator))
    slots = (share / share.mean() * budget).long().clamp(1, length) if budget < length else None
    keys = torch.randn(batch, heads, length, dim, generator=generator).to(dtype)
    values = torch.randn(batch, heads, length, dim, generator=generator).to(dtype)
    rank = torch.rand(batch, heads, length, generator=generator).argsort(-1).argsort(-1)
    keep = torch.ones_like(rank, dtype=torch.bool) if slots is None else rank < slots[..., None]
    slab = Slab(keys, values, keep)
    query = torch.randn(batch, heads * group, dim, generator=generator).to(dtype)
    stretches = slab.keys, slab.values, slab.starts, slab.lengths
    rows = query.view(batch, heads, group, dim)
    new = torch.randn(batch * heads, dim, generator=generator).to(dtype)
    factor = dim**-0.5
    copied = torch.zeros(COPIED // 4), torch.ones(COPIED // 4)
    times = alternating(
        {
            "ours": lambda: ops.ragged_decode(query, *stretches, factor),
            "twin": lambda: twins.ragged_decode(query, *stretches, factor),
            "full": lambda: F.scaled_dot_product_attention(rows, keys, values, scale=factor),
            "append": lambda: ops.append(slab.keys, slab.values, new, new, slab.starts, slab.lengths),
            "append_twin": lambda: twins.append(slab.keys, slab.values, new, new, slab.starts, slab.lengths),
            "compact": lambda: ops.compact(slab.keys, slab.values, keys, values, keep, slab.starts),
            "compact_twin": lambda: twins.compact(slab.keys, slab.values, keys, values, keep, slab.starts),
            "copy": lambda: copied[0].copy_(copied[1]),
        },
        repeats,
    )
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    moved = 2 * int(slab.lengths.sum()) * dim * keys.element_size()
    return {
        "batch": batch,
        "num_kv_heads": heads,
        "group": group,
        "head_dim": dim,
        "length": length,
        "budget": budget,
        "dtype": str(dtype).removeprefix("torch."),
        "longest_head": slab.longest,
        "bytes": moved,
        "bytes_full": 2 * keys.numel() * keys.element_size(),
        "seconds": {name: [round(q, 8) for q in statistics.quantiles(seconds)] for name, seconds in times.items()},
        "ratios": {
            "twin_over_ragged_decode": round(median["twin"] / median["ours"], 2),
            "full_over_ragged_decode": round(median["full"] / median["ours"], 2),
            "append_twin_over_append": round(median["append_twin"] / median["append"], 2),
            "compact_twin_over_compact": round(median["compact_twin"] / median["compact"], 2),
            # A copy reads and writes; decode only reads.
            "decode_bandwidth_share": round((moved / median["ours"]) / (2 * COPIED / median["copy"]), 3),
        },
    }


def main() -> None:
    """Measure all shapes and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="timed turns for each shape")
    parser.add_argument("--dtype", default="float32", choices=[str(t).removeprefix("torch.") for t in library.DTYPES])
    given = parser.parse_args()
    if given.repeats < 2:
        parser.error("--repeats must be at least 2")
    with torch.inference_mode():
        rows = [measure(*shape, getattr(torch, given.dtype), given.repeats) for shape in SHAPES]
    print(
        json.dumps(
            {
                "bench": "cache",
                "device": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
                "library": ops.available(),
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
                "rows": rows,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
