"""`python -m benchmarks append`: times the append of one token to caches of different lengths."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

from sparsemm.cache.slab import Slab
from sparsemm.ops.append import append_row
from sparsemm.profiling import clock
from sparsemm.profiling.bench.baselines import CopyingAppend
from sparsemm.profiling.bench.setting import BenchResult, Setting
from sparsemm.profiling.held_bytes import tensor_bytes


class StaticAppend:
    """Overwrites a row of a preallocated cache (B, Hkv, S, D)."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values
        self.at = torch.tensor([keys.shape[2] - 1], dtype=torch.int64, device=keys.device)

    def __call__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Writes keys and values (B, Hkv, 1, D)."""
        self.keys.index_copy_(2, self.at, keys)
        self.values.index_copy_(2, self.at, values)


def run(setting: Setting) -> BenchResult:
    """Times the append of one token to caches of different lengths that evict nothing."""
    short, _, long = setting.lengths
    new = setting.normal(1, setting.shape.num_key_value_heads, 1, setting.shape.head_dim)
    functions: clock.Functions = {}
    moved: dict[str, int] = {}
    for length in (short, long):
        keys, values = setting.layer(1, length)
        functions |= {f"{name}_{length}": call for name, call in _appends(setting, keys, values, new).items()}
        moved |= {f"{name}_{length}": 4 * tensor_bytes(new) for name in ("append", "static")}
        moved |= {
            f"{name}_{length}": 2 * tensor_bytes(keys, values) + 4 * tensor_bytes(new) for name in ("copy", "dynamic")
        }
    functions["copy"], moved["copy"] = clock.copies(setting.device)
    times = clock.alternating(functions, setting.repeats, setting.device)
    rows = [{"lengths": [short, long], "times": clock.summary(times, moved)}]
    return rows, {
        "append_32k_over_1k": clock.ratio(times, f"append_{long}", f"append_{short}"),
        "copy_append_32k_over_1k": clock.ratio(times, f"copy_{long}", f"copy_{short}"),
        "copy_append_over_append_32k": clock.ratio(times, f"copy_{long}", f"append_{long}"),
        "dynamic_append_over_append_32k": clock.ratio(times, f"dynamic_{long}", f"append_{long}"),
        "static_append_over_append_32k": clock.ratio(times, f"static_{long}", f"append_{long}"),
    }


def _appends(setting: Setting, keys: torch.Tensor, values: torch.Tensor, new: torch.Tensor) -> clock.Functions:
    heads, length, dim = keys.shape[1:]
    keep = torch.ones(keys.shape[:3], dtype=torch.bool, device=setting.device)
    lengths = torch.full((heads,), length, dtype=torch.int64, device=setting.device)
    dynamic = DynamicCache()
    dynamic.update(keys, values, 0)
    (layer,) = dynamic.layers
    row = new.view(-1, dim)
    return {
        "append": _ours(Slab(keys, values, keep), row),
        "copy": partial(CopyingAppend(keys.reshape(-1, dim), values.reshape(-1, dim), lengths), row, row),
        "dynamic": _dynamic(layer, keys, values, new),
        "static": partial(StaticAppend(keys.clone(), values.clone()), new, new),
    }


def _ours(slab: Slab, rows: torch.Tensor) -> Callable[[], Any]:
    # The new lengths are computed and discarded, so that all calls are equal and the slab does not grow.
    def call() -> None:
        append_row(slab.keys, slab.values, rows, rows, slab.starts, slab.lengths)
        slab.lengths + 1

    return call


def _dynamic(layer: Any, keys: torch.Tensor, values: torch.Tensor, new: torch.Tensor) -> Callable[[], Any]:
    def call() -> None:
        layer.update(new, new)
        layer.keys, layer.values = keys, values

    return call
