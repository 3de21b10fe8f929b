"""`python -m benchmarks memory`: measures the bytes of caches after a prompt, and the peak memory."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

import torch

from sparsemm.profiling import clock
from sparsemm.profiling.bench.caches import Caches, caches
from sparsemm.profiling.bench.setting import BenchResult, Setting
from sparsemm.profiling.held_bytes import cache_bytes, peak_bytes_of_model, tensor_bytes, weight_bytes
from sparsemm.profiling.shapes import random_model

TURNS = 2


def run(setting: Setting) -> BenchResult:
    """Measures the bytes of caches after a prompt, its time, and the peak memory of tensors until the next token."""
    rows: list[dict[str, Any]] = []
    model = random_model(setting.shape, setting.dtype, setting.device, max(setting.lengths) + 2)
    for length in (setting.lengths[0], *setting.prompts):
        prompt = torch.randint(setting.shape.vocab_size, (1, length), dtype=torch.int64, device=setting.device)
        makers = caches(model, setting, length, 1)
        peaks = {
            f"{name}_peak_bytes": peak_bytes_of_model(model, partial(_run, model, prompt, make(), tokens=1))
            for name, make in makers.items()
        }
        row = {"length": length, "weight_bytes": tensor_bytes(*model.parameters())} | peaks
        rows.append(row | _prompts(model, setting, prompt, makers))
    last = rows[-1]
    ratios = {
        "slack_share": round(last["slab_bytes"] / last["kept_bytes"] - 1, 4),
        "full_over_kept_bytes": round(last["dynamic_bytes"] / last["kept_bytes"], 2),
        "static_over_slab_bytes": round(last["static_bytes"] / last["slab_bytes"], 2),
    }
    for name in ("copying", "dynamic", "static"):
        ratios[f"{name}_over_sparsemm_peak"] = round(last[f"{name}_peak_bytes"] / last["sparsemm_peak_bytes"], 3)
    return rows, ratios


def _prompts(model: Any, setting: Setting, prompt: torch.Tensor, makers: Caches) -> dict[str, Any]:
    """Measures bytes and seconds of every cache after the prompt; the caches take turns."""
    sizes: dict[str, Any] = {}
    times: dict[str, list[float]] = defaultdict(list)
    copy, copied = clock.copies(setting.device)
    for _ in range(TURNS):
        for name, make in makers.items():
            cache = make()
            times[name].append(clock.seconds(partial(_run, model, prompt, cache), setting.device))
            if name == "sparsemm":
                sizes |= {"kept_bytes": cache.kept_bytes(), "slab_bytes": cache.slab_bytes()}
                sizes["slots"] = int(cache.kept_slots().sum())
            elif name != "copying":  # it holds the same as ours
                sizes[f"{name}_bytes"] = cache_bytes(cache)[0]
            del cache
        times["copy"].append(clock.seconds(copy, setting.device))
    # The least traffic of a prompt: it reads the weights and writes its keys and values. Its products take the time.
    moved = dict.fromkeys(makers, weight_bytes(model) + sizes["dynamic_bytes"]) | {"copy": copied}
    return sizes | {"times": clock.summary(times, moved)}


def _run(model: Any, prompt: torch.Tensor, cache: Any, tokens: int = 0) -> None:
    newest = model(prompt, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
    for _ in range(tokens):
        newest = model(newest, past_key_values=cache).logits.argmax(-1)
