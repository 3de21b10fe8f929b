"""`python -m benchmarks skew`: what reading one layer takes when one head holds nearly all of its rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from sparsemm.cache import tiles
from sparsemm.cache.attention import attend
from sparsemm.cache.quantized import STORAGES, QuantizedSlab
from sparsemm.cache.slab import Slab
from sparsemm.profiling import clock
from sparsemm.profiling.bench.setting import BenchResult, Setting
from sparsemm.profiling.held_bytes import peak_bytes

TURN = 8  # tokens of a later turn


def run(setting: Setting) -> BenchResult:
    """Time of a read and the most it allocates, over the bytes of the rows in the model's dtype.

    The layer keeps equally many rows in every head ("even"), or the same total with the window in every head but one
    ("one"). `hold_budget` is a step that also wants the weights, `turn` one of 8 new tokens.
    """
    rows: list[dict[str, Any]] = []
    functions: clock.Functions = {}
    ratios: dict[str, float] = {}
    moved: dict[str, int] = {}
    for case, lengths in _lengths(setting).items():
        reads = _reads(setting, lengths)
        held = 2 * int(lengths.sum()) * setting.shape.head_dim * setting.dtype.itemsize
        peaks = {name: peak_bytes(read, setting.device) for name, read in reads.items()}
        rows.append({"case": case, "longest": int(lengths.max()), "row_bytes": held, "peak_bytes": peaks})
        functions |= {f"{name}_{case}": read for name, read in reads.items()}
        moved |= {f"{name}_{case}": held for name in reads}
        ratios |= {f"{name}_{case}_peak_over_rows": round(peak / held, 3) for name, peak in peaks.items()}
    functions["copy"], moved["copy"] = clock.copies(setting.device)
    times = clock.alternating(functions, setting.repeats, setting.device)
    rows.append({"times": clock.summary(times, moved)})
    return rows, ratios | {f"{name}_one_over_even": clock.ratio(times, f"{name}_one", f"{name}_even") for name in reads}


def _lengths(setting: Setting) -> dict[str, torch.Tensor]:
    """Rows (1, Hkv) of every head, of one total."""
    heads, budget = setting.shape.num_key_value_heads, setting.budget
    even = torch.full((1, heads), budget, dtype=torch.int64, device="cpu")
    one = torch.full((1, heads), min(setting.window, budget), dtype=torch.int64, device="cpu")
    one[0, heads // 2] += int(even.sum() - one.sum())
    return {"even": even, "one": one}


def _reads(setting: Setting, lengths: torch.Tensor) -> clock.Functions:
    shape = setting.shape
    keys, values = setting.layer(1, int(lengths.max()))
    keep = (torch.arange(keys.shape[2], dtype=torch.int64, device="cpu") < lengths[..., None]).to(setting.device)
    slabs = {"model": Slab(keys, values, keep)}
    slabs |= {storage: QuantizedSlab(keys, values, keep, storage=storage) for storage in STORAGES}
    query = setting.normal(1, shape.num_attention_heads, TURN, shape.head_dim, seed=2)
    scaling = shape.head_dim**-0.5
    one = query[:, :, :1].contiguous()
    reads: clock.Functions = {name: partial(tiles.decode, one, slab, scaling) for name, slab in slabs.items()}
    reads["hold_budget"] = partial(tiles.watched_decode, one, slabs["model"], scaling)
    reads["turn"] = partial(attend, query, slabs["model"], scaling)  # its newest rows count as the turn's
    return reads
