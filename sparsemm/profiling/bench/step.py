"""`sparsemm bench step`: times the prompt and the decode steps of a whole model with each cache."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from sparsemm.profiling import clock
from sparsemm.profiling.bench.caches import caches, options
from sparsemm.profiling.bench.setting import BenchResult, Setting
from sparsemm.profiling.held_bytes import cache_bytes, weight_bytes
from sparsemm.profiling.latency import time_once
from sparsemm.profiling.shapes import random_model

STEPS = 8  # timed steps, after one for warm-up
Times = dict[str, list[float]]


def run(setting: Setting) -> BenchResult:
    """Times prompts and decode steps of a model with random weights; the caches take turns to be first.

    A step reads the weights and the cache; a growing or copying cache is also copied.
    """
    rows, ratios, device = [], {}, setting.device
    model = random_model(setting.shape, setting.dtype, device, max(setting.lengths) + 2 * STEPS)
    weights = weight_bytes(model)
    for length in setting.prompts:
        times, sizes = _turns(model, setting, length)
        row: dict[str, Any] = {"length": length, "budget": min(setting.budget, length), "cache_bytes": sizes}
        copies = {"dynamic": 3, "copying": 3}  # these caches are also read and written to copy them
        moved = {f"{name}_step": weights + copies.get(name, 1) * size for name, size in sizes.items()}
        result = clock.summary(times, moved | {"copy": clock.copies(device)[1]})
        rows.append(row | {"weight_bytes": weights, "times": result})
        label = setting.label(length)
        ratios[f"compression_share_of_prefill_{label}"] = clock.ratio(times, "compression", "sparsemm_prefill")
        for other in sizes:
            if other != "sparsemm":
                ratios[f"{other}_over_sparsemm_step_{label}"] = clock.ratio(times, f"{other}_step", "sparsemm_step")
    return rows, ratios


def _turns(model: Any, setting: Setting, length: int) -> tuple[Times, dict[str, int]]:
    """Returns seconds of prompts, steps, compression and a copy, and the bytes of each cache at the end."""
    device = setting.device
    prompt = {"input_ids": torch.randint(3, setting.shape.vocab_size, (1, length), dtype=torch.int64, device=device)}
    prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
    makers = caches(model, setting, length, STEPS + 2) | options(model, setting, length)
    names, copy = list(makers), clock.copies(device)[0]
    times: Times = defaultdict(list)
    sizes: dict[str, int] = {}
    for turn in range(max(2, setting.repeats // 3) + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            cache = makers[name]()
            timing = time_once(model, prompt, cache, STEPS + 2)
            sizes[name] = cache_bytes(cache)[0]
            copy_seconds = clock.seconds(copy, device)
            if turn == 0:
                continue  # the warm-up
            times["copy"].append(copy_seconds)
            times[f"{name}_prefill"].append(timing.prefill)
            times[f"{name}_step"].extend(timing.decode[1:])
            if name == "sparsemm":
                times["compression"].append(timing.compression)
    return dict(times), sizes
