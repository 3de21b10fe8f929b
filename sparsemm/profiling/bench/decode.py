"""`sparsemm bench decode`: times the attention of one new token over a layer's kept rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from transformers import DynamicCache

from sparsemm.cache.slab import Slab, rows_of
from sparsemm.ops.ragged_decode import BACKENDS, Decode, ragged_decode, usable
from sparsemm.profiling import clock
from sparsemm.profiling.bench.baselines import CopyingAppend
from sparsemm.profiling.bench.setting import BenchResult, Setting
from sparsemm.profiling.held_bytes import tensor_bytes

Segments = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # keys, values, starts, lengths


def run(setting: Setting) -> BenchResult:
    """Times the attention of one new token over a layer's kept rows, on many layers in turn.

    With many layers, the rows do not stay in the processor's caches. `full` is SDPA over a preallocated static cache;
    `dynamic` and `copying` also append the token.
    """
    shape, (_, middle, long) = setting.shape, setting.lengths
    # "long" has heads for the whole device and evicts nothing; the others have the budget of a compressed prompt.
    many = max(1, -(-128 // shape.num_key_value_heads)) if setting.device.type == "cuda" else 1
    cases = {
        "long": (many, middle, middle),
        "8k_b256": (1, middle, setting.budget),
        "32k_b256": (1, long, setting.budget),
    }
    rows, ratios = [], {}
    for case, (batch, length, budget) in cases.items():
        keys, values = setting.layer(batch, length)
        layers = slabs(setting, keys, values, setting.keep(batch, length, min(budget, length)))
        functions = _decodes(setting, keys, values, layers)
        functions["copy"], copied = clock.copies(setting.device)
        times = clock.alternating(functions, setting.repeats, setting.device)
        kept = 2 * int(layers[0][3].sum()) * shape.head_dim * keys.element_size()
        moved = dict.fromkeys(functions, kept)
        full = tensor_bytes(keys, values)
        moved |= {"full": full, "dynamic": 3 * full, "copying": 3 * kept, "copy": copied}
        result = clock.summary(times, moved)
        row = {"case": case, "batch": batch, "length": length, "longest": int(layers[0][3].max())}
        rows.append(row | {"budget": min(budget, length), "layers": len(layers), "times": result})
        for name in ("full", "dynamic", "copying"):
            ratios[f"{name}_over_ragged_decode_{case}"] = clock.ratio(times, name, "ragged_decode")
        if case == "long":
            ratios["decode_bandwidth_share"] = result["ragged_decode"]["copy_share"]
    return rows, ratios


def _decodes(setting: Setting, keys: torch.Tensor, values: torch.Tensor, layers: list[Segments]) -> clock.Functions:
    shape, batch = setting.shape, len(keys)
    query = setting.normal(batch, shape.num_attention_heads, shape.head_dim, seed=3)
    new = setting.normal(batch, shape.num_key_value_heads, 1, shape.head_dim, seed=5)
    grouped = query.view(batch, shape.num_key_value_heads, shape.group, shape.head_dim)
    factor = shape.head_dim**-0.5
    attend = partial(F.scaled_dot_product_attention, grouped, scale=factor)
    functions: clock.Functions = {
        "full": partial(attend, keys, values),
        "dynamic": _dynamic(keys, values, new, attend),
        "copying": _copying(keys.shape[-1], layers[0], new, partial(ragged_decode, query), factor),
        "ragged_decode": each(layers, ragged_decode, query, factor),
    }
    servers = BACKENDS[setting.device.type]
    names = usable(query, layers[0][0], layers[0][1])
    return functions | {name: each(layers, servers[name], query, factor) for name in names}


def slabs(setting: Setting, keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor) -> list[Segments]:
    """Returns slabs with the same rows, together more than the processor's caches hold."""
    slab = Slab(keys, values, keep)
    count = clock.COPIED[setting.device.type] // 2 // max(1, tensor_bytes(slab.keys, slab.values))
    copies = [(slab.keys, slab.values)] + [(slab.keys.clone(), slab.values.clone()) for _ in range(min(64, count) - 1)]
    return [(*rows, slab.starts, slab.lengths) for rows in copies]


def each(layers: list[Segments], call: Decode, query: torch.Tensor, factor: float) -> Callable[[], Any]:
    """Returns a function that decodes another layer at every call."""
    at = 0

    def run() -> None:
        nonlocal at
        at = (at + 1) % len(layers)
        call(query, *layers[at], factor)

    return run


def _dynamic(
    keys: torch.Tensor, values: torch.Tensor, new: torch.Tensor, attend: Callable[..., torch.Tensor]
) -> Callable[[], Any]:
    cache = DynamicCache()
    cache.update(keys, values, 0)
    layer: Any = cache.layers[0]

    def run() -> None:
        attend(*layer.update(new, new))
        layer.keys, layer.values = keys, values  # drops the token, so that all calls are alike

    return run


def _copying(
    dim: int, segments: Segments, new: torch.Tensor, decode: Callable[..., torch.Tensor], factor: float
) -> Callable[[], Any]:
    keys, values, starts, lengths = segments
    rows = rows_of(starts, lengths)
    append, one = CopyingAppend(keys[rows], values[rows], lengths), new.reshape(-1, dim)
    grown = lengths + 1
    begins = grown.cumsum(0) - grown
    return lambda: decode(*append(one, one), begins, grown, factor)
