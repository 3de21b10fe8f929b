"""Measures prompts and decode steps of one model with every method, in turns so that noise affects all alike."""

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
from sparsemm.profiling.held_bytes import cache_bytes, peak_bytes_of_model, weight_bytes
from sparsemm.profiling.latency import Timing, time_once
from sparsemm.progress import progress

BASELINE = "transformers"  # the growing cache and sdpa of transformers
COPIES = 5  # the fastest of them gives the memory's bandwidth


@dataclass(frozen=True)
class Case:
    """The measurements of one method at one length."""

    timings: list[Timing]  # one per repetition
    peak: int  # peak bytes of all tensors, weights included
    kept: int  # bytes of keys and values that are used after the last token
    slab: int  # bytes that are allocated for keys and values


@dataclass(frozen=True)
class Profile:
    """The measurements of a model."""

    key: str  # name of the model or shape
    budget: int
    batch_size: int
    device: torch.device
    weights: int  # bytes of weights that a decode step reads
    bandwidth: float  # bytes per second that a copy reads and writes
    cases: dict[tuple[int, str], Case] = field(default_factory=dict)  # measurements by length and method


def measure(params: Params, key: str, model: Any, scores: Any, inputs: Callable[[int], dict[str, Any]]) -> Profile:
    """Measures every method at every length, `repetitions` times after a warm-up; methods take turns to be first.

    Args:
        params: the parsed params.yaml.
        key: name of the model or shape.
        model: the model.
        scores: scores of its heads, for `compressed_cache`.
        inputs: function from a number of tokens to the inputs of such a prompt, on the model's device.
    """
    settings, device = params.profile, model.device
    profile = Profile(key, settings.budget, settings.batch_size, device, weight_bytes(model), _bandwidth(device))
    methods = [BASELINE, *settings.methods]
    turns = [(length, turn) for length in settings.lengths for turn in range(settings.repetitions + 1)]
    for length, turn in progress(turns, len(turns), f"profile {key}"):
        if turn == 0:
            prompt = inputs(length)
        first = turn % len(methods)
        for method in methods[first:] + methods[:first]:
            cache = _cache(model, method, params, scores)
            once = partial(time_once, model, prompt, cache, settings.new_tokens)
            if turn == 0:  # the warm-up
                peak = peak_bytes_of_model(model, once)
                profile.cases[length, method] = Case([], peak, *cache_bytes(cache))
            else:
                profile.cases[length, method].timings.append(once())
    return profile


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
