"""The caches that a whole model is run with, each made fresh."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import DynamicCache, StaticCache

from sparsemm.cache import CompressedCache, compressed_cache
from sparsemm.profiling.baselines import copying_cache
from sparsemm.profiling.bench.setting import Setting
from sparsemm.profiling.shapes import random_scores

Caches = dict[str, Callable[[], Any]]


def ours(model: Any, setting: Setting, length: int, **options: Any) -> CompressedCache:
    """A cache of ours with random head scores, few of them high."""
    scores = random_scores(setting.shape)
    return compressed_cache(model, "sparsemm", min(setting.budget, length), scores, window=setting.window, **options)


def caches(model: Any, setting: Setting, length: int, steps: int) -> Caches:
    """Ours, the same choice copied at every append, transformers' growing cache, and its static one."""

    def plain(make: Callable[[], Any]) -> Any:
        model.set_attn_implementation("sdpa")
        return make()

    room = length + steps
    return {
        "sparsemm": partial(ours, model, setting, length),
        "copying": lambda: copying_cache(ours(model, setting, length)),
        "dynamic": partial(plain, DynamicCache),
        "static": partial(plain, lambda: StaticCache(config=model.config, max_cache_len=room)),
    }


def options(model: Any, setting: Setting, length: int) -> Caches:
    """Ours with what it can do besides."""
    asked: dict[str, dict[str, Any]] = {
        "hold_budget": {"hold_budget": True},
        "int8": {"storage": "int8"},
        "fp8": {"storage": "fp8"},
    }
    return {name: partial(ours, model, setting, length, **given) for name, given in asked.items()}
