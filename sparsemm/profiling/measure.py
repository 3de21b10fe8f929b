"""Prompts and decode steps of one model under every method, methods in turn so that noise hits them alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

from sparsemm.cache import compressed_cache
from sparsemm.params import Params
from sparsemm.policies import make_policy_from
from sparsemm.profiling import clock
from sparsemm.profiling.latency import Timing, time_once
from sparsemm.profiling.memory import cache_bytes, peak_bytes_of_model, weight_bytes
from sparsemm.progress import progress

BASELINE = "transformers"  # its own growing cache and sdpa, nothing of ours
COPIES = 5  # of which the quickest says what the memory can do


@dataclass(frozen=True)
class Case:
    """One method at one length.

    Attributes:
        timings: one per repetition.
        peak: most bytes that tensors held, weights included.
        kept, slab: bytes of keys and values in use after the last token, and allocated for them.
    """

    timings: list[Timing]
    peak: int
    kept: int
    slab: int


@dataclass(frozen=True)
class Measured:
    """What was measured of a model.

    Attributes:
        key: of the model, or the name of a shape.
        budget, batch_size: asked for.
        device: that it ran on.
        weights: bytes that a decode step reads of the model.
        bandwidth: bytes per second of a copy, read and written.
        cases: by length and method.
    """

    key: str
    budget: int
    batch_size: int
    device: torch.device
    weights: int
    bandwidth: float
    cases: dict[tuple[int, str], Case] = field(default_factory=dict)


def measure(params: Params, key: str, model: Any, scores: Any, inputs: Callable[[int], dict[str, Any]]) -> Measured:
    """Every method and length, `repetitions` times after a warm-up each, every turn beginning with another method.

    Args:
        scores: of the model, as `compressed_cache` takes them.
        inputs: what the model takes for a prompt of so many tokens, on its device.
    """
    given, device = params.profile, model.device
    found = Measured(key, given.budget, given.batch_size, device, weight_bytes(model), _bandwidth(device))
    methods = [BASELINE, *given.methods]
    turns = [(length, turn) for length in given.lengths for turn in range(given.repetitions + 1)]
    for length, turn in progress(turns, len(turns), f"profile {key}"):
        if turn == 0:
            prompt = inputs(length)
        first = turn % len(methods)
        for method in methods[first:] + methods[:first]:
            cache = _cache(model, method, params, scores)
            once = partial(time_once, model, prompt, cache, given.new_tokens)
            if turn == 0:  # warms up
                peak = peak_bytes_of_model(model, once)
                found.cases[length, method] = Case([], peak, *cache_bytes(cache))
            else:
                found.cases[length, method].timings.append(once())
    return found


def _bandwidth(device: torch.device) -> float:
    copy, moved = clock.copies(device)
    copy()
    return moved / min(clock.seconds(copy, device) for _ in range(COPIES))


def _cache(model: Any, method: str, params: Params, scores: Any) -> Any:
    if method == BASELINE:
        text = [name for name in model.config.sub_configs if name == "text_config"]
        model.set_attn_implementation(dict.fromkeys(text, "sdpa") if text else "sdpa")
        return DynamicCache()
    settings = params.allocate.model_dump(include={"window", "rho", "mode"})
    settings |= params.evaluate.model_dump(include={"pooling_kernel", "seed"})
    return compressed_cache(model, make_policy_from(method, params.profile.budget, scores, settings))
