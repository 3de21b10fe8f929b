"""The caches that a whole model is timed with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import DynamicCache, StaticCache

from sparsemm.cache import CompressedCache, compressed_cache
from sparsemm.profiling.bench.baselines import copying_cache
from sparsemm.profiling.bench.setting import Setting
from sparsemm.profiling.shapes import random_scores

Caches = dict[str, Callable[[], Any]]


def ours(model: Any, setting: Setting, length: int, **options: Any) -> CompressedCache:
    """Creates one of our caches, for random head scores."""
    scores = random_scores(setting.shape)
    return compressed_cache(model, "sparsemm", min(setting.budget, length), scores, window=setting.window, **options)


def caches(model: Any, setting: Setting, length: int, steps: int) -> Caches:
    """Returns functions that create our cache, its copying variant, and transformers' growing and static caches."""

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
    """Returns functions that create our cache with its options."""
    ours_with = partial(ours, model, setting, length)
    return {
        "hold_budget": partial(ours_with, hold_budget=True),
        "int8": partial(ours_with, storage="int8"),
        "fp8": partial(ours_with, storage="fp8"),
    }
