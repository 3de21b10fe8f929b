"""`sparsemm bench step`: the prompt and the decode steps of a whole model, cache by cache."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from sparsemm.profiling import clock
from sparsemm.profiling.bench.caches import caches, options
from sparsemm.profiling.bench.setting import Found, Setting
from sparsemm.profiling.latency import time_once
from sparsemm.profiling.memory import cache_bytes, weight_bytes
from sparsemm.profiling.shapes import random_model

STEPS = 8  # timed; one more before them warms up
Times = dict[str, list[float]]


def run(setting: Setting) -> Found:
    """Prompts and decode steps of a model with random weights; every turn starts with another cache.

    A step reads the weights and what the cache holds; a growing or copying cache also reads and writes it once more.
    """
    rows, ratios, device = [], {}, setting.device
    model = random_model(setting.shape, setting.dtype, device, max(setting.lengths) + 2 * STEPS)
    weights = weight_bytes(model)
    for length in setting.prompts:
        times, held = _turns(model, setting, length)
        row: dict[str, Any] = {"length": length, "budget": min(setting.budget, length), "cache_bytes": held}
        again = {"dynamic": 2, "copying": 2}
        moved = {f"{name}_step": weights + (1 + again.get(name, 0)) * size for name, size in held.items()}
        result = clock.summary(times, moved | {"copy": clock.copies(device)[1]})
        rows.append(row | {"weight_bytes": weights, "times": result})
        label = setting.label(length)
        ratios[f"compression_share_of_prefill_{label}"] = clock.ratio(times, "compression", "sparsemm_prefill")
        for other in held:
            if other != "sparsemm":
                ratios[f"{other}_over_sparsemm_step_{label}"] = clock.ratio(times, f"{other}_step", "sparsemm_step")
    return rows, ratios


def _turns(model: Any, setting: Setting, length: int) -> tuple[Times, dict[str, int]]:
    """Seconds of prompts, steps, compression and a copy; bytes that each cache holds in the end."""
    device = setting.device
    prompt = {"input_ids": torch.randint(3, setting.shape.vocab_size, (1, length), dtype=torch.int64, device=device)}
    prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
    makers = caches(model, setting, length, STEPS + 2) | options(model, setting, length)
    names, copy = list(makers), clock.copies(device)[0]
    times: Times = defaultdict(list)
    held: dict[str, int] = {}
    for turn in range(max(2, setting.repeats // 3) + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            cache = makers[name]()
            seen = time_once(model, prompt, cache, STEPS + 2)
            held[name] = cache_bytes(cache)[0]
            copied = clock.seconds(copy, device)
            if turn == 0:
                continue  # warms up
            times["copy"].append(copied)
            times[f"{name}_prefill"].append(seen.prefill)
            times[f"{name}_step"].extend(seen.decode[1:])
            if name == "sparsemm":
                times["compression"].append(seen.compression)
    return dict(times), held
